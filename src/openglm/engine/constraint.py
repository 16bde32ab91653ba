"""What a text must match: a JSON schema, a regular expression, a grammar, or one of some texts.

xgrammar (Dong et al. 2024) keeps a pushdown automaton over bytes and says which tokens may follow.
It is told our own vocabularies, so every tokenizer works; an end token may only follow where the
text is complete. Schemas and patterns come from strangers: their size, and the time for compiling
one, are limited.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from openglm.errors import RequestError
from openglm.tokenizers import Tokenizer

LONGEST_SCHEMA, LONGEST_PATTERN = 1 << 16, 1 << 13
"""Characters of a schema or of all choices; of a pattern or grammar, which can ask for more."""
MOST_PROPERTIES = 256
"""Of a schema, all objects together: optional ones cost time and memory by their square."""
DEEPEST = 64
"""Objects and lists in each other, in a schema."""
COMPILE_SECONDS, STEP_SECONDS = 10.0, 2.0
"""For compiling, and for finding out once what may follow."""
COMPILING = threading.BoundedSemaphore(2)
"""Grammars that are compiled at once: one that takes too long is refused, but cannot be stopped."""
CACHE_BYTES = 1 << 26
"""Compiled grammars that are kept for the next request."""
MOST_BLANKS = 32
"""White space in a row in JSON: indents 15 levels, and ends a model that writes nothing else."""


class GrammarCompiler:
    """Makes constraints for one vocabulary.

    Args:
        tokenizer: of the model.
        vocab_size: rows of the network's vocabulary.
        end_ids: tokens that end a text.

    Raises:
        RequestError: xgrammar is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end_ids: Collection[int]) -> None:
        self.xgrammar = xgrammar = _import_xgrammar()
        spellings = tokenizer.spellings()
        info = xgrammar.TokenizerInfo(
            [b"" if token in end_ids else spelling for token, spelling in enumerate(spellings)],
            vocab_type=xgrammar.VocabType.RAW,
            vocab_size=vocab_size,
            stop_token_ids=sorted(end_ids),
        )
        self.drops_space = drops_space(tokenizer, spellings)
        self.not_first = _keeping_space(tokenizer, spellings) if self.drops_space else []
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_limit_bytes=CACHE_BYTES)

    def compile(self, kind: str, value: Any) -> Constraint:
        """A rule for one request.

        Args:
            kind: one of `openglm.engine.params.CONSTRAINTS`.
            value: as `SamplingParams` keeps it.

        Raises:
            RequestError: not understood, too large, or too slow to compile.
        """
        size = sum(map(len, value))
        most = LONGEST_PATTERN if kind in ("regex", "grammar") else LONGEST_SCHEMA
        if size > most:
            raise RequestError(f"{kind} has {size} characters; at most {most} are compiled")
        if kind == "json_schema":
            _check_schema(json.loads(value))
        outcome: list[Any] = []
        end = time.monotonic() + COMPILE_SECONDS
        if not COMPILING.acquire(timeout=COMPILE_SECONDS):
            raise RequestError(f"{kind} had to wait for others to be compiled", hint="try again")
        worker = threading.Thread(target=self._compile, args=(kind, value, outcome), daemon=True)
        worker.start()
        worker.join(max(0.0, end - time.monotonic()))
        if not outcome:
            raise RequestError(
                f"{kind} is not compiled after {COMPILE_SECONDS:g} s",
                hint="make it simpler: fewer optional properties, smaller counts of repetition",
            )
        if isinstance(outcome[0], Exception):
            raise RequestError(f"{kind} is not understood: {_reason(outcome[0])}") from outcome[0]
        matcher = self.xgrammar.GrammarMatcher(outcome[0])
        return Constraint(matcher, self.not_first)

    def _compile(self, kind: str, value: Any, outcome: list[Any]) -> None:
        grammar = self.xgrammar.Grammar
        try:
            if kind == "json_schema":
                made = grammar.from_json_schema(value, max_whitespace_cnt=MOST_BLANKS)
            elif kind == "regex":
                made = grammar.from_regex(value)
            elif kind == "choice":
                made = grammar.from_ebnf(f"root ::= {' | '.join(map(_quoted, value))}")
            else:
                made = grammar.from_ebnf(value)
            if self.drops_space:  # the first one is not part of the decoded text
                made = grammar.concat(grammar.from_ebnf('root ::= " "'), made)
            outcome.append(self.compiler.compile_grammar(made))
        except Exception as error:  # of C++, of many types; told by the caller
            outcome.append(error)
        finally:
            COMPILING.release()


