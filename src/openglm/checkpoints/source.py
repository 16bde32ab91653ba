"""`Source`: an opened checkpoint as a mapping from our names to tensors, read one group at a time.

Loading puts them into a network, `glm convert` writes them elsewhere; neither holds more than one
group (the fused queries, keys and values of a layer, say) besides what it keeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openglm.checkpoints.checks import check_dtypes, check_names_and_shapes
from openglm.checkpoints.describe import read_about, read_config, read_scheme, read_token_ids
from openglm.checkpoints.files import WeightFile
from openglm.checkpoints.layouts import CheckpointFiles, detect
from openglm.checkpoints.maps import NameMap, Row
from openglm.checkpoints.opened import joined_shapes, open_files
from openglm.config import ModelConfig
from openglm.errors import CheckpointError, ConfigError
from openglm.log import logger
from openglm.model import build
from openglm.quant.transform import quantized
from openglm.scheme import Scheme

MANY_LAYERS = 1000
"""A description of more layers is compared with the weights before the network is built."""
REOPEN_BYTES = 128 << 20
"""After so much was read, memory-mapped files are opened anew, which gives their pages back."""


class Source(Mapping[str, Tensor]):
    """An opened checkpoint whose tensors were all accounted for.

    Args:
        folder: what the user named.
        files: what is in it.
        exact_rotary: compute rotary angles in float32, where the released model does not.

    Attributes:
        config: the architecture.
        layout: of the folder: openglm, hf or megatron.
        family: whose files these are; None = openglm's own.
        token_ids: ids of command tokens by role, as far as the folder says.
        stored_dtype: of most floating-point weights in the files, scales aside.
        dtypes: of each of our tensors.
        scheme: how the weights are quantized; None if they are not.
        metadata: the `about` table of an openglm folder, {} for others.
        reopens: whether memory of read tensors is given back; of no use if they are kept.
    """

    def __init__(self, folder: Path, files: CheckpointFiles, exact_rotary: bool = False) -> None:
        family, ranks = open_files(files)
        shapes = [joined_shapes(shards) for shards in ranks]
        config = read_config(files, family, shapes[0], len(ranks))
        if exact_rotary:
            exact: Any = dict.fromkeys(("rotary_compute", "rotary_frequencies"), "float32")
            config = dataclasses.replace(config, **exact)
        if config.num_layers > max(len(shapes[0]), MANY_LAYERS):
            raise CheckpointError(
                f"num_layers={config.num_layers}, but the weights have {len(shapes[0])} tensors "
                "in all"
            )
        self.folder, self.config, self.layout = folder, config, files.layout
        self.family = family
        self.scheme = read_scheme(files, len(ranks))
        self.token_ids = read_token_ids(files, family)
        self.metadata = read_about(files)
        parameters = dict(quantized(build(config), self.scheme).named_parameters())
        names = (
            NameMap(tuple(Row(n, (n,)) for n in parameters))
            if family is None
            else family.name_map(config).with_scales(parameters)
        )
        rows = names.expand(config.num_layers)
        self._shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        check_names_and_shapes(folder, self._shapes, rows, shapes)
        self.stored_dtype = check_dtypes(ranks, rows, parameters)
        self._holders = [{n: shard for shard in shards for n in shard.shapes()} for shards in ranks]
        self._repeated = [row for row in rows.values() if row.repeats]
        self._row_of = {target: row for row in rows.values() for target in row.targets}
        self._group: dict[str, Tensor] = {}
        found: dict[str, Any] = {}
        for shard in ranks[0]:
            found |= shard.dtypes()
        self.dtypes: dict[str, torch.dtype] = {
            target: found[row.source] for row in rows.values() for target in row.targets
        }
        self.reopens = True
        self._touched: dict[int, WeightFile] = {}
        self._num_bytes = 0

    def __getitem__(self, name: str) -> Tensor:
        """One tensor, as stored, on the CPU; neighbours of its group are read with it."""
        row = self._row_of[name]
        if name not in self._group:
            self._group = {}
            self._group = self._read(row)
        return self._group[name]

    def __iter__(self) -> Iterator[str]:
        """Our names, group by group."""
        return iter(self._row_of)

    def __contains__(self, name: object) -> bool:
        return name in self._row_of

    def __len__(self) -> int:
        return len(self._row_of)

    def warn_of_differing_heads(self) -> None:
        """A tied head that differs from the embedding does not count, as in the official code."""
        for row in self._repeated:
            holder = self._holders[0].get(row.source)
            if holder is not None and row.repeats is not None and len(self._holders) == 1:
                first = self[row.repeats]
                if not torch.equal(holder.get(row.source).to(first.dtype), first):
                    logger.warning(
                        "%s differs from %s, which it is tied to", row.source, row.repeats
                    )

    def _read(self, row: Row) -> dict[str, Tensor]:
        if self.reopens and self._num_bytes > REOPEN_BYTES:
            self._reopen()
        files = [holder[row.source] for holder in self._holders]
        self._touched |= {id(file): file for file in files}
        tensors = [file.get(row.source) for file in files]
        self._num_bytes += sum(tensor.nbytes for tensor in tensors)
        if row.split is None and any(not torch.equal(tensors[0], other) for other in tensors[1:]):
            logger.warning(
                "%s differs between tensor-parallel ranks; rank 0 is used, as officially",
                row.source,
            )
        parts = row.read(tensors, [self._shapes[target] for target in row.targets])
        return dict(zip(row.targets, parts, strict=True))

    def _reopen(self) -> None:
        for file in self._touched.values():
            file.reopen()
        self._touched, self._num_bytes = {}, 0


def open_checkpoint(
    folder: Path, description: dict[str, Any] | None = None, exact_rotary: bool = False
) -> Source:
    """Opens any checkpoint folder known to `openglm.checkpoints.layouts`; weights are not read yet.

    Args:
        folder: the checkpoint.
        description: what a Megatron folder does not say, like {"num_attention_heads": 64}; used
            where there is no description beside it.
        exact_rotary: see `Source`.

    Raises:
        CheckpointError: see `open_weights`, `detect`; or tensors are missing, unexpected, of a
            wrong shape or of a dtype that weights cannot have.
    """
    with naming(folder):
        files = detect(folder)
        if files.layout == "megatron" and description:
            files = dataclasses.replace(files, config=description | files.config)
        return Source(folder, files, exact_rotary)


def describe_checkpoint(folder: Path) -> tuple[ModelConfig, str, dict[str, Any], Scheme | None]:
    """Architecture, layout, `about` table and quantization; weights are opened, not read."""
    with naming(folder):
        files = detect(folder)
        family, ranks = open_files(files)
        config = read_config(files, family, joined_shapes(ranks[0]), len(ranks))
        return config, files.layout, read_about(files), read_scheme(files, len(ranks))


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Makes every error name the checkpoint and say what to do."""
    try:
        yield
    except (CheckpointError, ConfigError) as error:
        named = str(folder) in error.message
        message = error.message if named else f"{folder}: {error.message}"
        hint = error.hint or "is this the whole checkpoint, as published? download it again"
        raise CheckpointError(message, hint) from error
