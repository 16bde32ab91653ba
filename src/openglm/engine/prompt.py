"""Text -> what is fed to a network before it writes, as the official code of each model does it.

Three styles. GLM: `[CLS]` text `eos`, then every blank behind it. ChatGLM-6B and GLM-130B: the
context sees itself whole, then `sop`, one blank per pass. All later models: left to right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from openglm.config import ModelConfig
from openglm.engine import beam_rules
from openglm.engine.beam_rules import BeamRule
from openglm.engine.conventions import Style, convention
from openglm.errors import ContextOverflow, RequestError
from openglm.log import logger
from openglm.registry import trained_on
from openglm.tokenizers import SpecialTokens, Tokenizer

CANONICAL_MASK = "[MASK]"
"""How users write a short blank for every tokenizer (RoBERTa's own spelling is `<mask>`)."""
OFFICIAL_MASKS = ("[MASK]", "[sMASK]", "[gMASK]")
TURN_ENDS = ("user", "observation")
"""Roles whose token ends an answer, besides `eos`: the model would speak for somebody else."""
SHORTEST_TRAINED = 2048
"""No model whose positions go further was trained on shorter texts; asking reads all presets."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A context ready to be decoded.

    Args:
        context_ids: what is read at once.
        mask_positions: indices of the blanks in it, left to right; for a causal model the last
            index, whatever is there.
        fragments: the text around the blanks, one more than there are blanks.
        first_id: fed first for each blank: `sop`, or a causal model's last prompt token.
        end_ids: tokens that end a blank.
        style: see `Convention`.
        long_id: the token of a long blank, filled after the short ones in style "refeed".
        beams: how beam search ranks; None where it is not there.
    """

    context_ids: list[int]
    mask_positions: list[int]
    fragments: list[str]
    first_id: int
    end_ids: frozenset[int]
    style: Style = "grow"
    long_id: int | None = None
    beams: BeamRule | None = beam_rules.GLM


def check_text(text: object) -> str:
    """A text itself; `RequestError` for anything else: a list of texts is a loop of calls."""
    if not isinstance(text, str):
        raise RequestError(f"{text!r} is not a text")
    return text


def check_length(config: ModelConfig, num_tokens: int) -> None:
    """Raises `RequestError` for a context of more tokens than the model has positions.

    Warns of one that is longer than the texts that the model was trained on.
    """
    limit = config.max_position_embeddings
    if num_tokens > limit:
        raise ContextOverflow(
            f"the text has {num_tokens} tokens; this model reads at most {limit}",
            hint="shorten it",
        )
    if num_tokens > SHORTEST_TRAINED and (trained := trained_on(config)) is not None:
        title, longest = trained
        if num_tokens > longest:
            _warn_of_length(title, longest, limit)


@cache
def _warn_of_length(title: str, longest: int, limit: int) -> None:
    """Says it once: a conversation has each of its tokens in all that follow."""
    logger.warning(
        "the text is longer than those that %s was trained on, %d tokens: it reads up to %d, but "
        "answers may be worse",
        *(title, longest, limit),
    )


def blank_prompt(tokenizer: Tokenizer, text: str) -> Prompt:
    """The prompt for a text in which `[MASK]`, `[sMASK]` and `[gMASK]` stand for blanks.

    Raises:
        RequestError: no blank in it, or one that this model was not trained with.
    """
    check_text(text)
    special, how = tokenizer.special, convention(tokenizer)
    if how.style == "causal":
        raise RequestError("this model has no blanks to fill", hint="use generate or chat")
    masks = special.mask_tokens
    spelled = text.replace(CANONICAL_MASK, special.get("mask").text)
    known = {mask.text for mask in masks}
    for written in OFFICIAL_MASKS[1:]:
        if written in text and written not in known:
            raise RequestError(
                f"this model was not trained with {written}",
                hint=f"use {', '.join(sorted(known))}",
            )
    pattern = "|".join(re.escape(mask.text) for mask in masks)
    fragments = re.split(pattern, spelled)
    if len(fragments) == 1:
        raise RequestError(
            "the text has no blank", hint=f"write {' or '.join(sorted(known))} where one goes"
        )
    found = [match.group() for match in re.finditer(pattern, spelled)]
    strips = {mask.text for mask in masks if mask.lstrip}
    fragments = [
        fragment.rstrip(tokenizer.stripped)
        if index < len(found) and found[index] in strips
        else fragment
        for index, fragment in enumerate(fragments)
    ]
    ids = tokenizer.encode_with(spelled, known)
    if how.style == "refeed":
        if "eos" in how.ends and fragments[-1]:  # GLM-130B marks the end of a text, ChatGLM not
            ids.append(special.eos_id)
        return _refeed(ids, tokenizer, fragments)
    ids = [*how.ids_before(special), *ids]
    if ids[-1] != special.gmask_id or not special.has("gmask"):
        ids.append(special.eos_id)
    return Prompt(ids, _places(ids, special), fragments, special.sop_id, how.end_ids(special))


def ids_of(tokenizer: Tokenizer, asked: object) -> tuple[list[int], str]:
    """Token ids and text of a prompt that is given as either; blanks in a text stay text.

    Raises:
        RequestError: it is neither, or has ids that are no tokens of a prompt.
    """
    ids = list(asked) if isinstance(asked, list | tuple) else []
    if not ids or not all(type(token) is int for token in ids):
        text = check_text(asked)
        return tokenizer.encode(text), text
    size = tokenizer.vocab_size
    blanks = {token.id for token in tokenizer.special.mask_tokens}
    for token in ids:
        if not 0 <= token < size:
            raise RequestError(
                f"{token} is no token id of this model, which has 0 to {size - 1}",
                hint="ids of another tokenizer are other words; send the text itself",
            )
        if token in blanks and convention(tokenizer).style != "causal":
            raise RequestError(
                f"the token ids have a blank ({token})",
                hint="write a text with blanks, and fill it",
            )
    return ids, tokenizer.decode(ids, special=True)


def ids_in_front(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """The command tokens that belong in front of a text's ids, unless they are there already."""
    before = convention(tokenizer).ids_before(tokenizer.special)
    return [] if list(ids[: len(before)]) == before else before


def continuation_prompt(tokenizer: Tokenizer, asked: object) -> Prompt:
    """The prompt that continues a text, or its token ids; blanks in a text stay text."""
    special, how = tokenizer.special, convention(tokenizer)
    ids, text = ids_of(tokenizer, asked)
    ids = [*ids_in_front(tokenizer, ids), *ids]
    if how.style == "causal":
        return causal_prompt(ids, how.end_ids(special), text, how.beams)
    ids.append(special.gmask_id)
    if how.style == "refeed":
        return _refeed(ids, tokenizer, [text, ""])
    positions = [len(ids) - 1]
    if not special.has("gmask"):  # trained with [MASK] ... eos only
        ids.append(special.eos_id)
    return Prompt(ids, positions, [text, ""], special.sop_id, how.end_ids(special))


def chat_prompt(tokenizer: Tokenizer, ids: list[int], opening: str = "") -> Prompt:
    """The prompt of a conversation that a chat template wrote as `ids`.

    Args:
        tokenizer: of the model.
        ids: up to where the answer begins.
        opening: text that it begins with.
    """
    special, how = tokenizer.special, convention(tokenizer)
    if opening and how.style != "causal":
        raise RequestError(
            f"opening={opening!r}: this model begins its answers itself",
            hint="models from ChatGLM2 on can go on from what an answer begins with",
        )
    ids = [*ids, *tokenizer.encode(opening)] if opening else ids
    if how.style != "causal":
        return _refeed(ids[:-1], tokenizer, ["", ""])  # the template ends in sop
    ends = {special.get(role).id for role in TURN_ENDS if special.has(role)}
    return causal_prompt(ids, how.end_ids(special) | ends, beams=how.beams)


def causal_prompt(
    ids: list[int],
    end_ids: frozenset[int],
    text: str = "",
    beams: BeamRule | None = beam_rules.TRANSFORMERS,
) -> Prompt:
    """Continues `ids` left to right; the last of them is the first that is fed alone."""
    if not ids:
        raise RequestError("the prompt has no tokens", hint="write something to continue")
    *context, last = ids
    place = len(context) - 1
    return Prompt(context, [place], [text, ""], last, end_ids, "causal", beams=beams)


def _refeed(ids: list[int], tokenizer: Tokenizer, fragments: list[str]) -> Prompt:
    special, how = tokenizer.special, convention(tokenizer)
    return Prompt(
        ids,
        _places(ids, special),
        fragments,
        special.sop_id,
        how.end_ids(special),
        "refeed",
        special.gmask_id,
        how.beams,
    )


def _places(ids: list[int], special: SpecialTokens) -> list[int]:
    masks = {mask.id for mask in special.mask_tokens}
    return [index for index, token in enumerate(ids) if token in masks]
