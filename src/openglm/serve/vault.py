"""Secrets encrypted at rest, under a master key that is not in the database.

JSON web tokens are signed with the key's secret itself, so a server that accepts them must be able
to read it. Whoever copies only the database, or only the master key, gets nothing.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from openglm.errors import ConfigError
from openglm.serve.private_files import create_private


class Vault:
    """Encrypts and decrypts with the master key of a file, made at the first use.

    Raises:
        ConfigError: the file is not a master key, or others may read it.
    """

    def __init__(self, path: Path) -> None:
        create_private(path, Fernet.generate_key())
        self.path = path
        try:
            self._fernet = Fernet(path.read_bytes().strip())
        except ValueError as error:
            raise ConfigError(
                f"{path} is not a master key: {error}",
                hint="put the right file back, or remove it: keys that sign tokens then need "
                "to be made anew",
            ) from error

    def encrypt(self, secret: str) -> str:
        """The secret as text for the database, authenticated."""
        return self._fernet.encrypt(secret.encode()).decode()

    def decrypt(self, encrypted: str) -> str | None:
        """The secret; None if it was encrypted under another master key, or altered."""
        try:
            return self._fernet.decrypt(encrypted).decode()
        except InvalidToken:
            return None
