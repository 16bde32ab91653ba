"""Operations with more than one implementation, each with a plain-torch reference."""
