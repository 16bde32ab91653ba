"""GLM's pretraining objectives over packed sequences: token, sentence and document blanks.

One objective is drawn per batch, as in the official code:

    token      spans of Poisson(3) length over 15 % of the text            [MASK]
    sentence   whole sentences over 15 % of the text                       [sMASK]
    document   one long blank: the rest of the text, or somewhere inside   [gMASK]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openglm.data.blank_infilling import (
    Example,
    Ids,
    continuation,
    infill,
    sample_span_lengths,
    sample_spans,
    span_length_weights,
)
from openglm.data.packing import document_ranges, recut
from openglm.errors import ConfigError
from openglm.tokenizers.special import SpecialTokens

LONGEST_MEAN = 20
SHORTEST_RECUT = 32
"""Smallest piece length of `short_sequence_probability` (official code)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    """Which blanks are made, and how often. Defaults: GLM-10B at sequence length 512.

    Args:
        token: probability of a batch of token blanks.
        sentence: probability of a batch of sentence blanks; the rest is document blanks.
        document: probability of a batch of document blanks.
        mask_ratio: share of the text covered by token or sentence blanks.
        mean_span_length: mean of the Poisson span length, in tokens.
        single_span: probability of a batch with one short span per sequence, before the others.
        shuffle_spans: part B in random order; False = left to right.
        hidden_input: probability that an input token of a token blank is shown as `[dBLOCK]`.
        document_min_ratio: shortest document blank, as a share of the shortest sequence.
        document_infill: probability that a document blank lies inside instead of at the end.
        short_sequence: probability that a batch is re-cut into short sequences.
        random_position: add a random constant to all position ids.
    """

    token: float = 0.5
    sentence: float = 0.3
    document: float = 0.2
    mask_ratio: float = 0.15
    mean_span_length: float = 3.0
    single_span: float = 0.0
    shuffle_spans: bool = True
    hidden_input: float = 0.1
    document_min_ratio: float = 0.25
    document_infill: float = 0.5
    short_sequence: float = 0.02
    random_position: bool = False

    def __post_init__(self) -> None:
        shares = ("token", "sentence", "document")
        total = sum(getattr(self, name) for name in shares)
        if abs(total - 1.0) > 1e-6:
            raise ConfigError(f"objective token + sentence + document is {total:g}; it must be 1")
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name != "mean_span_length" and not 0.0 <= value <= 1.0:
                raise ConfigError(f"objective.{name}={value} must be between 0 and 1")
        if not 0 < self.mean_span_length <= LONGEST_MEAN:
            raise ConfigError(
                f"objective.mean_span_length={self.mean_span_length} must be above 0 and at most "
                f"{LONGEST_MEAN}, since spans have at most 39 tokens"
            )


