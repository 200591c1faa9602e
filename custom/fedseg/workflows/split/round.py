"""The server's side of a round of split training: all sites together, or one after the other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from fedseg.errors import RefusalError
from fedseg.messages.calls.call import PART, Ask, Call
from fedseg.networks.weights import Arrays
from fedseg.training.split.site_half import SiteHalf
from fedseg.training.split.weights import check_part
from fedseg.workflows.split.iterations import SplitIterations


class SplitRound(SplitIterations):
    """A round in which all sites that are left take part in every iteration (SplitAVG)."""

    def run(self, sites: Sequence[str], steps: int, start: float, end: float) -> list[str]:
        """All iterations.

        Args:
            sites: who has said to be ready.
            steps: iterations.
            start, end: fractions of the whole job at which the round starts and ends.

        Returns:
            The sites that were there to the last.
        """
        began = time.perf_counter()
        progress: list[float | None] = [start + (end - start) * number / steps for number in range(steps)]
        following = [*progress[1:], None]
        answers = self._ask(sites, Ask.FEATURES, 0, progress[0])
        for step in range(steps):
            drawn = self._each(answers, self._read_batch)
            if not drawn:
                return []
            answers = self._iterate(drawn, step, progress[step] or 0.0, following[step])
        self.result.seconds = time.perf_counter() - began
        return sorted(answers)


class SplitTurns(SplitIterations):
    """A round in which site after site trains alone with the server (SplitNN; Gupta and Raskar, 2018).

    A turn begins with the part that the turn before it has left, and ends when the site has sent its part back, so that
    the server has it between two turns. A site that falls silent in its turn sends nothing back: the next one begins
    with the part that was sent to the lost one. What the server's part has learned from it stays.

    Sites that wait are called now and then. Otherwise they would conclude that the round is over, and their absence
    would be noticed in their turn only.
    """

    def run(self, sites: Sequence[str], steps: Mapping[str, int], start: float, end: float, pause: float) -> list[str]:
        """All turns, in the order of the sites' names.

        Args:
            sites: who has said to be ready.
            steps: iterations of each site's turn.
            start, end: fractions of the whole job at which the round starts and ends; the learning rate follows the
                iterations of all turns, also past those of a site that was lost.
            pause: seconds after which the sites that wait are asked.

        Returns:
            The sites that were there to the last.
        """
        began = time.perf_counter()
        self._present, self._pause, self._asked_last = set(sites), pause, time.monotonic()
        done, total = 0, sum(steps[site] for site in sites)
        for site in sorted(sites):
            progress = [start + (end - start) * (done + number) / total for number in range(steps[site])]
            if site in self._present and not self._turn(site, progress):
                self._present.discard(site)
            done += steps[site]
        self.result.seconds = time.perf_counter() - began
        return sorted(self._present)

    def _turn(self, site: str, progress: Sequence[float]) -> bool:
        """The turn of a site; whether it came to its end."""
        following = [*progress[1:], None]
        answers = self._ask([site], Ask.RECEIVE, 0, progress[0], {site: {PART: self._passed_on.weights()}})
        for step, now in enumerate(progress):
            drawn = self._each(answers, self._read_batch)
            if not drawn:
                return False
            answers = self._iterate(drawn, step, now, following[step])
        given = self._each(self._ask(list(answers), Ask.SEND, len(progress), None), self._read_part)
        for part in given.values():
            self._passed_on.set_weights(part)
        return bool(given)

    @property
    def _passed_on(self) -> SiteHalf:
        """The part between two turns."""
        if self.common is None:
            raise RefusalError("state", "The sites have no common part.")
        return self.common

    def _read_part(self, site: str, answer: Call) -> Arrays:
        part = answer.group(PART)
        check_part(self._passed_on.weights(), part)
        return part

    def _carry(self, calls: Mapping[str, Call]) -> dict[str, Call]:
        """The answers to calls; from time to time the sites that wait are asked beside."""
        waiting: dict[str, Call] = {}
        if calls and time.monotonic() - self._asked_last >= self._pause:
            self._asked_last = time.monotonic()
            waiting = dict.fromkeys(sorted(self._present - set(calls)), self._blank)
        answers = super()._carry({**calls, **waiting})
        self._present -= {*calls, *waiting} - set(answers)
        return {site: answer for site, answer in answers.items() if site in calls}
