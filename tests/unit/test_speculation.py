"""Drafters: what is guessed, how much, and when not.

How fast that makes a network depends on the machine; how many steps and guesses it takes does not.
"""

from __future__ import annotations

import random

import pytest

from openglm.engine.speculation import Drafter, LookupDrafter


def test_drafts_continue_what_stood_before():
    """What is guessed is not what followed the same tokens earlier."""
    drafter = LookupDrafter(4)
    for guess in ([4], [4, 9, 1], [4, 9, 1, 2], [4, 9, 1, 2]):
        assert drafter.propose([1, 2, 3, 4, 9, 1, 2, 3], 1, 8) == guess
        drafter.learn(len(guess), len(guess))
    assert drafter.propose([1, 2, 3, 4, 9, 1, 2, 3, 4, 9], 1, 1) == [1]
    assert drafter.propose([5, 9, 1, 7], 2, 8) == []  # another text
    assert LookupDrafter(0).propose([1, 2, 1, 2, 1, 2], 1, 8) == []


def test_drafts_that_fail_become_rare():
    """Text that repeats itself by chance only is slowed down by guesses."""
    drafter = LookupDrafter(8)
    tokens = [1, 2, 3] * 2
    guesses = []
    for step in range(1000):
        proposed = drafter.propose(tokens, 1, 8)
        if proposed:
            drafter.learn(len(proposed), 0)
            guesses.append((step, len(proposed)))
    assert guesses == [(step, 1) for step in (0, 3, 12, 45, 174, 303, 432, 561, 690, 819, 948)]


def test_a_right_draft_forgives_earlier_ones():
    """After some guesses that failed, a text that begins to repeat itself is guessed no more."""
    drafter = LookupDrafter(8)
    guesses = []
    for step in range(40):
        proposed = drafter.propose([1, 2, 3] * 2, 1, 1)
        if proposed:
            drafter.learn(1, len(guesses) == 2)
            guesses.append(step)
    assert guesses == [0, 3, 12, 13, 16, 25]


class Coin(Drafter):
    """Guesses that are right by chance."""

    def forget(self):
        """Nothing is held."""

    def _guess(self, tokens, passes, limit):
        return [0] * limit


@pytest.mark.parametrize(
    ("chance", "fewest", "widest"), [(0.0, 1.0, 1), (0.3, 1.0, 1), (0.6, 1.4, 4), (0.9, 3.0, 8)]
)
def test_widths_follow_how_often_guesses_are_right(chance, fewest, widest):
    """A draft model that is right nine times out of ten falls silent whenever it is not.

    Or one that is hardly ever right guesses far ahead all the time.
    """
    drafter, draw = Coin(8), random.Random(0)
    steps = written = wasted = 0
    widths = []
    while written < 2000:
        width = len(drafter.propose([], 1, 100))
        right = next((i for i in range(width) if draw.random() >= chance), width)
        if width:
            drafter.learn(width, right)
        steps, written, wasted = steps + 1, written + right + 1, wasted + width - right
        widths.append(width)
    assert written / steps >= fewest
    assert wasted < (0.03 if chance == 0 else 0.5) * written
    assert sorted(widths)[int(0.95 * steps)] <= widest


def test_what_agrees_longest_is_copied():
    """An edited copy repeats its own new lines: the latest place leads away from the original."""
    drafter = LookupDrafter(1)
    original, edited = [1, 2, 3, 4, 5], [9, 3, 4, 6]
    assert drafter.propose([*original, *edited, 1, 2, 3, 4], 1, 1) == [5]
    assert drafter.propose([*original, *edited, 8, 3, 4], 2, 1) == [6]  # the latest of equals


def test_a_long_copy_is_guessed_in_a_pause():
    """Behind each edited word of a copy the next hundred are written one by one."""
    drafter = LookupDrafter(8)
    document = list(range(20))
    assert len(drafter.propose([*document, 3, 4], 1, 8)) == 1
    drafter.learn(1, 0)  # a pause of two steps
    assert drafter.propose([*document, 50, 5, 6, 7, 8, 9], 2, 8) == []
    assert drafter.propose([*document, 50, 5, 6, 7, 8, 9, 10], 2, 8) == [11]


def test_a_long_copy_that_never_goes_on_is_left_alone():
    """A form whose every field differs costs a guess each, for ever."""
    drafter = LookupDrafter(8)
    num_drafted = 0
    for _ in range(1000):
        proposed = drafter.propose(list(range(8)) * 2, 1, 8)
        num_drafted += len(proposed)
        if proposed:
            drafter.learn(len(proposed), 0)
    assert num_drafted <= 12


def copied(prompt, answer, most):
    """Steps, drafted and accepted tokens of a forced answer; a step takes what was right."""
    drafter, tokens = LookupDrafter(most), list(prompt)
    steps = drafted = accepted = 0
    while left := answer[len(tokens) - len(prompt) :]:
        guess = drafter.propose(tokens, 1, len(left) - 1)
        right = next((i for i, g in enumerate(guess) if g != left[i]), len(guess))
        if guess:
            drafter.learn(len(guess), right)
        tokens += left[: right + 1]
        steps, drafted, accepted = steps + 1, drafted + len(guess), accepted + right
    return steps, drafted, accepted


def test_an_edited_copy_takes_few_steps():
    """Editing code is copying with interruptions: a word changed here, a line added there."""
    rng = random.Random(0)
    words = [rng.randrange(40) for _ in range(400)]  # pairs of words come again by chance
    edits = {place: [100 + place] for place in range(25, 400, 25)}
    edited = [word for i, old in enumerate(words) for word in edits.get(i, [old])]
    steps, drafted, accepted = copied(words, edited, 8)
    assert steps + accepted == len(edited)
    assert steps < 0.3 * len(edited)
    assert drafted < 1.4 * accepted


def test_guesses_at_free_text_are_few():
    """What never repeats itself but by chance pays for guesses."""
    rng = random.Random(1)
    prompt, answer = ([rng.randrange(40) for _ in range(count)] for count in (100, 1000))
    _, drafted, accepted = copied(prompt, answer, 8)
    assert drafted - accepted < 0.02 * len(answer)
