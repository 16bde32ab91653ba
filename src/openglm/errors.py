"""The exception tree. Every error a user can cause is an `OpenGLMError` with its own exit code.

    OpenGLMError                 1
    ├── UsageError               2   wrong command line or argument
    ├── ConfigError              3   model or run configuration
    ├── CheckpointError          4   files of weights
    ├── TokenizerError           5   vocabulary files, ids
    ├── DataError                6   training text
    ├── RequestError             7   a generation request that cannot be honoured
    ├── TrainingStopped          8   the watchdog ended a run
    ├── VerificationError        9   recorded numbers were not reproduced
    ├── DownloadError           10   files of a hub or a folder that cannot be had or trusted
    ├── KernelUnavailable       11   a kernel asked for by name that cannot run here
    └── NumericalError          12   a network gave NaN or infinity instead of numbers

Messages say what was wrong, name the value, say what is allowed and, in `hint`, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

LFS_MARK = b"version https://git-lfs"
"""How a Git LFS pointer begins: what people have instead of a file when git-lfs was missing."""


class OpenGLMError(Exception):
    """Base of all errors of this package.

    Args:
        message: what was wrong, with the offending value and what is allowed.
        hint: what to do about it; shown on its own line by the command line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(OpenGLMError):
    """A wrong argument or option."""

    exit_code = 2


class NotEnoughMemory(UsageError):
    """A model that would not fit into the memory that is free."""


class ConfigError(OpenGLMError):
    """A model or run configuration that is unknown, incomplete or contradictory."""

    exit_code = 3


class CheckpointError(OpenGLMError):
    """Weights that are missing, damaged, unsafe, or do not fit the configuration."""

    exit_code = 4


class TokenizerError(OpenGLMError):
    """A vocabulary that is missing or damaged, or an id or token outside it."""

    exit_code = 5


class UnknownTokenizerError(TokenizerError):
    """A tokenizer class that is not known here; the weights beside it may be."""


class DataError(OpenGLMError):
    """Training text that cannot be read or used."""

    exit_code = 6


class RequestError(OpenGLMError):
    """A generation or scoring request that cannot be honoured as asked."""

    exit_code = 7


class ContextOverflow(RequestError):
    """A text that is longer than what the model can read, or leaves no room for an answer."""


class TrainingStopped(OpenGLMError):
    """The training watchdog stopped a run; the last good checkpoint is kept."""

    exit_code = 8


class VerificationError(OpenGLMError):
    """Recorded numbers were not reproduced within the tolerance."""

    exit_code = 9


class DownloadError(OpenGLMError):
    """Files that a hub or a folder does not have, does not give, or gives wrongly."""

    exit_code = 10


class KernelUnavailable(OpenGLMError):
    """A kernel that was asked for by name, and is unknown or cannot run on this machine."""

    exit_code = 11


class NumericalError(OpenGLMError):
    """A network gave NaN or infinity, from which nothing can be chosen."""

    exit_code = 12


def suggest(name: str, known: Iterable[str], aliases: Iterable[str] = ()) -> str:
    """Returns a hint "did you mean ...? known: ..." for an unknown `name`.

    Args:
        name: what was asked for.
        known: all names, listed in the hint.
        aliases: further names that are only given when they are near.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, [*names, *aliases], n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    return f"{meant}known: {', '.join(names)}"


def refuse_pointer(path: Path, error: type[OpenGLMError]) -> None:
    """Raises `error` if a file is a Git LFS pointer instead of what it is named for."""
    with path.open("rb") as file:
        is_pointer = file.read(len(LFS_MARK)) == LFS_MARK
    if is_pointer:
        raise error(
            f"{path} is a Git LFS pointer of {path.stat().st_size} bytes, not the file itself",
            hint="fetch it with `git lfs pull` or download it again",
        )


def shorten(names: Sequence[str], shown: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
