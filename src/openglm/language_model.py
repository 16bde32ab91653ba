"""`LanguageModel`: what `openglm.load` returns. Fill, generate, chat, stream, score, logits.

model = openglm.load("mini")
model.fill("The cat sat on the [MASK].").text
for piece in model.stream("Once upon a time"):
    ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor

from openglm.chat import Message, as_messages, prompt_ids, read_reply
from openglm.config import ModelConfig
from openglm.engine.conventions import convention
from openglm.engine.embedding import mean_state
from openglm.engine.engine import Engine, finish, follow, memory_for, memory_of
from openglm.engine.fill import Filler
from openglm.engine.implied import check_range, given_mask, implied_mask, implied_positions
from openglm.engine.params import LARGEST_PENALTY, SamplingParams
from openglm.engine.prompt import (
    Prompt,
    blank_prompt,
    chat_prompt,
    check_text,
    continuation_prompt,
)
from openglm.engine.request import Request
from openglm.engine.rule_book import RuleBook
from openglm.engine.sampling import fresh_seed
from openglm.engine.score import check_choices, score_choices, scoring_prompt
from openglm.engine.writer import Asked, Writer, room
from openglm.errors import RequestError, TokenizerError, suggest
from openglm.model import Transformer
from openglm.nn.cache import KVCache
from openglm.results import Blank, ChatReply, ChoiceScore, Completion, Filled, Piece
from openglm.tokenizers import Tokenizer
from openglm.transcript import Result, Transcriber, kept

Messages = Sequence[Message | Mapping[str, Any]] | str
Prompted = Messages | Sequence[int]
"""What `request` takes: of "generate" also a text's token ids."""

FILL_DEFAULTS = SamplingParams()
"""Blanks are filled greedily unless asked otherwise."""
TASKS = ("generate", "fill", "chat")
CHAT_TOKENS = 2048
"""An answer's `max_tokens`, if the model has room for it."""