class Constraint:
    """A rule of a `Sampler`: nothing can be written that the grammar does not allow.

    Args:
        matcher: xgrammar's automaton.
        not_first: tokens that no text may begin with.
    """

    def __init__(self, matcher: Any, not_first: Sequence[int] = ()) -> None:
        self.matcher = matcher
        self.not_first = list(not_first)
        self.taken: list[int] = []

    def __call__(self, scores: Tensor, blank: Sequence[int]) -> None:
        """See `openglm.engine.sampling.Rule`; any blank may follow any other, drafts too."""
        start = time.monotonic()
        self._go_to(blank)
        bits = torch.zeros(1, -(-len(scores) // 32), dtype=torch.int32)  # (1, V / 32)
        self.matcher.fill_next_token_bitmask(bits)
        if time.monotonic() - start > STEP_SECONDS:
            raise RequestError(
                f"what the text must match takes more than {STEP_SECONDS:g} s for one token",
                hint="make it simpler: fewer parts that may be left out, less ambiguity",
            )
        shifts = torch.arange(32, dtype=torch.int32)
        allowed = (bits[0, :, None] >> shifts & 1).flatten()[: len(scores)].bool()
        scores.masked_fill_(~allowed, -torch.inf)
        if not blank:
            scores[self.not_first] = -torch.inf

    def _go_to(self, blank: Sequence[int]) -> None:
        """Brings the automaton behind the tokens of `blank`."""
        common = 0
        while common < min(len(blank), len(self.taken)) and blank[common] == self.taken[common]:
            common += 1
        if common < len(self.taken):
            self.matcher.rollback(len(self.taken) - common)
            del self.taken[common:]
        for token in blank[common:]:
            if not self.matcher.accept_token(token):
                raise RequestError(f"token {token} is not what the text must match")
            self.taken.append(token)


def drops_space(tokenizer: Tokenizer, spellings: Sequence[bytes]) -> bool:
    """Whether decoding drops the space in front of a text, which sentencepiece puts there."""
    words = (i for i, s in enumerate(spellings) if s[:1] == b" " and s[1:].isalpha())
    first = next(words, None)
    return first is not None and not tokenizer.decode([first]).startswith(" ")


def _keeping_space(tokenizer: Tokenizer, spellings: Sequence[bytes]) -> list[int]:
    """Tokens whose space is not dropped, unlike that of most: ChatGLM-6B's for runs of spaces."""
    spaced = (i for i, spelling in enumerate(spellings) if spelling[:1] == b" ")
    return [i for i in spaced if tokenizer.decode([i]).startswith(spellings[i].decode())]


def _import_xgrammar() -> Any:
    try:
        import xgrammar
    except ImportError as error:
        raise RequestError(
            "json_schema, regex, grammar and choice need xgrammar, which is not installed",
            hint="pip install 'openglm[grammar]'",
        ) from error
    return xgrammar


def _check_schema(schema: Any) -> None:
    """Raises `RequestError` for a schema that is too deep, or has too much that is slow."""
    count, pattern_length, level = 0, 0, [schema]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for part in level:
            if isinstance(part, dict):
                _check_reference(part.get("$ref"))
                pattern_length += len(str(part.get("pattern", "")))
                properties = part.get("properties")
                count += len(properties) if isinstance(properties, dict) else 0
                below += part.values()
            elif isinstance(part, list):
                below += part
        level = below
    if level:
        raise RequestError(f"json_schema is deeper than {DEEPEST} levels")
    if pattern_length > LONGEST_PATTERN:
        raise RequestError(
            f"json_schema has patterns of {pattern_length} characters; at most {LONGEST_PATTERN} "
            "are compiled"
        )
    if count > MOST_PROPERTIES:
        raise RequestError(
            f"json_schema has {count} properties; at most {MOST_PROPERTIES} are compiled"
        )


def _check_reference(reference: object) -> None:
    """Refuses what is not in the schema; xgrammar would log it, as whoever wrote it chose."""
    if isinstance(reference, str) and not reference.startswith("#"):
        raise RequestError(
            f"json_schema refers to {reference[:80]!r}", hint="only references like #/$defs/NAME"
        )


def _quoted(text: str) -> str:
    """A text as a literal of the grammar; its escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False)


def _reason(error: Exception) -> str:
    """The message of xgrammar without time and place in its source."""
    return str(error).strip().rpartition(".cc:")[2].partition(": ")[2] or str(error).strip()
