"""Which schedules of all groups together are the fastest: races between single changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median

from autograd_gpu.runtime.schedule_choice import Measured
from autograd_gpu.runtime.schedule_costs import estimate
from autograd_gpu.runtime.schedules import Schedule, alternatives, has_own_kernels
from autograd_gpu.solvers.schedule_race import most_samples, race
from autograd_gpu.solvers.schedule_trials import Stand, Trials

MOST_SAMPLES = 600
"""Times that are taken for one purpose, at most; some tens of milliseconds each."""

SWEEPS = 3
"""Rounds of changes, at most; after two there is hardly ever one."""

Schedules = tuple[Schedule, ...]
"""One per group."""


class Search:
    """Races between what differs in one thing, until no change wins.

    A race decides by times of its own rounds (`schedule_race`); a tie changes nothing, so what is
    chosen differs from the start only where that is faster. In turns: what is stored and how it is
    summed, for all groups together; what all groups share; the former for each group alone, the
    heaviest first, with workgroups of its own where it has kernels of its own; and what all share
    once more. At last the winner runs against the start, both set up anew.

    Args:
        trials: what may be chosen.
        stand: takes the times.
        most: times to take, at most.

    Attributes:
        samples: times taken.
    """

    def __init__(self, trials: Trials, stand: Stand, most: int = MOST_SAMPLES) -> None:
        self._trials = trials
        self._stand = stand
        self._left = most
        self._purpose = trials.chooser.purpose
        # Most kernels of a device serve several groups; on the host all groups are summed alike.
        self._shared = "materialise" if self._purpose == "assembly" else "workgroup_size"
        self._times: dict[Schedules, list[float]] = {}
        self._decided: set[tuple[Schedules, Schedules]] = set()
        self.samples = 0

    def run(self, start: Sequence[Schedule]) -> Measured:
        """What was tried with its median seconds: the chosen first, then the fastest first.

        Empty if the device refuses everything.

        Args:
            start: where to begin, one schedule per group; stays if nothing is faster.
        """
        first = tuple(start)
        best = self._descend(first)
        if best not in self._times:
            return ()
        if best == first or first not in self._times:
            return self._ordered(best, {})
        before = {s: len(self._times[s]) for s in (first, best)}
        self._stand.close()
        chosen = next(iter(race((first, best), self._sample)), best)
        # These two are compared by the reader as well: by times of the same rounds.
        last = {s: median(self._times[s][n:] or self._times[s]) for s, n in before.items()}
        return self._ordered(chosen, last)

    def _ordered(self, chosen: Schedules, known: dict[Schedules, float]) -> Measured:
        seconds = {s: median(found) for s, found in self._times.items()} | known
        others = sorted((s for s in seconds if s != chosen), key=seconds.__getitem__)
        return tuple((s, seconds[s]) for s in (chosen, *others))

    def _descend(self, best: Schedules) -> Schedules:
        for _ in range(SWEEPS):
            before = best
            for changes in self._changes(best):
                best = self._race(best, changes(best))
            if best == before:
                break
        return best

    def _race(self, best: Schedules, others: Sequence[Schedules]) -> Schedules:
        """The winner; the best so far if there is nothing new beside it, or no time left."""
        new = [s for s in dict.fromkeys(others) if s != best and (best, s) not in self._decided]
        if not new and best in self._times:
            return best
        # What the last race needs is kept for it.
        if most_samples(len(new) + 1) + most_samples(2) > self._left:
            return best
        entrants = (best, *new)
        self._stand.ready(entrants)
        winner = next(iter(race(entrants, self._sample)), best)
        self._decided |= {(winner, s) for s in entrants if s != winner}
        return winner

    def _sample(self, schedules: Schedules) -> float | None:
        seconds = self._stand.sample(schedules)
        if seconds is not None:
            self.samples += 1
            self._left -= 1
            self._times.setdefault(schedules, []).append(seconds)
        return seconds

    # -- changes -------------------------------------------------------------------------------

    def _changes(self, best: Schedules) -> Iterator[Callable[[Schedules], list[Schedules]]]:
        """What may be changed, as functions from the best so far to what it may become."""
        features, profile = self._trials.features, self._trials.chooser.where.profile
        heaviest = sorted(
            range(len(best)),
            key=lambda k: -estimate(features[k], best[k], self._purpose, profile),
        )
        yield self._together
        yield self._common
        for k in heaviest:
            yield lambda now, k=k: self._alone(now, k)
        yield self._common

    def _choices(self, k: int) -> list[Schedule]:
        found = alternatives(self._trials.features[k], self._purpose)
        return [s for s in found if self._trials.allows(s)]

    def _beside(self, best: Schedules, k: int) -> list[Schedule]:
        """Schedules of group k with what all groups share as it is."""
        shared = getattr(best[k], self._shared)
        return [s for s in self._choices(k) if getattr(s, self._shared) == shared]

    def _together(self, best: Schedules) -> list[Schedules]:
        """The same for all groups that can have it."""
        choices = [self._beside(best, k) for k in range(len(best))]
        every = dict.fromkeys(s for found in choices for s in found)
        return [
            tuple(s if s in found else now for now, found in zip(best, choices, strict=True))
            for s in every
        ]

    def _alone(self, best: Schedules, k: int) -> list[Schedules]:
        """Others for group k."""
        found = self._beside(best, k)
        if len(best) > 1 and has_own_kernels(best[k], self._purpose):
            found += [
                s
                for s in self._choices(k)
                if replace(s, workgroup_size=best[k].workgroup_size) == best[k]
            ]
        return [(*best[:k], s, *best[k + 1 :]) for s in found]

    def _common(self, best: Schedules) -> list[Schedules]:
        """Other values of what all groups share."""
        choices = [self._choices(k) for k in range(len(best))]
        values = sorted({getattr(s, self._shared) for found in choices for s in found}, key=str)
        changed = [tuple(replace(s, **{self._shared: value}) for s in best) for value in values]
        return [c for c in changed if all(s in found for s, found in zip(c, choices, strict=True))]
