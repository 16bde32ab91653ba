"""Text with blanks -> context ids and the places of the blanks, as GLM's own scripts build them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from openglm.errors import RequestError
from openglm.tokenizers import Tokenizer

CANONICAL_MASK = "[MASK]"
"""How users write a short blank for every tokenizer (RoBERTa's own spelling is `<mask>`)."""
OFFICIAL_MASKS = ("[MASK]", "[sMASK]", "[gMASK]")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A context ready to be decoded.

    Args:
        context_ids: `[CLS]` text `eos`; without `eos` if the text ends in a long blank.
        mask_positions: indices of the blanks in it, left to right.
        fragments: the text around the blanks, one more than there are blanks.
    """

    context_ids: list[int]
    mask_positions: list[int]
    fragments: list[str]


def blank_prompt(tokenizer: Tokenizer, text: str) -> Prompt:
    """The prompt for a text in which `[MASK]`, `[sMASK]` and `[gMASK]` stand for blanks.

    Raises:
        RequestError: no blank in it, or one that this model was not trained with.
    """
    special = tokenizer.special
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
        fragment.rstrip() if index < len(found) and found[index] in strips else fragment
        for index, fragment in enumerate(fragments)
    ]
    ids = [special.cls_id, *tokenizer.encode_with(spelled, known)]
    mask_ids = {mask.id for mask in masks}
    if ids[-1] != special.gmask_id or not special.has("gmask"):
        ids.append(special.eos_id)
    positions = [index for index, token in enumerate(ids) if token in mask_ids]
    return Prompt(ids, positions, fragments)


def continuation_prompt(tokenizer: Tokenizer, text: str) -> Prompt:
    """The prompt that continues `text`: one long blank at its end; blanks in it stay text."""
    special = tokenizer.special
    ids = [special.cls_id, *tokenizer.encode(text), special.gmask_id]
    positions = [len(ids) - 1]
    if not special.has("gmask"):  # trained with [MASK] ... eos only
        ids.append(special.eos_id)
    return Prompt(ids, positions, [text, ""])
