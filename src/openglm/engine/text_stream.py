"""Text from tokens as they come: never half a character, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from openglm.engine.params import SamplingParams
from openglm.tokenizers import Tokenizer


class GrowingText:
    """The text of tokens that come one by one, of which only the last are decoded again.

    The tokens are cut where all text is settled (see `Tokenizer.settled`). What comes behind a cut
    is decoded together with the tokens between it and the cut before, so that the tokenizer finds
    itself inside a text: in front of a whole text it drops a space, for example. Of what comes out
    only the part behind the cut is new. A cut needs text in front of it, else the tokenizer would
    still be at the beginning; each token is decoded three times or so.

    Args:
        tokenizer: of the tokens.
        special: command tokens are written out.

    Attributes:
        ids: all tokens.
        whole: their text.
        num_certain: of it, the characters that stay whatever follows.
        commands: where command tokens stand in it, as (start, end), if they are written out.
    """

    def __init__(self, tokenizer: Tokenizer, special: bool = False) -> None:
        self.tokenizer = tokenizer
        self.special = special
        self.ids: list[int] = []
        self.whole = ""
        self.num_certain = 0
        self.commands: list[tuple[int, int]] = []
        self._command_texts = tokenizer.command_texts if special else {}
        self._last_cut = self._cut = 0  # numbers of tokens
        self._before = ""  # text in front of the cut
        self._overlap = 0  # characters of the tokens between the two cuts, decoded alone

    def push(self, token_id: int) -> None:
        """Adds a token."""
        self.ids.append(token_id)
        text = self._decode(self._last_cut)
        self.whole = self._before + text[self._overlap :]
        num_open = len(text) - self.tokenizer.settled(text)
        self.num_certain = len(self.whole) - num_open
        if token_id in self._command_texts:
            written = self.tokenizer.special_prefix + self._command_texts[token_id]
            self.commands.append((len(self.whole) - len(written), len(self.whole)))
        overlap = 0 if num_open else len(self._decode(self._cut))
        if overlap:
            self._last_cut, self._cut = self._cut, len(self.ids)
            self._before, self._overlap = self.whole, overlap

    def _decode(self, start: int) -> str:
        return self.tokenizer.decode(self.ids[start:], special=self.special)


class TextStream:
    """Decodes a growing list of tokens.

    What later tokens may change is held back, like a character whose bytes are spread over several,
    and so is the end of the text as long as it may become a stop string; the pieces put together
    equal the decoded whole up to the first stop string.

    Args:
        tokenizer: of the tokens.
        stop: texts that end the text and are not part of it.
        min_tokens: a stop string counts only if it was completed by this token or a later one.
        special: command tokens are written out in `text`, and stop strings are looked for with
            them; they are no part of the pieces.

    Attributes:
        is_stopped: a stop string was found; nothing follows.
        text: what is certain so far, all of it once `finish` was called.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        special: bool = False,
    ) -> None:
        self.stop = stop
        self.min_tokens = min_tokens
        self.growing = GrowingText(tokenizer, special)
        self.text = ""
        self.is_stopped = False
        self.searched = 0  # characters in which stop strings no longer count

    def push(self, token_id: int) -> str:
        """Adds a token; returns the text that is now certain, possibly ""."""
        self.growing.push(token_id)
        certain = self.growing.whole[: self.growing.num_certain]
        found = self._search(certain)
        if self.is_stopped:
            return self._send(found)
        self.searched = len(certain)
        return self._send(certain[: len(certain) - held_back(certain, self.stop)])

    def finish(self) -> str:
        """The rest, once no token follows; broken bytes come out as U+FFFD."""
        return "" if self.is_stopped else self._send(self._search(self.growing.whole))

    @property
    def ids(self) -> list[int]:
        """The tokens so far."""
        return self.growing.ids

    def _search(self, text: str) -> str:
        """`text` up to the first stop string that ends in what is new."""
        place = first_stop(text, self.stop, self.searched)
        self.is_stopped = place is not None and len(self.ids) >= self.min_tokens
        return text[:place] if self.is_stopped else text

    def _send(self, text: str) -> str:
        """What is new in `text`, without command tokens."""
        piece, place = "", len(self.text)
        for start, end in self.growing.commands:
            piece += text[place : max(start, place)]
            place = max(end, place)
        self.text = text
        return piece + text[place:]


class StopStrings:
    """Says when a stop string ends a blank: `Ends` of a writer.

    Args:
        tokenizer: of the tokens.
        params: with the stop strings.
        special: they are looked for in the text with command tokens written out.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, special: bool = False) -> None:
        self.tokenizer = tokenizer
        self.params = params
        self.special = special
        self.stream = self._begin()

    def __call__(self, blank: Sequence[int]) -> bool:
        """Whether a stop string is complete; any blank may follow any other."""
        if self.stream.ids != blank[:-1]:
            self.stream = self._begin()
        for token in blank[len(self.stream.ids) :]:
            self.stream.push(token)
        return self.stream.is_stopped

    def _begin(self) -> TextStream:
        return TextStream(self.tokenizer, self.params.stop, self.params.min_tokens, self.special)


def first_stop(text: str, stop: Sequence[str], start: int = 0) -> int | None:
    """Where the stop string begins that is complete first, None if none ends behind `start`.

    Of two that end together the longer counts. So the answer does not depend on how the text was
    cut into tokens.
    """
    found = []
    for one in stop:
        place = text.find(one, max(0, start - len(one) + 1))
        if place >= 0:
            found.append((place + len(one), place))
    return min(found)[1] if found else None


def held_back(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` with which a stop string begins."""
    if not stop:
        return 0
    lengths = range(min(len(text), max(map(len, stop), default=0)), 0, -1)
    return next((n for n in lengths if any(one.startswith(text[-n:]) for one in stop)), 0)
