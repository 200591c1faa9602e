"""The beginning of a round of split training: who is ready to be called."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from fedseg.messages.calls.call import Call
from fedseg.workflows.run.sites import Calls
from fedseg.workflows.split.server_pass import Leave

_READY_TIMEOUT = 5.0
_PAUSE = 0.05


class Gathering:
    """Asks the sites of a round whether they are ready, until all that can be expected in time are.

    A site that is ready is asked again now and then while others are not; otherwise it would conclude that the round is
    over. If it does not answer then, it is left out. If it says that it is not in the round, because its process was
    restarted, it is waited for like the others.
    """

    def __init__(self, calls: Calls, blank: Call, start_timeout: float, gone: Callable[[str], object]) -> None:
        """Prepare.

        Args:
            calls: carries the question; its time-out is that of a site that gives no sign of life.
            blank: the question.
            start_timeout: seconds after the first site was ready for which the others are waited for.
            gone: whether nothing more can be expected of a site.
        """
        self.calls, self.blank, self.start_timeout, self.gone = calls, blank, start_timeout, gone
        self.ready: set[str] = set()
        self._waiting: set[str] = set()

    def run(self, sites: Collection[str], out_before: Collection[str], leave: Leave) -> list[str]:
        """Wait for the sites.

        Args:
            sites: of the round.
            out_before: those that were left out of the round before: silence of ``message_timeout`` is enough here.
            leave: told of each site that is not waited for any more.

        Returns:
            Who is ready.
        """
        self._waiting, self.ready = set(sites), set()
        first, asked, heard = 0.0, time.monotonic(), dict[str, float]()
        limit = min(_READY_TIMEOUT, self.calls.timeout)
        while not self.calls.over.is_set():
            self._waiting = {site for site in self._waiting if not self.gone(site)}
            self.ready = {site for site in self.ready if not self.gone(site)}
            if not self._waiting:
                break
            answers, failures = self.calls.exchange(dict.fromkeys(sorted(self._waiting), self.blank), limit)
            now = time.monotonic()
            if answers and not self.ready:
                asked = now
            self.ready |= set(answers)
            self._waiting -= set(answers)
            heard |= {site: now for site, failure in failures.items() if failure.alive}
            first = first or (now if self.ready else 0.0)
            for site in sorted(self._waiting) if first else ():
                silent = now - max(first, heard.get(site, first))
                if now - first > self.start_timeout:
                    self._drop(site, f"it was not ready within {self.start_timeout:g} s", leave)
                elif site in out_before and silent > self.calls.timeout:
                    self._drop(site, f"it gave no sign of life within {self.calls.timeout:g} s", leave)
            if self._waiting and now - asked >= self.calls.timeout / 2:
                asked = time.monotonic()
                self._ask_again(leave)
            self.calls.over.wait(_PAUSE)
        return sorted(self.ready)

    def _ask_again(self, leave: Leave) -> None:
        """Ask those that are ready whether they still are."""
        _, failures = self.calls.exchange(dict.fromkeys(sorted(self.ready), self.blank))
        for site, failure in sorted(failures.items()):
            self.ready.discard(site)
            if failure.alive:
                self._waiting.add(site)
            else:
                leave(site, failure.why)

    def _drop(self, site: str, why: str, leave: Leave) -> None:
        self._waiting.discard(site)
        leave(site, why)