class LanguageModel:
    """A network with its tokenizer.

    Attributes:
        config: the architecture.
        network: the torch module.
        name: how it was asked for.
        token_ids: ids of command tokens by role, as far as the checkpoint folder says.
    """

    def __init__(
        self,
        network: Transformer,
        tokenizer: Tokenizer | None,
        name: str,
        token_ids: dict[str, int] | None = None,
        tokenizer_problem: TokenizerError | None = None,
    ) -> None:
        self.network = network
        self.config: ModelConfig = network.config
        self.name = name
        if tokenizer is not None and tokenizer.vocab_size > network.config.vocab_size:
            raise TokenizerError(
                f"the tokenizer has {tokenizer.vocab_size} ids, "
                f"{name} has only {network.config.vocab_size}",
                hint="it belongs to another model",
            )
        self._tokenizer = tokenizer
        self._tokenizer_problem = tokenizer_problem
        self.token_ids = dict(token_ids or {})
        if tokenizer is not None:
            self._take_ids(tokenizer)

    def __repr__(self) -> str:
        count = f"{self.config.num_parameters / 1e6:,.1f} M parameters"
        return f"LanguageModel({self.name!r}, {count})"

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; `TokenizerError` for a checkpoint folder without one."""
        if self._tokenizer_problem is not None:
            raise self._tokenizer_problem
        if self._tokenizer is None:
            raise TokenizerError(
                f"{self.name} has no tokenizer files, so text cannot be read or written",
                hint="put its vocabulary beside the weights, or give tokenizer=FOLDER",
            )
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether text methods work."""
        return self._tokenizer is not None

    def fill(self, text: str, **sampling: Any) -> Filled:
        """Fills every `[MASK]`, `[sMASK]` and `[gMASK]` of `text`, left to right.

        Args:
            text: text with blanks.
            **sampling: see `SamplingParams`; greedy by default.

        Raises:
            RequestError: no blank, too long a text, or an unknown or impossible option.
        """
        filler = self._filler(text, "fill", sampling)
        prompt = filler.prompt
        done = [
            Filled(_filled_text(prompt, blanks), blanks, prompt.fragments, seed)
            for blanks, seed in self._transcriber.results(filler)
        ]
        return dataclasses.replace(done[0], others=tuple(done[1:]))

    def generate(self, prompt: str, **sampling: Any) -> Completion:
        """Continues `prompt`.

        Args:
            prompt: plain text.
            **sampling: see `SamplingParams`; the official defaults of each model.
        """
        return _completion(self._transcriber.results(self._filler(prompt, "generate", sampling)))

    def generate_batch(self, prompts: Sequence[str], **sampling: Any) -> list[Completion]:
        """Continues many texts together: what `generate` gives for each, in less time.

        Args:
            prompts: plain texts.
            **sampling: as in `generate`, for each of them; a `seed` too.
        """
        if isinstance(prompts, str):
            raise RequestError(f"prompts={prompts!r} must be a list of texts", hint="use generate")
        every = [self._settle(prompt, "generate", sampling) for prompt in prompts]
        asked = [self._one_each(*settled) for settled in every]
        if not asked:
            return []
        engine = self.engine(memory_bytes=memory_for(self.network, list(chain(*asked))))
        groups = [[engine.add(*one) for one in several] for several in asked]
        finish(engine, chain(*groups))
        return [
            _completion(kept([self._result(request) for request in group], params))
            for group, (_, params) in zip(groups, every, strict=True)
        ]

    def engine(self, **settings: Any) -> Engine:
        """An engine that many requests share, with memory of its own; see `Engine`.

        Args:
            **settings: of `Engine`: memory_bytes, kv_dtype, max_batch_tokens, max_drafts,
                draft_model (a `LanguageModel`), clock.
        """
        draft = settings.pop("draft_model", None)
        if draft is not None:
            settings["draft_model"] = draft.network
        return Engine(self.network, banned_ids=self._banned_ids, **settings)

    def request(
        self, asked: Prompted, task: str = "generate", *, opening: str = "", **sampling: Any
    ) -> Asked:
        """What `Engine.add` takes: the prompt as this model reads it, and how to go on.

        Its rules remember where a text stands: each request needs some of its own.

        Args:
            asked: a text; for "generate" also its token ids; for "chat" messages, or one question.
            task: "generate", "fill" or "chat".
            opening: of "chat": how the answer begins; the model goes on from there.
            **sampling: as in the method of that name; `n` must be 1, see `requests`.
        """
        prompt, params = self._settle(asked, task, sampling, opening)
        return self._rule_book.equip(prompt, params, special=task == "chat")

    def requests(
        self,
        asked: Prompted,
        task: str = "generate",
        *,
        opening: str = "",
        fits: bool = False,
        **sampling: Any,
    ) -> list[Asked]:
        """Like `request`, one for each of the `n` (or `best_of`) completions.

        Args:
            asked: see `request`.
            task: see `request`.
            opening: see `request`.
            fits: a `max_tokens` for which there is no room is lowered, instead of being refused.
            **sampling: see `request`.
        """
        prompt, params = self._settle(asked, task, sampling, opening)
        if fits and params.max_tokens > (most := max(1, room(self.config, prompt))):
            params = dataclasses.replace(params, max_tokens=most)
        return self._one_each(prompt, params, task == "chat")

    def stream(self, prompt: str, **sampling: Any) -> Iterator[str]:
        """Like `generate`, as pieces of text; never half a character.

        A bad request raises here, not at the first piece.
        """
        filler = self._filler(prompt, "generate", sampling)
        return (piece.text for piece in self._stream(filler))

    def chat(self, messages: Messages, **sampling: Any) -> ChatReply:
        """Answers a conversation.

        Args:
            messages: dictionaries with `role` and `content`, oldest first, or one question as text;
                see `openglm.chat.Message`. They are not changed.
            **sampling: see `SamplingParams`; the official defaults of each model.

        Raises:
            RequestError: not a chat model, or a conversation that it does not know.
        """
        asked = as_messages(messages)
        results = self._transcriber.results(self._filler(asked, "chat", sampling), special=True)
        done = []
        for (blank,), seed in results:
            reply = read_reply(self.tokenizer.kind, blank.text, asked)
            done.append(
                ChatReply(
                    reply.content,
                    reply.messages,
                    reply.tool,
                    reply.arguments,
                    blank.token_ids,
                    blank.finish_reason,
                    seed,
                    blank.logprobs,
                )
            )
        return dataclasses.replace(done[0], others=tuple(done[1:]))

    def stream_chat(
        self, messages: Messages, *, engine: Engine | None = None, **sampling: Any
    ) -> Iterator[str]:
        """Like `chat`, as pieces of the text as the model writes it, without command tokens.

        Args:
            messages: see `chat`.
            engine: of this model. It answers instead, and need not read again what it has read of
                the conversation, if the model is causal; beam search makes no use of it.
            **sampling: see `chat`.
        """
        if engine is None or sampling.get("num_beams", 1) != 1:
            pieces = self._stream(self._filler(messages, "chat", sampling), special=True)
        else:
            asked = self.request(messages, "chat", **sampling)
            engine.check(asked)
            steps = follow(engine, asked)
            pieces = self._transcriber.stream(steps, asked.params, special=True)
        return (piece.text for piece in pieces)

    def stream_fill(self, text: str, **sampling: Any) -> Iterator[Piece]:
        """Like `fill`, as pieces of text with the blank they belong to."""
        return self._stream(self._filler(text, "fill", sampling))

    def score(
        self,
        context: str,
        choices: Sequence[str],
        length_penalty: float = 0.0,
        unidirectional: bool = False,
    ) -> list[ChoiceScore]:
        """Scores answers by the sum of log p of their tokens (GLM: and of `eop` behind them).

        Args:
            context: text with exactly one blank; for a causal model, what the answers continue.
            choices: candidate answers.
            length_penalty: the sum is divided by (number of tokens) ** length_penalty.
            unidirectional: score the choices as left-to-right continuations of a context without
                blanks instead; no end token counts.

        Raises:
            RequestError: no choices, an empty or too long one, or a wrong number of blanks.
        """
        if isinstance(choices, str) or not choices:
            raise RequestError(f"choices={choices!r} must be a list of one text or more")
        for choice in choices:
            check_text(choice)
        is_number = isinstance(length_penalty, int | float)
        if not is_number or not abs(length_penalty) <= LARGEST_PENALTY:  # NaN neither
            raise RequestError(
                f"length_penalty={length_penalty!r} must be a number between -{LARGEST_PENALTY} "
                f"and {LARGEST_PENALTY}"
            )
        prompt = scoring_prompt(self.tokenizer, self.config, context, unidirectional)
        ids = [self.tokenizer.encode(choice) for choice in choices]
        check_choices(self.config, prompt, choices, ids)
        scores = score_choices(self.network, prompt, ids, length_penalty)
        return [
            ChoiceScore(choice, s.score, s.log_probabilities)
            for choice, s in zip(choices, scores, strict=True)
        ]

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Vectors of texts, (N, C) float32 of length 1: alike texts have like directions.

        Each is the mean of the last hidden states of its text's tokens, whatever stands beside it.
        No model of the family was trained for this, see docs/serving.md.

        Raises:
            RequestError: an empty or too long text, or something else.
        """
        if isinstance(texts, str):
            raise RequestError(f"texts={texts!r} must be a list of texts")
        readings = [mean_state(self.tokenizer, self.config, text) for text in texts]
        if not readings:
            return torch.zeros(0, self.config.hidden_size)
        memory = memory_of(self.network, [len(reading.track) for reading in readings])
        engine = self.engine(memory_bytes=memory)
        finish(engine, [engine.add_reading(reading) for reading in readings])
        return torch.stack([reading.vector for reading in readings])

    @torch.no_grad()
    def logits(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        block_position_ids: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits of every token, (B, T, V) float32.

        What is None follows from the ids, those in the cache included, as in the official code;
        see `openglm.engine.implied`.

        Args:
            input_ids: (B, T) int64.
            position_ids: (B, T) int64.
            block_position_ids: (B, T) int64.
            mask: (B, T, S) bool, True = may attend; or (B,) int, the context length: columns
                below it are visible to all, the others causally.
            cache: from `new_cache`; the tokens are appended to it.

        Raises:
            RequestError: an id, position or shape out of range, or a full cache.
        """
        ids = torch.as_tensor(input_ids)
        if ids.dim() != 2:
            raise RequestError(f"input_ids has shape {tuple(ids.shape)}; it must be (B, T)")
        if cache is None and self.network.prefix is not None:
            cache = self.new_cache(*ids.shape)
        past = 0 if cache is None else cache.length
        every = ids.cpu()
        if cache is not None:
            cache.reserve(*ids.shape)
            cache.input_ids[:, past : past + ids.shape[1]] = ids
            every = cache.input_ids[:, : past + ids.shape[1]]
        check_range("input_ids", ids, ids.shape, self.config.vocab_size)
        if block_position_ids is None and self.config.position != "rotary_2d":
            block_position_ids = torch.zeros_like(ids)
        positions, blocks = position_ids, block_position_ids
        if positions is None or blocks is None:
            implied = implied_positions(self.config, self.token_ids, every)
            positions = implied[0][:, past:] if positions is None else positions
            blocks = implied[1][:, past:] if blocks is None else blocks
        positions, blocks = torch.as_tensor(positions), torch.as_tensor(blocks)
        check_range("position_ids", positions, ids.shape, self.config.position_rows)
        check_range("block_position_ids", blocks, ids.shape, self.config.position_rows)
        device = self.network.device
        shape = (*ids.shape, past + ids.shape[1])
        spec = (
            implied_mask(self.config, self.token_ids, every)
            if mask is None
            else given_mask(mask, shape)
        ).to(device)
        hidden = self.network(ids.to(device), positions.to(device), blocks.to(device), spec, cache)
        return self.network.logits(hidden).float()

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """An empty cache for `logits`, of `max_length` tokens per row."""
        return self.network.new_cache(batch_size, max_length)

    def _take_ids(self, tokenizer: Tokenizer) -> None:
        """Ids by role from the tokenizer, which must agree with the checkpoint's on masks."""
        known = {token.role: token.id for token in tokenizer.special.tokens}
        for role in ("mask", "gmask", "sop"):
            if role in known and self.token_ids.get(role, known[role]) != known[role]:
                raise TokenizerError(
                    f"the tokenizer has {known[role]} for {role}, {self.name} has "
                    f"{self.token_ids[role]}",
                    hint="weights and tokenizer are of different revisions; the first ChatGLM-6B "
                    "(150,528 rows) goes with the older ice_text.model",
                )
        self.token_ids |= known

    @property
    def _generate_defaults(self) -> SamplingParams:
        return convention(self.tokenizer).sampling

    def _lay_out(
        self, asked: Prompted, task: str, opening: str = ""
    ) -> tuple[Prompt, SamplingParams]:
        """The prompt of a task, and its default settings."""
        if opening and task != "chat":
            raise RequestError(f"opening={opening!r} is for the task chat, not {task}")
        if task == "fill":
            return blank_prompt(self.tokenizer, check_text(asked)), FILL_DEFAULTS
        defaults = self._generate_defaults
        if task == "generate":
            return continuation_prompt(self.tokenizer, asked), defaults
        if task == "chat":
            ids = prompt_ids(self.tokenizer, as_messages(cast(Messages, asked)))
            prompt = chat_prompt(self.tokenizer, ids, opening)
            return prompt, dataclasses.replace(defaults, max_tokens=CHAT_TOKENS)
        raise RequestError(f"unknown task {task!r}", hint=suggest(task, TASKS))

    def _settle(
        self, asked: Prompted, task: str, sampling: dict[str, Any], opening: str = ""
    ) -> tuple[Prompt, SamplingParams]:
        """The prompt of a task and its settings, with a `max_tokens` that fits."""
        prompt, defaults = self._lay_out(asked, task, opening)
        if "max_tokens" not in sampling:
            most = room(self.config, prompt)
            sampling = {"max_tokens": max(1, min(defaults.max_tokens, most))} | sampling
        return prompt, SamplingParams.make(_beam_defaults(defaults, sampling), sampling)

    def _one_each(
        self, prompt: Prompt, params: SamplingParams, special: bool = False
    ) -> list[Asked]:
        """A request for each completion of a prompt: what the engine writes has one seed."""
        seed = fresh_seed() if params.seed is None else params.seed
        count = params.num_completions
        every = [params.nth(seed, index) for index in range(count)]
        return [self._rule_book.equip(prompt, one, special) for one in every]

    def _filler(self, asked: Messages, task: str, sampling: dict[str, Any]) -> Filler:
        prompt, params, rules, ends = self.request(asked, task, **sampling)
        return Filler(self.network, prompt, params, self._banned_ids, rules, ends)

    def _result(self, request: Request) -> Result:
        """What a finished request has written."""
        writer = request.writer
        assert isinstance(writer, Writer)
        return self._transcriber.blanks(request.steps, writer.params), writer.sampler.seed

    @cached_property
    def _transcriber(self) -> Transcriber:
        return Transcriber(self.tokenizer)

    @cached_property
    def _rule_book(self) -> RuleBook:
        return RuleBook(self.tokenizer, self.config.vocab_size)

    @cached_property
    def _banned_ids(self) -> frozenset[int]:
        """Ids that are no text: command tokens and padding rows of the vocabulary."""
        spoken = self.tokenizer.text_ids | self.tokenizer.special.spoken_ids
        return frozenset(range(self.config.vocab_size)) - spoken

    def _stream(self, filler: Filler, special: bool = False) -> Iterator[Piece]:
        return self._transcriber.stream(filler.run(), filler.params, special)


def _completion(results: list[Result]) -> Completion:
    """The first of the results of one prompt, with the others."""
    done = [
        Completion(
            blank.text,
            blank.token_ids,
            blank.log_probability,
            blank.finish_reason,
            seed,
            blank.logprobs,
        )
        for (blank,), seed in results
    ]
    return dataclasses.replace(done[0], others=tuple(done[1:]))


def _filled_text(prompt: Prompt, blanks: list[Blank]) -> str:
    """The text around the blanks, and what was filled in."""
    texts = [*(blank.text for blank in blanks), ""]
    return "".join(a + b for a, b in zip(prompt.fragments, texts, strict=True))


def _beam_defaults(defaults: SamplingParams, sampling: dict[str, Any]) -> SamplingParams:
    """Beam search is deterministic: asking for beams alone switches sampling off."""
    return FILL_DEFAULTS if sampling.get("num_beams", 1) != 1 else defaults
