"""The old tokenizer classes for transformers 5: a shell around `openglm.tokenizers`.

One official class name stands for the tokenizers of ChatGLM-6B, ChatGLM2, ChatGLM3 and CodeGeeX2,
which their files tell apart; so it is here. A text never becomes a command token, however it is
spelled; with `split_special_tokens=False` it does.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizer

from openglm.chat import as_messages, prompt_ids
from openglm.errors import RequestError, TokenizerError
from openglm.hf.padding import prefix_mask, prefix_positions
from openglm.tokenizers import Tokenizer, find_tokenizer, open_tokenizer
from openglm.tokenizers.bpe import byte_characters

KEPT = (
    "name_or_path",
    "padding_side",
    "truncation_side",
    "model_max_length",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
)
"""What a `tokenizer_config.json` may set; its other entries belong to the old code."""
PREFIX_KINDS = ("chatglm", "chatglm-icetk")
"""Kinds whose models see the context whole: `[gMASK] sop` stands behind it."""
PREFIX_ROLES = {"bos": "sop", "eos": "eop", "pad": "pad", "mask": "mask"}
CAUSAL_ROLES = {"bos": "bos", "eos": "eos", "pad": "pad"}
"""Special token of transformers -> role of the command token."""
UNKNOWN = "<unk>"
"""Piece 0 of every sentencepiece file."""


class OfficialTokenizer(PreTrainedTokenizer):  # type: ignore[misc]
    """A tokenizer of `openglm.tokenizers` with the methods of the official one.

    Args:
        vocab_file: `tokenizer.model`; its folder may tell more.
        ice_file: `ice_text.model` instead.
        json_file: `tokenizer.json` instead.
        kind: of the tokenizer; None = as the folder says.
        encode_special_tokens: role tokens written in a text become ids (ChatGLM3).
        **values: of `tokenizer_config.json`; see `KEPT`.

    Attributes:
        core: the tokenizer.
    """

    padding_side = "left"
    model_input_names = ("input_ids", "attention_mask", "position_ids")

    def __init__(
        self,
        vocab_file: str | None = None,
        ice_file: str | None = None,
        json_file: str | None = None,
        kind: str | None = None,
        encode_special_tokens: bool = False,
        **values: Any,
    ) -> None:
        self.core = _open([ice_file, vocab_file, json_file], kind)
        self.is_prefix = self.core.kind in PREFIX_KINDS
        self.encode_special_tokens = encode_special_tokens
        special = self.core.special
        wanted = PREFIX_ROLES if self.is_prefix else CAUSAL_ROLES
        tokens: dict[str, Any] = {
            f"{name}_token": special.get(role).text
            for name, role in wanted.items()
            if special.has(role)
        }
        if hasattr(self.core, "model"):
            tokens["unk_token"] = UNKNOWN
        if special.has("gmask"):
            specific = {"gmask_token": "[gMASK]", "end_token": special.get("eos").text}
            tokens["model_specific_special_tokens"] = specific
        kept = {"split_special_tokens": True} | {k: values[k] for k in KEPT if k in values}
        super().__init__(**kept, **tokens)
        self.init_kwargs |= {
            "kind": self.core.kind,
            "encode_special_tokens": encode_special_tokens,
        }

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self.core.vocab_size

    def __len__(self) -> int:
        return self.core.vocab_size

    @cached_property
    def spellings(self) -> list[str]:
        """(V,) one name per id: the piece as the file has it, or the command token's text."""
        return _spellings(self.core)

    @cached_property
    def _ids(self) -> dict[str, int]:
        """Name -> id; a command token goes before a piece that is spelled like it."""
        pieces = {text: i for i, text in enumerate(self.spellings)}
        return pieces | {token.text: token.id for token in self.core.special.tokens}

    def get_vocab(self) -> dict[str, int]:
        """Name of each token -> id."""
        return dict(self._ids)

    def get_command(self, token: str) -> int:
        """Id of a command token by its text, or of `<bos>`, `<eos>`, `<pad>`.

        Raises:
            TokenizerError: there is none.
        """
        named = {"<bos>": self.bos_token_id, "<eos>": self.eos_token_id, "<pad>": self.pad_token_id}
        texts = {command.text: command.id for command in self.core.special.tokens}
        found: int | None = (named | texts).get(token)
        if found is None:
            raise TokenizerError(f"{token!r} is no command token", hint=", ".join(texts))
        return found

    def _add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        strange = [str(token) for token in new_tokens or [] if str(token) not in self._ids]
        if strange:
            raise TokenizerError(
                f"{', '.join(strange)}: tokens cannot be added to this vocabulary",
                hint="the embedding has rows for the official ones only",
            )
        return int(super()._add_tokens(new_tokens, special_tokens))

    def ids_of(self, text: str, split_special_tokens: bool | None = None) -> list[int]:
        """Ids of a text alone; command tokens in it count as the tokenizer was told."""
        special = self.core.special
        plain = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        allowed = {token.text for token in special.tokens if not plain}
        if self.encode_special_tokens:
            allowed |= {token.text for token in special.tokens if token.text.startswith("<|")}
        return self.core.encode_with(text, allowed)

    def of_ids(self, ids: Sequence[int]) -> BatchEncoding:
        """A batch of one, with mask and positions, ready for the model."""
        return self([list(ids)], add_special_tokens=False, return_tensors="pt")

    def tokenize(self, text: str, **options: Any) -> list[str]:
        """Names of the tokens of a text."""
        return [self.spellings[i] for i in self.ids_of(text, options.get("split_special_tokens"))]

    def _encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        """Takes texts, pairs of texts, or ids, one or many; see transformers."""
        plain = options.pop("split_special_tokens", None)

        def ids(given: Any) -> Any:
            if isinstance(given, str):
                return self.ids_of(given, plain) or given  # transformers takes no empty list
            if isinstance(given, list | tuple):
                return type(given)(ids(part) for part in given)
            return given

        return super()._encode_plus(ids(text), ids(text_pair), **options)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`[gMASK] sop` behind the text (ChatGLM-6B) or in front, and an end behind a pair."""
        special = self.core.special
        start = [special.gmask_id, special.sop_id]
        ids = [*token_ids_0, *start] if self.is_prefix else [*start, *token_ids_0]
        return ids if token_ids_1 is None else [*ids, *token_ids_1, self.eos_token_id]

    def _convert_token_to_id(self, token: str) -> int:
        if token not in self._ids:
            raise TokenizerError(f"there is no token {token!r}")
        return self._ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        return self.spellings[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens by name."""
        return self._decode([self._convert_token_to_id(token) for token in tokens])

    def _decode(self, token_ids: Any, skip_special_tokens: bool = False, **options: Any) -> str:
        """The text of ids. Of ChatGLM3 and GLM-4 command tokens are written, unless skipped.

        Ids beyond the vocabulary, which the padding rows of the embedding have, give nothing.
        """
        ids = [token_ids] if isinstance(token_ids, int) else [int(i) for i in token_ids]
        known = [i for i in ids if 0 <= i < self.core.vocab_size]
        writes = self.core.special.has("user") and not skip_special_tokens
        return self.core.decode(known, special=writes)

    def _pad(self, encoded_inputs: Any, *rest: Any, **options: Any) -> dict[str, Any]:
        """Pads ids, and adds what the model wants: positions, and ChatGLM-6B's (1, T, T) mask."""
        wants_mask = options.get("return_attention_mask")
        wants_mask = True if wants_mask is None else wants_mask
        for name in ("attention_mask", "position_ids"):
            encoded_inputs.pop(name, None)  # made anew from the ids
        padded = super()._pad(encoded_inputs, *rest, **options | {"return_attention_mask": True})
        real = torch.tensor(padded.pop("attention_mask"), dtype=torch.bool)  # (T,)
        ids = padded["input_ids"]
        if self.is_prefix:
            places = (self.mask_token_id, self.gmask_token_id)
            mask: Any = prefix_mask(ids, real, self.bos_token_id).numpy()
            positions: Any = prefix_positions(ids, real, self.bos_token_id, places).numpy()
        else:
            mask = real.long().tolist()
            positions = ((real.cumsum(0) - 1) * real).tolist()
        if wants_mask:
            padded |= {"attention_mask": mask, "position_ids": positions}
        return dict(padded)

    def build_prompt(self, query: str, history: list[tuple[str, str]] | None = None) -> str:
        """The text that asks ChatGLM2 for an answer."""
        turns = [turn for pair in history or [] for turn in pair]
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
        asked = as_messages([*messages, {"role": "user", "content": query}])
        return self.core.decode(prompt_ids(self.core, asked))

    def build_chat_input(
        self, query: str, history: list[dict[str, Any]] | None = None, role: str = "user"
    ) -> BatchEncoding:
        """The inputs that ask ChatGLM3 for an answer, a batch of one."""
        asked = as_messages([*(history or []), {"role": role, "content": query}])
        return self.of_ids(prompt_ids(self.core, asked))

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Any = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        padding: Any = False,
        truncation: Any = False,
        max_length: int | None = None,
        return_tensors: Any = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        **options: Any,
    ) -> Any:
        """Conversations as the official code writes them, by `openglm.chat`; see transformers.

        Without `add_generation_prompt` a conversation may end with an answer, to train on.

        Raises:
            RequestError: an argument that the official formats have no place for.
        """
        asked_for = {
            "tools": tools,
            "documents": documents,
            "chat_template": chat_template,
            "continue_final_message": continue_final_message,
            "return_assistant_tokens_mask": return_assistant_tokens_mask,
            **options,
        }
        for name, value in asked_for.items():
            if value:
                raise RequestError(
                    f"apply_chat_template({name}=...) is not supported by this tokenizer",
                    hint="tools stand in the system message: {'role': 'system', 'tools': [...]}",
                )
        is_batch = bool(conversation) and isinstance(conversation[0], list | tuple)
        rows = [
            chat_ids(self.core, turns, add_generation_prompt)
            for turns in (conversation if is_batch else [conversation])
        ]
        if not tokenize:
            texts = [self.core.decode(row, special=True) for row in rows]
            return texts if is_batch else texts[0]
        encoded = self(
            rows if is_batch else rows[0],
            add_special_tokens=False,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
        )
        return encoded if return_dict else encoded["input_ids"]

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Copies the original vocabulary files."""
        folder, copied = Path(save_directory), []
        for name, source in self.core.files().items():
            target = folder / (f"{filename_prefix}-{name}" if filename_prefix else name)
            if not target.exists() or not target.samefile(source):
                shutil.copyfile(source, target)
            copied.append(str(target))
        return tuple(copied)


class ChatGLMTokenizer(OfficialTokenizer):
    """ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B and CodeGeeX2-6B."""

    vocab_files_names = {"vocab_file": "tokenizer.model", "ice_file": "ice_text.model"}  # noqa: RUF012


class ChatGLM4Tokenizer(OfficialTokenizer):
    """GLM-4-9B in the layout of its own code."""

    vocab_files_names = {"vocab_file": "tokenizer.model", "json_file": "tokenizer.json"}  # noqa: RUF012


def chat_ids(core: Tokenizer, conversation: Any, asks: bool) -> list[int]:
    """Ids of a conversation, up to where the answer begins if it `asks` for one."""
    messages = as_messages(conversation, asks=asks)
    if core.special.has("user"):
        ids = prompt_ids(core, messages)
        return ids if asks else ids[:-1]  # without the role of the next answer
    if messages[-1].role != "assistant":
        return prompt_ids(core, messages)
    end = core.special.eop_id if core.kind in PREFIX_KINDS else core.special.eos_id
    return [*prompt_ids(core, messages[:-1]), *core.encode(messages[-1].content), end]


def _open(files: Sequence[str | None], kind: str | None) -> Tokenizer:
    paths = [Path(file) for file in files if file is not None]
    if not paths:
        raise TokenizerError(
            "no vocabulary file was given", hint="load the tokenizer with from_pretrained(FOLDER)"
        )
    found = find_tokenizer(paths[0]) if kind is None else open_tokenizer(kind, paths[0])
    if found is None:
        raise TokenizerError(f"{paths[0]} is no vocabulary known here")
    return found


def _spellings(core: Tokenizer) -> list[str]:
    model, offset = getattr(core, "model", None), getattr(core, "offset", 0)
    if model is not None:
        pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
        names = [f"<image_{i}>" for i in range(offset)] + pieces
    else:
        characters = byte_characters()
        names = [
            "".join(characters[byte] for byte in core.decode_bytes([i]))
            for i in range(core.num_text_tokens)
        ]
    commands = core.special.texts
    return [commands.get(i) or names[i] for i in range(core.vocab_size)]
