"""Which files of a repository are needed: the weights once, what describes them, the licence."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from openglm.errors import DownloadError
from openglm.hub.listing import HubFile

SAFETENSORS, BIN = "safetensors", "bin"
STEMS = {SAFETENSORS: "model", BIN: "pytorch_model"}
"""Formats of weights, the preferred one first, and how their files are called."""
INDEX = "{stem}.{ending}.index.json"
TRACKERS = ("latest", "latest_checkpointed_iteration.txt")
RECORD = "openglm-download.json"
"""Our own file in the folder of a model; a repository must not bring one."""
PYTHON = "Python code, which openglm never runs: it has its own"
DOUBLE = "the same weights in another format"
OTHER = "not needed"

_SHARD = re.compile(r"(model|pytorch_model)-(\d{5})-of-(\d{5})\.(safetensors|bin)")
_RANK = re.compile(r"(?:\w[\w.+-]*/)?mp_rank_\d+_model_states\.pt", re.ASCII)
_WHOLE = re.compile(r"\w[\w.+-]*\.pt", re.ASCII)
_SETTINGS = re.compile(r"\w[\w.+-]*\.(json|model|txt)", re.ASCII)
_TERMS = re.compile(r"(MODEL_)?(LICEN[CS]E|NOTICE|README)[\w.+-]*", re.ASCII | re.IGNORECASE)
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt)")
_ARCHIVE = re.compile(r".*\.(zip|tar|tgz|tbz2|tar\.(gz|bz2|xz))(\.?(part)?[_.]?\w+)?")


@dataclass(frozen=True, slots=True)
class Choice:
    """What is taken and what is not.

    Args:
        files: small ones first, so that a damaged index is found before gigabytes were fetched.
        left_out: reason -> paths.
    """

    files: tuple[HubFile, ...]
    left_out: dict[str, list[str]]


def choose(files: Sequence[HubFile], where: str) -> Choice:
    """The needed files of a repository or folder.

    Args:
        files: all of them.
        where: the repository or folder, for messages.

    Raises:
        DownloadError: there is no complete set of weights.
    """
    weights = _weights([file.path for file in files], where)
    taken, left_out = [], dict[str, list[str]]()
    for file in files:
        if file.path in weights or _describes(file.path):
            taken.append(file)
        else:
            left_out.setdefault(_reason(file.path), []).append(file.path)
    taken.sort(key=lambda file: (is_weights(file.path), file.path))
    return Choice(tuple(taken), left_out)


def is_weights(path: str) -> bool:
    """Whether this is a file of weights, by its name."""
    return _WEIGHTS.fullmatch(path) is not None


def missing_shards(weight_map: object, present: Collection[str], where: str) -> list[str]:
    """Files that the `weight_map` of an index names and that are not there, sorted.

    Raises:
        DownloadError: the index has no map of file names.
    """
    if not isinstance(weight_map, dict) or not weight_map:
        raise DownloadError(f"the index of {where} names no files")
    return sorted(set(map(str, weight_map.values())).difference(present))


def _weights(paths: Iterable[str], where: str) -> set[str]:
    """The paths of one complete set of weights, with its index or tracker."""
    names = set(paths)
    for ending, stem in STEMS.items():
        found = _one_format(names, ending, stem)
        if found:
            return found
    ranks = {name for name in names if _RANK.fullmatch(name)}
    if ranks:
        return ranks | names.intersection(TRACKERS)
    whole = {name for name in names if _WHOLE.fullmatch(name)}
    if len(whole) == 1:
        return whole
    archives = sorted(name for name in names if _ARCHIVE.fullmatch(name))
    if archives:
        raise DownloadError(
            f"{where} holds archives and no weights: {', '.join(archives[:3])}",
            hint="unpack them first; parts are joined in their order: "
            "cat NAME.tar.part_* | tar x, or cat NAME.tar.gz.* | tar xz",
        )
    gaps = [gap for ending, stem in STEMS.items() for gap in _gaps(names, ending, stem)]
    if gaps:
        raise DownloadError(
            f"{where} lacks {len(gaps)} files of weights: {', '.join(gaps[:8])}",
            hint="get them from where the others came from",
        )
    held = ", ".join(sorted(filter(is_weights, names))[:8]) or "no weights at all"
    raise DownloadError(
        f"{where} has no complete set of weights that openglm reads",
        hint="needed: all shards and the index of model*.safetensors or pytorch_model*.bin, "
        f"mp_rank_*.pt, or one .pt file; it has {held}",
    )


def _one_format(names: set[str], ending: str, stem: str) -> set[str]:
    """The complete set of this format; empty if there is none."""
    single = f"{stem}.{ending}"
    if single in names:
        return {single}
    sets = _shards(names, ending, stem)
    if len(sets) != 1 or _gaps(names, ending, stem):
        return set()
    return {INDEX.format(stem=stem, ending=ending)}.union(*sets.values())


def _shards(names: set[str], ending: str, stem: str) -> dict[int, set[str]]:
    """Number of shards of a set, as their names say it -> those that are there."""
    sets: dict[int, set[str]] = {}
    for name in names:
        match = _SHARD.fullmatch(name)
        if match and match[1] == stem and match[4] == ending:
            sets.setdefault(int(match[3]), set()).add(name)
    return sets


def _gaps(names: set[str], ending: str, stem: str) -> list[str]:
    """What is missing of a set of shards that was begun, the index among it."""
    sets = _shards(names, ending, stem)
    wanted = {
        f"{stem}-{number:05d}-of-{total:05d}.{ending}"
        for total in sets
        for number in range(1, total + 1)
    }
    return sorted((wanted | {INDEX.format(stem=stem, ending=ending)} if sets else set()) - names)


def _describes(path: str) -> bool:
    """Configuration, vocabulary, or the terms; subfolders hold none that is read."""
    if path == RECORD or path.endswith((".index.json", ".py")):
        return False
    return bool(_SETTINGS.fullmatch(path) or _TERMS.fullmatch(path))


def _reason(path: str) -> str:
    if path.endswith((".py", ".pyc")):
        return PYTHON
    if path.endswith((".index.json", ".h5", ".msgpack", ".onnx", ".gguf", ".ot")):
        return DOUBLE
    return DOUBLE if is_weights(path) else OTHER
