"""`chat` and `stream_chat` as the official classes have them, for each generation of models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from openglm.chat import Message, as_messages, prompt_ids, read_reply
from openglm.engine.prompt import chat_prompt
from openglm.errors import RequestError
from openglm.tokenizers import Tokenizer
from openglm.tokenizers.base import REPLACEMENT

SAFE_TOKEN, SAFE_SCORE = 5, 5e4
"""What the official code makes the model say when its numbers have become useless: token 5."""
PAIRS = ("chatglm", "chatglm-icetk", "chatglm2")
"""Kinds of tokenizers whose models keep a history of (question, answer)."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "chatglm": {"max_length": 2048, "top_p": 0.7, "temperature": 0.95},
    "chatglm-icetk": {"max_length": 2048, "top_p": 0.7, "temperature": 0.95},
}
LATER_DEFAULTS: dict[str, Any] = {"max_length": 8192, "top_p": 0.8, "temperature": 0.8}
History = list[Any]


class InvalidScores(LogitsProcessor):  # type: ignore[misc]
    """Replaces scores with NaN or infinity, those of the whole batch, by one safe token."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, T) ids and (B, V) scores -> scores."""
        if bool(torch.isfinite(scores).all()):
            return scores
        safe = torch.zeros_like(scores)
        safe[:, SAFE_TOKEN] = SAFE_SCORE
        return safe


