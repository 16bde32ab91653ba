"""The pool of pages against a plain account of who holds what."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from openglm.engine.pages import PagePool, page_key, root_key


@given(st.integers(0, 10**9), st.integers(1, 7))
def test_pages_are_never_lost_and_never_given_twice(seed, num_pages):
    """A page leaks, is written by two, or is found under tokens that it no longer holds."""
    rng = random.Random(seed)
    pool = PagePool(num_pages)
    holders: list[list[int]] = []
    content: dict[int, bytes] = {}
    for _ in range(60):
        action = rng.randrange(4)
        if action == 0 and pool.num_free:
            page = pool.take()
            assert all(page not in pages for pages in holders)
            content.pop(page, None)
            holders.append([page])
        elif action == 1 and holders:
            pool.release(holders.pop(rng.randrange(len(holders))))
        elif action == 2 and holders:
            page = rng.choice(rng.choice(holders))
            key = page_key(b"", [rng.randrange(4)])
            if page not in content and key not in content.values():
                content[page] = key
            pool.remember(page, key)
        else:
            key = page_key(b"", [rng.randrange(4)])
            found = pool.find(key)
            assert found == next((page for page, held in content.items() if held == key), None)
            if found is not None:
                holders.append([found])
        held = [page for pages in holders for page in pages]
        assert pool.references == [held.count(page) for page in range(num_pages)]
        assert pool.num_free == num_pages - len(set(held))


def test_the_end_of_a_chain_goes_first_and_the_oldest_chain_before_all():
    """The beginning that everybody shares is thrown away while ends that nobody asks for stay."""
    pool = PagePool(4)
    chains = [[pool.take(), pool.take()] for _ in range(2)]
    keys = [[bytes([chain, place]) for place in range(2)] for chain in range(2)]
    for chain in (1, 0):
        for page, key in zip(chains[chain], keys[chain], strict=True):
            pool.remember(page, key)
        pool.release(chains[chain])
    taken = [pool.take() for _ in range(3)]
    assert taken == [chains[1][1], chains[1][0], chains[0][1]]
    assert pool.find(keys[0][0]) == chains[0][0]
    assert pool.find(keys[0][1]) is None


def test_names_of_pages():
    """Two different texts have the same pages."""
    names = [
        root_key(""),
        root_key("a"),
        page_key(root_key("a"), []),
        page_key(root_key("a"), [1]),
        page_key(root_key(""), [1]),
        page_key(page_key(root_key("a"), [1]), [2]),
        page_key(root_key("a"), [1, 2]),
        page_key(root_key("a"), [2, 1]),
        page_key(root_key("a"), [256 * 256]),
    ]
    assert len(set(names)) == len(names)
