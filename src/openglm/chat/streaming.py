"""`ReplyReader`: an answer read while it is being written, as pieces of text and calls of tools.

Put together, the pieces are what `read_reply` finds in the whole text; nothing is passed on that
what follows could change.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field

from openglm.chat.replies import PUNCTUATION, TRAINING_TIME, fenced_call, widened
from openglm.errors import RequestError

NEXT_PART = "<|assistant|>"
WITH_PARTS = ("chatglm3", "glm4")
"""Kinds of tokenizers whose answers have parts, each with a first line that may name a tool."""
WIDENING = ("chatglm", "chatglm-icetk")
"""Kinds whose official code widens punctuation."""


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call of a tool.

    Args:
        index: which call of this answer, from 0.
        name: of the tool, in the first piece; then None.
        arguments: to append to the JSON of the arguments.
    """

    index: int
    name: str | None
    arguments: str


ReplyPiece = str | CallPiece


class ReplyReader:
    """Reads one answer.

    Args:
        kind: of the tokenizer.
        tools: names of the tools that the model was offered; a first line that names none of them
            is text.

    Attributes:
        num_calls: calls of tools so far.
    """

    def __init__(self, kind: str, tools: Collection[str] = ()) -> None:
        self.kind = kind
        self.tools = tools
        self.num_calls = 0
        self.has_text = False
        self.pending = ""
        self.part = _Part(kind, tools)

    def push(self, text: str) -> list[ReplyPiece]:
        """What is certain after more text, possibly nothing."""
        if self.kind not in WITH_PARTS:
            return self._told([self.part.cleaner.push(text)])
        self.pending += text
        found: list[ReplyPiece] = []
        while NEXT_PART in self.pending:
            part, _, self.pending = self.pending.partition(NEXT_PART)
            found += self._told([*self.part.push(part), *self.part.finish()])
            self.part = _Part(self.kind, self.tools)
        cut = len(self.pending) - _held_back(self.pending, NEXT_PART)
        text, self.pending = self.pending[:cut], self.pending[cut:]
        return found + self._told(self.part.push(text))

    def finish(self) -> list[ReplyPiece]:
        """The rest, once nothing follows."""
        if self.kind not in WITH_PARTS:
            return self._told([self.part.cleaner.finish()])
        return self._told([*self.part.push(self.pending), *self.part.finish()])

    def _told(self, pieces: list[ReplyPiece]) -> list[ReplyPiece]:
        """Pieces of a part as pieces of the answer: calls are numbered, texts stand apart."""
        told: list[ReplyPiece] = []
        for piece in pieces:
            if isinstance(piece, CallPiece):
                self.num_calls += piece.name is not None
                told.append(CallPiece(self.num_calls - 1, piece.name, piece.arguments))
            elif piece:
                told.append("\n" + piece if self.has_text and not self.part.has_text else piece)
                self.has_text = self.part.has_text = True
        return told


@dataclass(slots=True)
class _Part:
    """One part of an answer: a first line, then text or the arguments of a call."""

    kind: str
    tools: Collection[str]
    cleaner: Cleaner = field(init=False)
    head: str | None = ""  # the first line as far as it has come; None behind it
    is_call: bool = False
    source: str = ""  # of a call that is only understood whole
    has_text: bool = False

    def __post_init__(self) -> None:
        self.cleaner = Cleaner(self.kind)

    def push(self, text: str) -> list[ReplyPiece]:
        if self.head is None:
            return self._body(text)
        self.head += text
        line, newline, rest = self.head.partition("\n")
        if not newline:
            return []
        name = line.strip()
        self.is_call = name in self.tools
        if self.is_call:
            self.head = None
            return [CallPiece(0, name, ""), *self._body(rest)]
        whole, self.head = self.head, None
        return self._body(whole if name else rest)

    def finish(self) -> list[ReplyPiece]:
        if self.head is not None:
            whole, self.head = self.head, None
            return [self.cleaner.push(whole) + self.cleaner.finish()]
        if not self.is_call:
            return [self.cleaner.finish()]
        return [CallPiece(0, None, _as_json(self.source))] if self.source else []

    def _body(self, text: str) -> list[ReplyPiece]:
        if not self.is_call:
            return [self.cleaner.push(text)]
        if self.kind == "chatglm3":
            self.source += text
            return []
        return [CallPiece(0, None, text)] if text else []


class Cleaner:
    """What the official code does to the text of an answer, done to a text that is growing.

    White space around it goes, `[[训练时间]]` becomes a year, and ChatGLM-6B's punctuation
    becomes full width beside a Chinese character.

    Args:
        kind: of the tokenizer.
    """

    def __init__(self, kind: str) -> None:
        self.widens = kind in WIDENING
        self.waits_for = "".join(map(chr, PUNCTUATION)) if self.widens else ""
        self.pending = ""
        self.last = ""  # the character before `pending`

    def push(self, text: str) -> str:
        """What is certain after more text."""
        self.pending += text
        if not self.last:
            self.pending = self.pending.lstrip()
        cut = len(self.pending) - _held_back(self.pending, TRAINING_TIME[0])
        while cut and (self.pending[cut - 1].isspace() or self.pending[cut - 1] in self.waits_for):
            cut -= 1
        certain, self.pending = self.pending[:cut], self.pending[cut:]
        return self._cleaned(certain)

    def finish(self) -> str:
        """The rest."""
        certain, self.pending = self.pending.rstrip(), ""
        return self._cleaned(certain)

    def _cleaned(self, text: str) -> str:
        text = text.replace(*TRAINING_TIME)
        if self.widens:
            text = widened(self.last + text)[len(self.last) :]
        self.last = text[-1:] or self.last
        return text


def _as_json(source: str) -> str:
    """The arguments of ChatGLM3's call as JSON; what cannot be read is passed on as it is."""
    try:
        return json.dumps(fenced_call(source), ensure_ascii=False)
    except RequestError:
        return source


def _held_back(text: str, mark: str) -> int:
    """Length of the longest end of `text` with which `mark` begins."""
    return next(
        (n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0
    )