class ChatMixin:
    """Chatting and streaming on top of `generate`."""

    device: torch.device
    generate: Any
    yields_last_token: bool
    """Whether `stream_generate` yields once more behind the last token."""

    def chat(
        self,
        tokenizer: Any,
        query: str,
        history: History | None = None,
        role: str = "user",
        logits_processor: LogitsProcessorList | None = None,
        **options: Any,
    ) -> tuple[Any, History]:
        """Answers `query`.

        Args:
            tokenizer: of `AutoTokenizer`; it tells the generation.
            query: the user's text, or what a tool returned with `role="observation"`.
            history: what an earlier call gave back; it is not changed.
            role: of the query; ChatGLM3 and GLM-4 know others than "user".
            logits_processor: more processors.
            **options: of `generate`; the official defaults are sampling with `top_p` 0.7 and
                `temperature` 0.95, `max_length` 2048 (ChatGLM-6B), or 0.8, 0.8 and 8192.

        Returns:
            The answer and the new history: pairs (question, answer) of ChatGLM-6B and ChatGLM2,
            dictionaries with `role` and `content` of ChatGLM3 and GLM-4. Where one of these calls a
            tool, the answer is a dictionary with `name`, and `parameters` or `content`.
        """
        asked = conversation(tokenizer.core, query, history, role)
        inputs = tokenizer.of_ids(prompt_ids(tokenizer.core, asked)).to(self.device)
        options = chat_options(tokenizer.core, logits_processor, options)
        row = self.generate(**inputs, **options)[0].tolist()[inputs["input_ids"].shape[1] :]
        text = tokenizer.decode(written(row, options))
        return answer(tokenizer.core, text, query, history, role)

    def stream_chat(
        self,
        tokenizer: Any,
        query: str,
        history: History | None = None,
        role: str = "user",
        logits_processor: LogitsProcessorList | None = None,
        past_key_values: Any = None,
        return_past_key_values: bool = False,
        **options: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Like `chat`; yields the answer so far and the history with it, token by token.

        Args:
            tokenizer: see `chat`.
            query: see `chat`.
            history: see `chat`.
            role: see `chat`.
            logits_processor: see `chat`.
            past_key_values: what an earlier call yielded; then only the new turn is read.
            return_past_key_values: yield the cache as a third value.
            **options: see `chat`.
        """
        asked = conversation(tokenizer.core, query, history, role)
        ids = prompt_ids(tokenizer.core, asked)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if past:
            ids = next_turn(tokenizer.core, asked)
        inputs = tokenizer.of_ids(ids).to(self.device)
        if past:
            ones = torch.ones(1, past + len(ids), dtype=torch.int64, device=self.device)
            counted = torch.arange(past, past + len(ids), device=self.device)[None]
            inputs = {
                "input_ids": inputs["input_ids"],
                "attention_mask": ones,
                "position_ids": counted,
                "past_key_values": past_key_values,
            }
        options = chat_options(tokenizer.core, logits_processor, options)
        for rows, cache in self._stream(**inputs, **options):
            text = tokenizer.decode(written(rows[0].tolist()[len(ids) :], options))
            if not text or text.endswith(REPLACEMENT):
                continue  # half a character
            reply = answer(tokenizer.core, text, query, history, role)
            yield (*reply, cache) if return_past_key_values else reply

    def stream_generate(self, input_ids: Tensor, **options: Any) -> Iterator[Any]:
        """`generate` step by step.

        Args:
            input_ids: (B, T) int64.
            **options: of `generate`, and `return_past_key_values`.

        Yields:
            (B, T + n) ids after each token (ChatGLM-6B: but the last one, as officially); with
            `return_past_key_values` a pair of these and the cache.
        """
        with_cache = options.pop("return_past_key_values", False)
        for ids, cache in self._stream(input_ids=input_ids, **options):
            yield (ids, cache) if with_cache else ids

    def _stream(self, **options: Any) -> Iterator[tuple[Tensor, Any]]:
        return self.generate(**options, custom_generate=steps)  # type: ignore[no-any-return]


def steps(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: Any,
    generation_config: Any,
    **inputs: Any,
) -> Iterator[tuple[Tensor, Any]]:
    """A `custom_generate` of transformers: ids (B, T + n) and the cache after each token."""
    count: int | None = None  # the whole prompt; a cache that came along holds what is before it
    while True:
        with torch.no_grad():
            fed = model.prepare_inputs_for_generation(
                input_ids, next_sequence_length=count, **inputs
            )
            outputs = model(**fed, return_dict=True)
            scores = logits_processor(input_ids, outputs.logits[:, -1].float())
            if generation_config.do_sample:
                chosen = torch.multinomial(scores.softmax(dim=-1), 1)  # (B, 1)
            else:
                chosen = scores.argmax(dim=-1, keepdim=True)
            input_ids = torch.cat([input_ids, chosen], dim=1)
            inputs = model._update_model_kwargs_for_generation(outputs, inputs)
        is_last = bool(stopping_criteria(input_ids, scores).all())
        if not is_last or model.yields_last_token:
            yield input_ids, outputs.past_key_values
        if is_last:
            return
        count = 1 if inputs.get("use_cache") else None


def chat_options(
    core: Tokenizer, processors: LogitsProcessorList | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Options of `generate` for one answer, official defaults filled in."""
    ends = chat_prompt(core, [core.special.gmask_id, core.special.sop_id]).end_ids
    official = {"do_sample": True, "num_beams": 1, "eos_token_id": sorted(ends)}
    defaults = official | DEFAULTS.get(core.kind, LATER_DEFAULTS)
    return (
        defaults
        | options
        | {"logits_processor": LogitsProcessorList([*(processors or []), InvalidScores()])}
    )


def written(row: list[int], options: dict[str, Any]) -> list[int]:
    """The generated tokens without the one that ended the answer."""
    ends = options["eos_token_id"]
    ended = bool(row) and row[-1] in (ends if isinstance(ends, list) else [ends])
    return row[:-1] if ended else row


def conversation(core: Tokenizer, query: str, history: History | None, role: str) -> list[Message]:
    """History and query as messages.

    Raises:
        RequestError: a history of another generation, or a role that this one does not know.
    """
    if not isinstance(role, str):
        raise RequestError(f"role={role!r} is no text", hint="name options: max_length=...")
    turns: list[Any] = []
    for number, turn in enumerate(history or []):
        is_pair = isinstance(turn, list | tuple) and len(turn) == 2
        if is_pair != (core.kind in PAIRS):
            kind = "(question, answer)" if core.kind in PAIRS else "a dictionary with role, content"
            raise RequestError(f"turn {number} of the history is {turn!r}, not {kind}")
        if is_pair:
            turns += [Message("user", str(turn[0])), Message("assistant", str(turn[1]))]
        else:
            turns.append(turn)
    return as_messages([*turns, {"role": role, "content": query}])


def next_turn(core: Tokenizer, asked: Sequence[Message]) -> list[int]:
    """Ids of the last question, where all before it is in the cache.

    Raises:
        RequestError: ChatGLM-6B, which reads its whole context at once.
    """
    if core.kind == "chatglm2":
        number = sum(message.role == "user" for message in asked)
        text = f"\n\n[Round {number}]\n\n问：{asked[-1].content}\n\n答："
        return core.encode(text)[1:]  # without the space that encoding puts in front
    if core.kind in PAIRS:
        raise RequestError(
            "this model reads its whole context at once and cannot go on from a cache",
            hint="leave out past_key_values; give the history",
        )
    return prompt_ids(core, asked[-1:])


def answer(
    core: Tokenizer, text: str, query: str, history: History | None, role: str
) -> tuple[Any, History]:
    """What `chat` gives back for the text that the model wrote."""
    asked = conversation(core, query, history, role)
    reply = read_reply(core.kind, text, asked)
    past = list(history or [])
    if core.kind in PAIRS:
        return reply.content, [*past, (query, reply.content)]
    past.append({"role": role, "content": query})
    past += [{"role": m.role, "metadata": m.metadata, "content": m.content} for m in reply.messages]
    if reply.tool is None:
        return reply.content, past
    if asked[0].role == "system" and asked[0].tools is not None:
        return {"name": reply.tool, "parameters": reply.arguments}, past
    return {"name": reply.tool, "content": reply.content}, past
