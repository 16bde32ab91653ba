"""`PagePool`: who holds which page of the key/value memory, and what full pages contain.

A page is free, held by one or more requests, or idle: full, held by nobody, and kept because a
later prompt may begin with the same tokens. Idle pages are given away, least recently used first,
when no free one is left. Only full pages are ever shared, so nobody writes into a shared page and
none is ever copied.

A page's content is named by a chain of hashes: of the tenant, and of all tokens up to its end. The
hash is a cryptographic one, because a collision would show one prompt's keys to another.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

DIGEST_BYTES = 32


def root_key(tenant: str) -> bytes:
    """What the chain of a tenant's pages begins with."""
    return hashlib.blake2b(tenant.encode(errors="surrogatepass"), digest_size=DIGEST_BYTES).digest()


def page_key(before: bytes, tokens: Sequence[int]) -> bytes:
    """Names a page by its tokens and the key of the page before it."""
    content = before + array("q", tokens).tobytes()
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


class PagePool:
    """Counts references to `num_pages` pages.

    Attributes:
        references: (num_pages,) how many requests hold each page.
    """

    def __init__(self, num_pages: int) -> None:
        self.references = [0] * num_pages
        self._free = list(range(num_pages))[::-1]
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._pages: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}

    @property
    def num_pages(self) -> int:
        """All of them."""
        return len(self.references)

    @property
    def num_free(self) -> int:
        """Pages that can be taken now, idle ones included."""
        return len(self._free) + len(self._idle)

    def take(self) -> int:
        """A page of one's own, with any content; the caller has looked at `num_free`."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._pages[self._keys.pop(page)]
        self.references[page] = 1
        return page

    def find(self, key: bytes) -> int | None:
        """The page with this content, held once more; None if there is none."""
        page = self._pages.get(key)
        if page is not None:
            self._idle.pop(page, None)
            self.references[page] += 1
        return page

    def remember(self, page: int, key: bytes) -> None:
        """Names the content of a full page, unless another page has the same."""
        if key not in self._pages and page not in self._keys:
            self._pages[key] = page
            self._keys[page] = key

    def release(self, pages: Sequence[int]) -> None:
        """Gives up one reference to each page of a sequence, first page first.

        The last becomes idle first: a chain loses its end before its beginning.
        """
        for page in reversed(pages):
            self.references[page] -= 1
            if self.references[page] == 0:
                if page in self._keys:
                    self._idle[page] = None
                else:
                    self._free.append(page)