class BlankInfilling:
    """Turns packed sequences into examples.

    Args:
        config: the mix of objectives.
        special: the command tokens of the tokenizer.
        sentence_ends: (V,) bool table of tokens that end a sentence.
        max_position_embeddings: bound of `random_position`.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        special: SpecialTokens,
        sentence_ends: NDArray[np.bool_],
        max_position_embeddings: int,
    ) -> None:
        if config.hidden_input > 0 and special.dblock_id is None:
            raise ConfigError(
                f"objective.hidden_input={config.hidden_input}, but the tokenizer has no [dBLOCK]",
                hint="set objective.hidden_input = 0",
            )
        self.config = config
        self.special = special
        self.sentence_ends = sentence_ends
        self.max_position_embeddings = max_position_embeddings
        weights = np.cumsum(span_length_weights(config.mean_span_length))
        self.span_lengths = weights / weights[-1]

    def batch(self, sequences: list[Ids], rng: np.random.Generator) -> list[Example]:
        """One example per sequence of a batch; a sequence whose blanks do not fit is dropped."""
        config = self.config
        if rng.random() < config.short_sequence:
            sequences = self._recut(sequences, rng)
        single = rng.random() < config.single_span
        drawn = rng.random()
        if single or drawn < config.token:
            made = [self.token_blanks(tokens, rng, single) for tokens in sequences]
        elif drawn < config.token + config.sentence:
            made = [self.sentence_blanks(tokens, rng) for tokens in sequences]
        else:
            shortest, longest = min(map(len, sequences)), max(map(len, sequences))
            low = max(1, int(config.document_min_ratio * shortest))
            length = int(rng.integers(low, max(low, longest - 2) + 1))
            made = [self.document_blank(tokens, length, rng) for tokens in sequences]
        return [example for example in made if example is not None]

    def token_blanks(
        self, tokens: Ids, rng: np.random.Generator, single: bool = False
    ) -> Example | None:
        """Short spans anywhere in the documents; None if they do not fit."""
        documents = self._documents(tokens)
        total = 1 if single else int(self.config.mask_ratio * len(tokens))
        lengths = sample_span_lengths(total, self.span_lengths, rng)
        if not len(lengths) or not len(documents):
            return None
        spans = sample_spans(lengths, documents, self.config.mask_ratio, rng)
        if spans is None:
            return None
        hidden = None
        if self.special.dblock_id is not None:
            hidden = rng.random(int(lengths.sum())) < self.config.hidden_input
        return self._infill(tokens, spans, self.special.mask_id, rng, hidden)

    def sentence_blanks(self, tokens: Ids, rng: np.random.Generator) -> Example | None:
        """Whole sentences; None if there is no complete one."""
        documents = self._documents(tokens)
        ends = np.flatnonzero(self.sentence_ends[tokens]) + 1
        candidates = []
        for start, stop in documents:
            inside = ends[(ends > start) & (ends <= stop)]
            starts = np.concatenate([[start], inside])[:-1]
            candidates.append(np.stack([starts, inside], axis=1))
        sentences = np.concatenate(candidates) if candidates else np.empty((0, 2), dtype=np.int64)
        if not len(sentences):
            return None
        sentences = rng.permutation(sentences)
        covered = np.cumsum(sentences[:, 1] - sentences[:, 0])
        count = int(np.searchsorted(covered, int(self.config.mask_ratio * len(tokens)))) + 1
        return self._infill(tokens, sentences[:count], self.special.smask_id, rng)

    def document_blank(self, tokens: Ids, length: int, rng: np.random.Generator) -> Example:
        """One long blank of at most `length` tokens at the end of the sequence or inside it."""
        length = max(1, min(length, len(tokens) - 2))
        several = np.count_nonzero(tokens == self.special.cls_id) > 1
        if several or rng.random() >= self.config.document_infill:
            loss_mask = (tokens != self.special.cls_id).astype(np.int64)
            return continuation(
                tokens,
                loss_mask,
                len(tokens) - length,
                gmask_id=self.special.gmask_id,
                sop_id=self.special.sop_id,
            )
        start = int(rng.integers(1, max(2, len(tokens) - length)))
        span = np.array([[start, start + length]])
        return self._infill(tokens, span, self.special.gmask_id, rng)

    def _infill(
        self,
        tokens: Ids,
        spans: Ids,
        mask_id: int,
        rng: np.random.Generator,
        hidden: NDArray[np.bool_] | None = None,
    ) -> Example:
        offset = 0
        if self.config.random_position:
            offset = int(rng.integers(0, max(1, self.max_position_embeddings - len(tokens))))
        return infill(
            tokens,
            spans,
            rng.permutation(len(spans)) if self.config.shuffle_spans else None,
            mask_id=mask_id,
            sop_id=self.special.sop_id,
            eop_id=self.special.eop_id,
            position_offset=offset,
            hidden_inputs=hidden,
            hidden_id=self.special.dblock_id,
        )

    def _documents(self, tokens: Ids) -> Ids:
        return document_ranges(tokens, self.special.cls_id, self.special.eos_id)

    def _recut(self, sequences: list[Ids], rng: np.random.Generator) -> list[Ids]:
        longest = max(map(len, sequences))
        length = int(rng.integers(SHORTEST_RECUT, max(SHORTEST_RECUT + 1, longest - 1)))
        pieces = max(1, (longest - 1) // length)
        return [
            piece
            for tokens in sequences
            for piece in recut(
                tokens,
                length,
                pieces,
                self.sentence_ends,
                self.special.cls_id,
                self.special.eos_id,
            )
        ]
