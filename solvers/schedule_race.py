"""Which of several candidates is the fastest, from times that other work disturbs.

All candidates are timed once a round, one after the other, forwards and backwards in turns: what
slows a round down slows all of it, so only ratios within a round are compared. A candidate is
*behind* another if it was slower in so many rounds that chance explains it in one case of twenty
(a sign test), and slower by more than 1 % in the median. One wild time, however wild, changes one
sign. Whoever is behind the leader leaves; at most half go on to each further stage, which has more
rounds than all before; the race ends when nobody who is left may be ahead, or after the last stage.
Whoever was preferred from the start wins unless it is behind: a tie is no reason to change.

Medians and not minima: times are differences of two amounts of work, and a disturbance of the
smaller amount makes them too short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from statistics import median
from typing import TypeVar

C = TypeVar("C", bound=Hashable)

STAGES = (5, 7, 12)
"""Rounds of each stage."""

RELEVANT = 0.01
"""Less than this is a tie, as a logarithm of a ratio; about 1 %."""

CHANCE = 0.05
"""Probability with which one of two equals is found behind at one look."""


@lru_cache(maxsize=64)
def tolerated(rounds: int) -> int:
    """In how many rounds a candidate may be faster and still be behind; -1 if that takes more."""
    total, most = 0.0, -1
    for k in range(rounds):
        total += math.comb(rounds, k) / 2.0**rounds
        if total > CHANCE:
            break
        most = k
    return most


def most_samples(candidates: int) -> int:
    """Times that a race takes at most."""
    total, left = 0, candidates
    for rounds in STAGES:
        total += rounds * left
        # The preferred one stays beside the better half.
        left = min(left, max(2, math.ceil(left / 2)) + 1)
    return total


def race(candidates: Sequence[C], sample: Callable[[C], float | None]) -> tuple[C, ...]:
    """The winner, then the others of the last stage, the fastest first; empty if none can run.

    Args:
        candidates: the first one is preferred.
        sample: seconds of a candidate, positive; None if it cannot run, and then it is out.
    """
    entrants = list(dict.fromkeys(candidates))
    times: dict[C, list[float]] = {c: [] for c in entrants}
    left = entrants
    for rounds in STAGES:
        for number in range(rounds):
            for candidate in left[:: -1 if number % 2 else 1]:
                seconds = sample(candidate)
                times[candidate].append(math.nan if seconds is None else math.log(seconds))
            left = [c for c in left if not math.isnan(times[c][-1])]
        if len(left) < 2:
            break
        ranked = _ranked(left, times)
        leader = ranked[0]
        abreast = [c for c in ranked if not _behind(times[c], times[leader])]
        kept = abreast[: max(2, math.ceil(len(left) / 2))]
        if entrants[0] in abreast and entrants[0] not in kept:
            kept.append(entrants[0])
        left = kept
        if _settled(left, leader, entrants[0], times):
            break
    preferred = [c for c in left if c == entrants[0]]
    return (*preferred, *(c for c in left if c not in preferred))


def _ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    """Logarithms of ratios, rising."""
    return sorted(a - b for a, b in zip(slower, faster, strict=True))


def _ranked(left: Sequence[C], times: dict[C, list[float]]) -> list[C]:
    """By the most that a candidate loses to any other one; ties in the order given."""
    worst = {
        c: max(median(_ratios(times[c], times[o])) for o in left if o != c) for c in left
    }  # fmt: skip
    return sorted(left, key=worst.__getitem__)


def _behind(times: Sequence[float], leader: Sequence[float]) -> bool:
    ratios = _ratios(times, leader)
    lost = sum(r <= 0.0 for r in ratios)
    return lost <= tolerated(len(ratios)) and median(ratios) > RELEVANT


def _settled(left: Sequence[C], leader: C, preferred: C, times: dict[C, list[float]]) -> bool:
    """Whether nobody may be far ahead of the leader, nor the preferred one far behind it."""
    for candidate in left:
        if candidate == leader:
            continue
        ratios = _ratios(times[candidate], times[leader])
        outside = tolerated(len(ratios))
        if outside < 0 or ratios[outside] < -RELEVANT:
            return False
        if candidate == preferred and ratios[-1 - outside] > RELEVANT:
            return False
    return True
