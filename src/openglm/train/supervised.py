"""From conversations to training examples: laid out as the engine lays out what it writes.

A model learns what stands in an answer, and its end; never what it was asked. Models with roles
(ChatGLM3, GLM-4) learn all answers of a conversation in one sequence, others one answer each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openglm.chat.formats import answer_ids, has_format, prompt_ids
from openglm.chat.messages import Message
from openglm.config import ModelConfig
from openglm.data.batches import Batch, collate
from openglm.data.blank_infilling import Example
from openglm.data.conversations import MOST_PROBLEMS, Conversation, answers_of
from openglm.engine.conventions import convention
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import (
    CANONICAL_MASK,
    Prompt,
    blank_prompt,
    chat_prompt,
    continuation_prompt,
)
from openglm.engine.writer import Writer, room
from openglm.errors import ContextOverflow, DataError, OpenGLMError
from openglm.tokenizers import Tokenizer

WINDOW = 16
"""Batches among which examples are sorted by length, so that little is padded."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of a conversation.

    Args:
        prompt: that asks for it.
        ids: it, without its end.
    """

    prompt: Prompt
    ids: list[int]

    @property
    def before(self) -> list[int]:
        """All ids that are read before it is begun."""
        return [*self.prompt.context_ids, self.prompt.first_id]


@dataclass(frozen=True, slots=True)
class Supervised:
    """What is learned from.

    Args:
        examples: in the order of the conversations.
        too_long: lines of conversations that were left out for their length.
    """

    examples: list[Example]
    too_long: list[int]


def supervise(
    conversations: Sequence[Conversation],
    tokenizer: Tokenizer,
    config: ModelConfig,
    longest: int,
) -> Supervised:
    """Lays out all conversations.

    Args:
        conversations: of one file.
        tokenizer: of the model.
        config: of the network.
        longest: tokens of an example; what has more is left out whole.

    Raises:
        DataError: a conversation that this model cannot have, or none that is short enough.
    """
    examples: list[Example] = []
    too_long: list[int] = []
    problems = []
    for conversation in conversations:
        try:
            found = lay_out(conversation.messages, tokenizer, config)
        except ContextOverflow:
            too_long.append(conversation.line)
            continue
        except OpenGLMError as error:
            problems.append(f"line {conversation.line}: {error}")
            continue
        if any(len(example.input_ids) > longest for example in found):
            too_long.append(conversation.line)
        else:
            examples += found
    if problems:
        raise DataError(
            f"{len(problems)} of {len(conversations)} conversations are none that this model can "
            "have:\n" + "\n".join(problems[:MOST_PROBLEMS])
        )
    if not examples and too_long:
        raise DataError(
            f"all {len(too_long)} conversations have more than train.sequence_length={longest} "
            "tokens",
            hint="raise it, as far as the model's positions and the memory allow",
        )
    if not examples:
        raise DataError("no conversation is left to learn from", hint="lower data.holdout")
    return Supervised(examples, too_long)


def lay_out(
    messages: Sequence[Message], tokenizer: Tokenizer, config: ModelConfig
) -> list[Example]:
    """The examples of one conversation.

    Raises:
        ContextOverflow: it needs more positions than the model has.
        OpenGLMError: this model cannot have it.
    """
    turns = [_turn(messages, place, tokenizer) for place in answers_of(list(messages))]
    how = convention(tokenizer)
    end = tokenizer.special.get(how.ends[0]).id
    whole = [*turns[-1].before, *turns[-1].ids, end]
    if how.style == "causal" and all(_begins(whole, turn) for turn in turns):
        if len(whole) - 1 > config.max_position_embeddings:
            raise ContextOverflow(f"{len(whole) - 1} tokens are more than the model's positions")
        return [_joined(whole, turns)]
    return [_example(turn, end, config) for turn in turns]


def _turn(messages: Sequence[Message], place: int, tokenizer: Tokenizer) -> Turn:
    asked, answer = list(messages[:place]), messages[place]
    if has_format(tokenizer):
        return Turn(
            chat_prompt(tokenizer, prompt_ids(tokenizer, asked)), answer_ids(tokenizer, answer)
        )
    if len(asked) != 1 or asked[0].role != "user":
        raise DataError(
            "this model was not made for conversations: it learns from one question and its answer",
            hint="leave out the system message and earlier turns",
        )
    text = asked[0].content
    masks = (CANONICAL_MASK, *(mask.text for mask in tokenizer.special.mask_tokens))
    is_blank = convention(tokenizer).style != "causal" and any(mask in text for mask in masks)
    prompt = (blank_prompt if is_blank else continuation_prompt)(tokenizer, text)
    if len(prompt.mask_positions) > 1:
        raise DataError(f"the question has {len(prompt.mask_positions)} blanks, and one answer")
    return Turn(prompt, tokenizer.encode(answer.content))


def _begins(whole: Sequence[int], turn: Turn) -> bool:
    ids = [*turn.before, *turn.ids]
    return list(whole[: len(ids)]) == ids


def _joined(whole: Sequence[int], turns: Sequence[Turn]) -> Example:
    """One sequence for all answers; each ends in what is behind it, the next role or the end."""
    tokens = np.array(whole, dtype=np.int64)
    loss_mask = np.zeros(len(tokens) - 1, dtype=np.int64)
    for turn in turns:
        start = len(turn.before) - 1
        loss_mask[start : start + len(turn.ids) + 1] = 1
    return Example(
        input_ids=tokens[:-1],
        targets=tokens[1:],
        loss_mask=loss_mask,
        position_ids=np.arange(len(loss_mask)),
        block_position_ids=np.zeros_like(loss_mask),
        context_length=0,
    )


def _example(turn: Turn, end: int, config: ModelConfig) -> Example:
    """One answer, at the positions at which the engine would write it."""
    if len(turn.ids) > room(config, turn.prompt):
        raise ContextOverflow(f"the model has no positions for {len(turn.ids)} tokens of an answer")
    params = SamplingParams(max_tokens=max(1, len(turn.ids)))
    writer = Writer(config, turn.prompt, params)
    for number, token in enumerate(turn.ids, start=2):
        writer.track.append(token, *writer.place(number))
    count = len(writer.track)
    first = count - len(turn.ids) - 1
    targets, loss_mask = np.zeros((2, count), dtype=np.int64)
    targets[first:] = [*turn.ids, end]
    loss_mask[first:] = 1
    track = writer.track
    ids, positions, blocks = np.array([track.tokens, track.positions, track.blocks])
    return Example(ids, targets, loss_mask, positions, blocks, writer.visible)


@dataclass(frozen=True, slots=True)
class Epochs:
    """Batches of examples, each example once in an epoch.

    Args:
        examples: of the run.
        batch_size: examples per batch.
        seed: of their order.
    """

    examples: Sequence[Example]
    batch_size: int
    seed: int

    @property
    def num_batches(self) -> int:
        """Of an epoch."""
        return -(-len(self.examples) // self.batch_size)

    def __call__(self, index: int) -> Batch:
        """Batch number `index` of all epochs, always the same for the same seed and examples."""
        epoch, place = divmod(index, self.num_batches)
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.examples))
        lengths = np.array([len(example.input_ids) for example in self.examples])
        window = WINDOW * self.batch_size
        sorted_ = np.concatenate(
            [
                part[np.argsort(lengths[part], kind="stable")]
                for part in np.split(order, range(window, len(order), window))
            ]
        )
        start = int(rng.permutation(self.num_batches)[place]) * self.batch_size
        chosen = sorted_[start : start + self.batch_size]
        return collate([self.examples[i] for i in chosen], self.batch_size)

    def in_order(self, index: int) -> Batch | None:
        """Batch number `index` of one pass from front to back; None behind it."""
        some = self.examples[index * self.batch_size : (index + 1) * self.batch_size]
        return collate(list(some), self.batch_size) if some else None
