"""Tokenizers of the family: text to ids and back, command tokens kept apart. No torch."""

from openglm.tokenizers.base import Tokenizer
from openglm.tokenizers.load import find_tokenizer, open_tokenizer, require_tokenizer
from openglm.tokenizers.special import SpecialTokens

__all__ = ["SpecialTokens", "Tokenizer", "find_tokenizer", "open_tokenizer", "require_tokenizer"]
