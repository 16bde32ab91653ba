"""Earlier conversations. The reader's browser keeps them; the server forgets what it was sent."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ValidationError

MOST = 20
"""Conversations; the oldest goes first."""
MOST_CHARACTERS = 400_000
"""Of all together: each event of the tab sends them, and browsers keep 5 MB."""
TITLE_CHARACTERS = 36


class Turn(BaseModel):
    """What was said at once."""

    role: Literal["user", "assistant"]
    content: str


class History(BaseModel):
    """Conversations, the last used first.

    Args:
        owner: id of the key whose they are; a browser may have several readers.
        is_open: whether the first one is the one that is on the page.
        conversations: as said.
    """

    owner: str
    is_open: bool = False
    conversations: list[list[Turn]] = []

    @classmethod
    def read(cls, kept: Any, owner: str) -> History:
        """What a browser kept; an empty history if that is another's or none."""
        try:
            found = cls.model_validate(kept)
        except ValidationError:
            return cls(owner=owner)
        return found if found.owner == owner else cls(owner=owner)

    @property
    def opened(self) -> list[Turn]:
        """The conversation that is on the page."""
        return self.conversations[0] if self.is_open and self.conversations else []

    @property
    def titles(self) -> list[str]:
        """What each conversation began with."""
        return [_title(turns) for turns in self.conversations]

    def put(self, turns: list[Turn]) -> None:
        """The conversation on the page is this now."""
        self.drop()
        if turns:
            self.conversations.insert(0, turns)
            self.is_open = True
        del self.conversations[MOST:]
        while len(self.conversations) > 1 and self._num_characters() > MOST_CHARACTERS:
            self.conversations.pop()

    def take(self, index: int) -> None:
        """Puts a conversation onto the page."""
        if 0 <= index < len(self.conversations):
            self.conversations.insert(0, self.conversations.pop(index))
            self.is_open = True

    def drop(self) -> None:
        """Forgets the conversation on the page."""
        if self.opened:
            self.conversations.pop(0)
        self.is_open = False

    def _num_characters(self) -> int:
        return sum(len(turn.content) for turns in self.conversations for turn in turns)


def _title(turns: list[Turn]) -> str:
    text = " ".join(turns[0].content.split()) if turns else ""
    return text if len(text) <= TITLE_CHARACTERS else f"{text[: TITLE_CHARACTERS - 1]}…"
