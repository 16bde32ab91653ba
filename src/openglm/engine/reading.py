"""`Reading`: a request that is read and writes nothing. It stands in an engine as a `Writer` does.

reading = prompt_scores(tokenizer, config, ids, top=1)
engine.add_reading(reading)
while engine.has_work:
    engine.step()
reading.steps  # log-probabilities of ids[1:]

An engine reads it in pieces between the tokens of others, so nobody waits for it longer than for
any prompt. It never takes pages that others have filled, since it needs what comes out of each
token; those that it fills can be taken by others.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from openglm.config import ModelConfig
from openglm.engine.conventions import convention
from openglm.engine.prompt import ids_in_front
from openglm.engine.sampling import check_logits
from openglm.engine.score import ScoringPrompt, scoring_prompt
from openglm.engine.writer import Step, Track
from openglm.errors import ContextOverflow, NumericalError
from openglm.tokenizers import Tokenizer

Head = Callable[[Tensor], Tensor]
"""(T, C) hidden states -> (T, V) logits."""
ROWS_AT_ONCE = 64
"""Logits of so many tokens exist at the same time: 38 MB in float32 for 150,000 tokens."""


class Reading(ABC):
    """What is read, and what is kept of it.

    Args:
        track: all of it.
        visible: see `Writer.visible`.

    Attributes:
        num_seen: tokens of the track that were read; after a preemption they are read again.
        problem: why nothing came of it.
        done: all was read.
    """

    passes = 1
    index = 0
    num_left = 1

    def __init__(self, track: Track, visible: int) -> None:
        self.track = track
        self.visible = visible
        self.num_seen = 0
        self.problem: NumericalError | None = None
        self.done = False

    def see(self, start: int, hidden: Tensor, head: Head) -> None:
        """Takes the (T, C) hidden states of the tokens from `start` on, as they are read."""
        fresh = hidden[max(self.num_seen - start, 0) :]
        if not len(fresh):
            return
        try:
            self._keep(self.num_seen, fresh, head)
        except NumericalError as error:  # of this request alone, which ends with it
            self.problem = error
        self.num_seen += len(fresh)

    def write(self, logits: Tensor) -> list[Step]:
        """Ends, since all was read; `NumericalError` if the network gave no numbers."""
        if self.problem is not None:
            raise self.problem
        self.done = True
        return [Step(self.index, None, 0.0, "stop")]

    def take(self, other: Self) -> None:
        """Becomes what another process has made of its copy."""
        vars(self).update(vars(other))

    @abstractmethod
    def _keep(self, start: int, hidden: Tensor, head: Head) -> None:
        """Keeps what is wanted of (T, C) hidden states; each token comes once, in order."""


class PromptScores(Reading):
    """How likely tokens are behind what stands before each of them.

    Args:
        config: of the network.
        prompt: what stands before all.
        ids: the tokens, one at least.
        top: so many alternatives for each.

    Attributes:
        steps: a token each, with its log-probability under the model and the alternatives.

    Raises:
        ContextOverflow: they need more positions than there are.
    """

    def __init__(
        self, config: ModelConfig, prompt: ScoringPrompt, ids: Sequence[int], top: int
    ) -> None:
        track = Track(prompt.context_ids)
        fed = [*prompt.head, *ids[:-1]]
        places = (values.tolist() for values in prompt.positions(len(fed)))
        for token, position, block in zip(fed, *places, strict=True):
            track.append(token, position, block)
        limit = config.max_position_embeddings
        needed = max(track.positions[-1] + 1, track.blocks[-1])
        if needed > limit:
            raise ContextOverflow(
                f"the prompt needs {needed} positions; this model has {limit}", hint="shorten it"
            )
        super().__init__(track, 0 if prompt.is_causal else len(prompt.context_ids))
        self.ids = list(ids)
        self.top = min(top, config.vocab_size)
        self.first = len(track) - len(ids)  # behind this one comes ids[0]
        self.steps: list[Step] = []

    def _keep(self, start: int, hidden: Tensor, head: Head) -> None:
        for rows in torch.split(hidden[max(self.first - start, 0) :], ROWS_AT_ONCE):
            done = len(self.steps)
            logits = head(rows).float()  # (T, V)
            check_logits(logits, f"tokens {done + 2} to {done + 1 + len(rows)} of a prompt")
            log_p = torch.log_softmax(logits, dim=-1)
            tokens = self.ids[done : done + len(rows)]
            chosen = log_p.gather(1, torch.tensor(tokens, device=log_p.device)[:, None])
            best = log_p.topk(self.top)
            for token, (value,), ids, values in zip(
                tokens, chosen.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
            ):
                top = tuple(zip(ids, values, strict=True))
                self.steps.append(Step(self.index, token, value, top=top))


def prompt_scores(
    tokenizer: Tokenizer, config: ModelConfig, ids: Sequence[int], top: int
) -> PromptScores:
    """Scores a prompt's tokens from the second on, left to right.

    Causal models read a prompt so anyway. The others see it whole, so that its tokens have no
    probability there; what they get is the one of writing the prompt into an empty long blank, as
    `LanguageModel.score("", [prompt], unidirectional=True)` does.

    Args:
        tokenizer: of the model.
        config: of the network.
        ids: two at least.
        top: so many alternatives for each.
    """
    first, *rest = ids
    if convention(tokenizer).style == "causal":
        *context, last = [*ids_in_front(tokenizer, ids), first]
        prompt = ScoringPrompt(context, len(context) - 1, [last], (), True, True)
    else:
        empty = scoring_prompt(tokenizer, config, "", unidirectional=True)
        prompt = dataclasses.replace(empty, head=[*empty.head, first])
    return PromptScores(config, prompt, rest, top)
