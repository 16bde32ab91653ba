"""`RuleBook`: what a request needs of the tokenizer while it is written.

That is rules for `bad_words` and for what the text must match, and the look-out for stop strings.
"""

from __future__ import annotations

from functools import cached_property

from openglm.engine.bad_words import BadWords
from openglm.engine.constraint import GrammarCompiler
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import Prompt
from openglm.engine.sampling import Rule
from openglm.engine.text_stream import StopStrings
from openglm.engine.writer import Asked
from openglm.tokenizers import Tokenizer


class RuleBook:
    """Makes the rules of each request; what they share is made once.

    Args:
        tokenizer: of the model.
        vocab_size: rows of the network's vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self._compilers: dict[frozenset[int], GrammarCompiler] = {}  # by the tokens that end a text

    @cached_property
    def spellings(self) -> list[bytes]:
        """See `Tokenizer.spellings`."""
        return self.tokenizer.spellings()

    def equip(self, prompt: Prompt, params: SamplingParams, special: bool = False) -> Asked:
        """A request with rules of its own.

        Args:
            prompt: the context.
            params: sampling settings.
            special: stop strings are looked for in the text with command tokens written out.

        Raises:
            RequestError: what the text must match is not understood, or too large.
        """
        rules: list[Rule] = []
        if params.bad_words:
            rules.append(BadWords(params.bad_words, self.spellings))
        if params.constraint is not None:
            rules.append(self._compiler(prompt.end_ids).compile(*params.constraint))
        ends = StopStrings(self.tokenizer, params, special) if params.stop else None
        return Asked(prompt, params, rules, ends)

    def _compiler(self, end_ids: frozenset[int]) -> GrammarCompiler:
        if end_ids not in self._compilers:
            self._compilers[end_ids] = GrammarCompiler(self.tokenizer, self.vocab_size, end_ids)
        return self._compilers[end_ids]
