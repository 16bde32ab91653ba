"""Which names a request may call this server by, and which web pages may call it.

A page of any site can make its own name resolve to 127.0.0.1 and then talk to a server there as if
it came from it (DNS rebinding). The browser still sends that name as `Host`, so only names that are
known here are answered. Addresses are: no name was resolved.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from openglm.errors import ConfigError

LOOPBACK_NAME = "localhost"


def host_of(authority: str) -> str | None:
    """The host of `HOST` or `HOST:PORT` in lower case, without brackets; None if malformed."""
    if not authority.isascii() or any(character in authority for character in "@/?#\\ \t%"):
        return None
    try:
        parts = urlsplit(f"//{authority}")
        _ = parts.port  # raises if it is no number
    except ValueError:
        return None
    return (parts.hostname or "").removesuffix(".") or None


def is_address(host: str) -> bool:
    """Whether it is an IP address as browsers write it: dotted decimal, or IPv6."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class KnownNames:
    """The names of this server, and the origins of pages that may call it.

    Args:
        hosts: names besides addresses and `localhost`, without port.
        origins: of other pages, like "https://chat.example.org".

    Raises:
        ConfigError: a name or origin is malformed, or stands for all.
    """

    def __init__(self, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        self.hosts = {LOOPBACK_NAME}
        for name in hosts:
            host = host_of(name)
            if host is None or "*" in name or host != name.lower().removesuffix("."):
                raise ConfigError(f"{name!r} is not a host name", hint="like glm.example.org")
            self.hosts.add(host)
        self.origins = tuple(origins)
        for origin in self.origins:
            parts = urlsplit(origin)
            written = f"{parts.scheme}://{parts.netloc}".lower()
            if parts.scheme not in ("http", "https") or "*" in origin or origin != written:
                raise ConfigError(f"{origin!r} is not an origin", hint="like https://example.org")

    def may_name(self, authority: str) -> bool:
        """Whether a `Host` header names this server."""
        host = host_of(authority)
        return host is not None and (host in self.hosts or is_address(host))

    def may_call(self, origin: str, authority: str) -> bool:
        """Whether a page of `origin` may call the server that it knows as `authority`.

        A page of our own may; so may those that were configured. `null`, the origin of sandboxed
        frames and local files, is nobody's. The scheme is left to the proxy in front, if there is
        one: it alone knows whether a request came encrypted.
        """
        if origin in self.origins:
            return True
        scheme, _, own = origin.partition("://")
        return scheme in ("http", "https") and own.lower() == authority.lower()
