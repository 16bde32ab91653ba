"""`Family`: all that is known of one kind of official files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from openglm.checkpoints.maps.table import NameMap, Row
from openglm.config import ModelConfig
from openglm.errors import CheckpointError

LARGEST_NUMBER = 1e30
Json = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of official files; a new model adds one of these, or none.

    Args:
        name: for messages.
        rows: the name map of a network.
        marker: canonical name of a tensor by which rank files are recognised; None = there are
            none.
        fits: whether the files can express a network.
        canonical: foreign name -> the name used in `rows`; undoes prefixes.
        recognises: whether a `config.json` is of this family; None = there is never one.
        from_json: `config.json` -> architecture.
        to_json: architecture -> `config.json`, or the description beside rank files.
        description_file: name of that description.
        rank_layouts: names under which rank files of this family are written, () = never.
        has_quantized_files: whether there are official INT8 or INT4 files.
        nest: tensors by canonical name -> the dictionary of a rank file.
        from_shapes: shapes on rank 0, number of ranks, description beside the files ({} if there
            is none) -> architecture.
        token_keys: key of the description -> role of the command token whose id it holds (`mask
            gmask sop eop eos pad`).
        default_tokens: ids by role where the description is silent.
        ids_below: key of the description below which `token_keys` stand; None = at its top.
    """

    name: str
    rows: Callable[[ModelConfig], tuple[Row, ...]]
    fits: Callable[[ModelConfig], bool]
    to_json: Callable[[ModelConfig], Json]
    description_file: str = "config.json"
    rank_layouts: tuple[str, ...] = ()
    has_quantized_files: bool = False
    nest: Callable[[dict[str, Tensor]], dict[str, Any]] = _same
    marker: str | None = None
    canonical: Callable[[str], str] = _same
    recognises: Callable[[Json], bool] | None = None
    from_json: Callable[[Json], ModelConfig] | None = None
    from_shapes: Callable[[Shapes, int, Json], ModelConfig] | None = None
    token_keys: dict[str, str] = field(default_factory=dict)
    default_tokens: Callable[[Json], dict[str, int]] = field(default=lambda description: {})
    ids_below: str | None = None

    def name_map(self, config: ModelConfig) -> NameMap:
        """The table for one network."""
        return NameMap(self.rows(config))

    def token_ids(self, description: Json) -> dict[str, int]:
        """Ids by role; a list (GLM-4 has three ends) or null counts as silence."""
        table = description if self.ids_below is None else description.get(self.ids_below)
        given = {
            role: table[key]
            for key, role in self.token_keys.items()
            if isinstance(table, dict) and not isinstance(table.get(key), list | type(None))
        }
        return self.default_tokens(description) | given

    def token_json(self, token_ids: dict[str, int]) -> Json:
        """The entries of the description that `token_ids` reads."""
        entries = {
            key: token_ids[role] for key, role in self.token_keys.items() if role in token_ids
        }
        return entries if self.ids_below is None or not entries else {self.ids_below: entries}


def require(values: Json, keys: list[str], what: str = "config.json") -> None:
    """Raises `CheckpointError` if `values` lacks one of `keys`."""
    missing = [key for key in keys if key not in values]
    if missing:
        raise CheckpointError(f"{what} lacks {', '.join(missing)}")


def size(values: Json, key: str) -> int:
    """`values[key]`, a positive integer; `CheckpointError` if it is none."""
    value = values[key]
    if type(value) is not int or value <= 0:
        raise CheckpointError(f"config.json has {key}={value!r}; it must be a positive integer")
    return value


def number(values: Json, key: str, default: float) -> float:
    """`values[key]` as a float, `default` if it is absent; `CheckpointError` if it is no number."""
    value = values.get(key, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < LARGEST_NUMBER:
        raise CheckpointError(
            f"config.json has {key}={value!r}; it must be a number from 0 to {LARGEST_NUMBER:g}"
        )
    return float(value)


def flag(values: Json, key: str, default: bool) -> bool:
    """`values[key]`, `default` if it is absent; `CheckpointError` if it is no truth value."""
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json has {key}={value!r}; it must be true or false")
    return value


def refuse(values: Json, allowed: Json) -> None:
    """Raises `CheckpointError` if a key of `allowed` is present with another value."""
    for key, value in allowed.items():
        if key in values and values[key] != value:
            raise CheckpointError(
                f"config.json has {key}={json.dumps(values[key])}; "
                f"every released model has {json.dumps(value)}"
            )


def num_layers(shapes: Shapes, prefix: str) -> int:
    """One more than the largest N among the names `prefix`N.something."""
    numbers = [
        int(name.removeprefix(prefix).split(".", 1)[0])
        for name in shapes
        if name.startswith(prefix) and name.removeprefix(prefix).split(".", 1)[0].isdecimal()
    ]
    if not numbers:
        raise CheckpointError(f"there is no tensor {prefix}0.*")
    return 1 + max(numbers)


def num_heads(found: Json, description: Json, what: str) -> int:
    """The head count, which shapes do not tell: from a description, or the published model.

    Args:
        found: sizes read off the shapes.
        description: beside the checkpoint, {} if there is none.
        what: kind of checkpoint, for the message.
    """
    from openglm.registry import presets

    if "num_attention_heads" in description:
        for key in ("vocab_size", "hidden_size", "num_layers"):
            if key in description and description[key] != found[key]:
                raise CheckpointError(
                    f"the description beside the checkpoint has {key}={description[key]}, "
                    f"the weights have {found[key]}"
                )
        heads: int = description["num_attention_heads"]
        return heads
    for preset in presets().values():
        values = preset.model.to_dict()
        if all(values[key] == value for key, value in found.items()):
            return preset.model.num_attention_heads
    raise CheckpointError(
        f"a {what} checkpoint does not say how many attention heads it has, and no published "
        f"model has hidden_size={found['hidden_size']} with num_layers={found['num_layers']}",
        hint='put a config.json with {"num_attention_heads": N} beside it',
    )
