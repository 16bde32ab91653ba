"""`Scheme`: how the weights of a model are quantized, and the name users write for it. No torch.

    int8, int4              official: one scale per row, symmetric, the blocks only
    int4-g64                one scale per 64 columns (32, 64, 128), in 8 bits likewise
    int4-g64-asym           and a minimum per 64 columns
    int4-g64+embeddings     the word embedding, too; +head: the output head, too

Where head and embedding are one tensor, either word means both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from openglm.errors import ConfigError, UsageError

BITS = (8, 4)
GROUP_SIZES = (32, 64, 128)
"""Columns that may share a scale; 0 stands for a whole row."""
INCLUDED = ("embeddings", "head")
"""What can be quantized besides the linear layers of the blocks."""
EXAMPLES = ("int8", "int4", "int4-g64", "int4-g64-asym", "int8-g128+embeddings+head")
_NAME = re.compile(
    rf"int([48])(?:-g({'|'.join(map(str, GROUP_SIZES))})(-asym)?)?((?:\+(?:embeddings|head))*)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How weights are quantized.

    Args:
        bits: 8 or 4.
        group_size: columns that share a scale; 0 = the official scheme, a scale per row.
        symmetric: False = each group has a minimum of its own.
        embeddings: whether the word embedding is quantized.
        head: whether the output head is.

    Raises:
        UsageError: a value that is not allowed, or options the official scheme does not have.
    """

    bits: int
    group_size: int = 0
    symmetric: bool = True
    embeddings: bool = False
    head: bool = False

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UsageError(f"{self.bits} bits are not possible", hint="8 or 4")
        if self.group_size not in (0, *GROUP_SIZES):
            raise UsageError(
                f"groups of {self.group_size} columns are not possible",
                hint=f"one of {', '.join(map(str, GROUP_SIZES))}, or 0 for a scale per row",
            )
        if self.is_official and (not self.symmetric or self.embeddings or self.head):
            raise UsageError(
                "the official scheme (a scale per row) is symmetric and for the blocks only",
                hint=f"choose groups of {', '.join(map(str, GROUP_SIZES))} columns",
            )

    @property
    def is_official(self) -> bool:
        """Whether it is the scheme of the official INT8 and INT4 files."""
        return self.group_size == 0

    @property
    def name(self) -> str:
        """As in the table above."""
        group = "" if self.is_official else f"-g{self.group_size}"
        included = "".join(f"+{part}" for part in INCLUDED if getattr(self, part))
        return f"int{self.bits}{group}{'' if self.symmetric else '-asym'}{included}"

    def packs_embedding(self, is_tied: bool) -> bool:
        """Whether the word embedding is quantized; `is_tied`: it is the output head as well."""
        return self.embeddings or (is_tied and self.head)

    def including(self, parts: Sequence[str]) -> Scheme:
        """The same, with these of `INCLUDED` and no others."""
        return replace(self, **{part: part in parts for part in INCLUDED})

    def to_dict(self) -> dict[str, Any]:
        """For `config.json`."""
        included = [part for part in INCLUDED if getattr(self, part)]
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
            "include": included,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scheme:
        """The inverse of `to_dict`; `ConfigError` for unknown keys and wrong types."""
        kinds = {"bits": int, "group_size": int, "symmetric": bool, "include": list}
        strange = sorted(set(values) ^ set(kinds))
        if strange:
            raise ConfigError(
                f"quantization lacks or does not know {', '.join(strange)}",
                hint="a newer openglm may have written it",
            )
        for key, kind in kinds.items():
            if type(values[key]) is not kind:
                raise ConfigError(f"quantization.{key}={values[key]!r} must be of type {kind}")
        included = values["include"]
        unknown = [part for part in included if part not in INCLUDED]
        if unknown:
            raise ConfigError(
                f"quantization.include has {unknown[0]!r}", hint=f"known: {', '.join(INCLUDED)}"
            )
        try:
            plain = cls(**{key: values[key] for key in ("bits", "group_size", "symmetric")})
            return plain.including(included)
        except UsageError as error:
            raise ConfigError(f"quantization: {error.message}", error.hint) from error


def find_scheme(name: str) -> Scheme | None:
    """The scheme of this name; None if the name is of no scheme.

    Raises:
        UsageError: a name of the right form for a scheme that does not exist.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    bits, group_size, asymmetric, included = found.groups()
    plain = Scheme(bits=int(bits), group_size=int(group_size or 0), symmetric=not asymmetric)
    return plain.including(included.split("+"))
