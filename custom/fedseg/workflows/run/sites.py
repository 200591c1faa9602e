"""The port to the sites of a run: the only way in which a run reaches them, whatever carries its messages."""

from __future__ import annotations

import copy
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.contract.protocol import RUN_ID
from fedseg.errors import FedsegError, RefusalError
from fedseg.messages.calls.call import Call
from fedseg.messages.calls.caller import Failure

logger = logging.getLogger(__name__)
Message: TypeAlias = FLModel | Mapping[str, FLModel]
"""One message for all sites, or one for each."""
Accept = Callable[[str, FLModel], object]
"""Gets a site's name and its answer; an error that it raises leaves the answer out, and is noted by the site's name."""
Receive = Callable[[str, FLModel | RefusalError], bool]
"""Gets a site's name and its answer, or why it refused; says whether the answer was accepted."""


class Calls(Protocol):
    """Direct calls to sites while they work on a task; see ``messages.calls.caller.DirectCalls``.

    Attributes:
        timeout: seconds that an answer may take.
        over: set once nobody waits for answers any more.
        up, down: bytes that came from each site, and went to it.
    """

    timeout: float
    over: threading.Event
    up: dict[str, int]
    down: dict[str, int]

    def exchange(
        self, calls: Mapping[str, Call], timeout: float | None = None
    ) -> tuple[dict[str, Call], dict[str, Failure]]:
        """Send a call to each site; the answers, and of each other site why there is none."""

    def tell(self, calls: Mapping[str, Call]) -> None:
        """Send calls without waiting for answers."""


@dataclass(frozen=True)
class Conversation:
    """A task during which the sites that work on it are called directly.

    Attributes:
        task, message, sites, timeout, accept, refused: see ``Sites.ask``.
        talk: makes the calls while the task runs, perhaps in another thread. It returns the sites whose answers are
            still needed; the task ends when these have answered. Its errors are passed on.
        call_timeout: seconds that a site may take to answer a call.
    """

    task: str
    message: Message
    sites: Sequence[str]
    timeout: int
    accept: Accept
    refused: str
    talk: Callable[[Calls], Collection[str]]
    call_timeout: float

    @property
    def asked(self) -> tuple[str, Message, Sequence[str], int, Accept, str]:
        """The arguments of ``Sites.ask``."""
        return self.task, self.message, self.sites, self.timeout, self.accept, self.refused


class Sites(ABC):
    """Asks sites, and notes by name who fails or stays silent; a failed answer never ends the run by itself.

    What is common to all ways of asking stands here: who is asked, which answers count, what is noted. A subclass
    carries messages: ``workflows.run.flare_sites`` with FLARE, ``simulation`` in one process, and the tests
    by a script. It implements ``connected``, ``deliver``, ``post``, ``wait`` and ``converse``, and ``absence`` where a
    site can be missing.

    >>> class Two(Sites):
    ...     def connected(self):
    ...         return ["a", "b"]
    ...     def deliver(self, task, message, sites, timeout, receive):
    ...         receive("a", FLModel(metrics={"cases": 3}))
    ...         receive("b", RefusalError("data", "No cases."))
    ...     post = wait = converse = None
    >>> sites, noted = Two(), []
    >>> sites.note = lambda site, what: noted.append((site, what))
    >>> answers = sites.ask("prepare", FLModel(metrics={"prepare": 1}), sites.connected())
    >>> answers["a"].metrics, noted
    ({'cases': 3}, [('b', 'data: No cases.')])

    Attributes:
        run_id: of the run; travels with every task.
        note: called with a site and what went wrong there; the run sets it.
        asked: the sites that work on the task at hand; empty between tasks.
        heard: the sites that have answered the task at hand, or the last one, in whatever way.
        refusals: of these, who refused, and for which reason.
        lock: held while an answer is accepted.
        traffic: bytes up and down of each site, added up over all tasks since the run emptied it.
    """

    def __init__(self) -> None:
        self.run_id = ""
        self.note: Callable[[str, str], None] = lambda site, what: logger.warning("%s: %s", site, what)
        self.asked: list[str] = []
        self.heard: set[str] = set()
        self.refusals: dict[str, str] = {}
        self.traffic: dict[str, tuple[int, int]] = {}
        self._missing: set[str] = set()
        self.lock = threading.Lock()

    # ------------------------------------------------------------------ what a run calls

    def ask(
        self,
        task: str,
        message: Message,
        sites: Sequence[str],
        timeout: int = 0,
        accept: Accept | None = None,
        refused: str = "left out",
    ) -> dict[str, FLModel]:
        """Send a task and wait for the answers. Sites that are absent are not asked, and not waited for.

        Args:
            task: name of the task.
            message: what it carries, for all sites or for each its own; the run's id is added to its meta.
            sites: who is asked.
            timeout: seconds after which the wait ends without those who have not answered; 0 waits for all that are
                there.
            accept: gets each answer as it arrives, one after the other.
            refused: what is noted before the text of an error of ``accept``; empty for the text alone.

        Returns:
            The accepted answers by site, without their arrays.

        Raises:
            AbortedError: the job was aborted meanwhile.
        """
        self.heard, self.refusals = set(), {}
        asked = self.present(sites)
        if not asked:
            return {}
        asking = _Asking(self, accept, refused)
        self.asked = asked
        try:
            if isinstance(message, Mapping):
                self._deliver_each(task, message, asked, timeout, asking.receive)
            else:
                self.deliver(task, self._of_run(message), asked, timeout, asking.receive)
        finally:
            self.asked = []
            asking.close()
        for site in asked:
            if site not in self.heard:
                self.note_silence(site, task, timeout)
            elif site not in asking.judged:
                self.note(site, f"sent an answer to the task {task} that cannot be read")
        return asking.answers

    def send(self, task: str, message: FLModel, site: str, accept: Accept, refused: str = "left out") -> Sent:
        """Send a task to one site without waiting. See ``ask``, and ``wait``.

        Its answer counts whenever it comes: ``accept`` may be called at any time, also between rounds.
        """
        asking = _Asking(self, accept, refused)
        return Sent(site, asking, self.post(task, self._of_run(message), site, asking.judge))

    def try_accept(self, site: str, answer: FLModel, accept: Accept, refused: str) -> str | None:
        """Have an answer accepted; why it is left out, None if it is not. See ``ask``."""
        try:
            accept(site, answer)
        except FedsegError as error:
            return f"{refused}: {error}" if refused else str(error)
        except Exception as error:
            # A program error; what carries the message would swallow it, and with it the site's name.
            logger.warning("The answer of %s could not be accepted", site, exc_info=True)
            return f"{refused}: {type(error).__name__} while it was taken"
        return None

    def absence(self, site: str) -> str | None:
        """Why nothing can be expected of a site now, as the end of a sentence; None if something can."""
        return None

    def present(self, sites: Sequence[str]) -> list[str]:
        """Those of whom something can be expected; who is missing was noted before, and who is back is noted now."""
        for site in sorted(self._missing & set(sites)):
            if self.absence(site) is None:
                self._missing.discard(site)
                self.note(site, "is heard of again, and is asked again")
        return [site for site in sites if site not in self._missing]

    def note_silence(self, site: str, task: str, timeout: int = 0) -> None:
        """Note that a site did not answer a task, and why, where it is absent."""
        if (why := self.absence(site)) is not None:
            self._missing.add(site)
            self.note(site, f"did not answer the task {task}: {why}; it is left out until it is heard of again")
        else:
            self.note(site, f"did not answer the task {task}" + (f" within {timeout} s" if timeout else ""))

    def progress(self) -> dict[str, list[str]]:
        """Of the sites that were asked now, those that have ``answered``, and for whom the run is ``waiting``."""
        asked, heard = self.asked, set(self.heard)
        waiting = [site for site in asked if site not in heard and self.absence(site) is None]
        return {"answered": [site for site in asked if site in heard], "waiting": waiting}

    @abstractmethod
    def connected(self) -> list[str]:
        """Names of the sites that are connected now, sorted."""

    @abstractmethod
    def converse(self, conversation: Conversation) -> None:
        """Ask sites, and call them directly while they work on the task; the bytes of both are counted."""

    @abstractmethod
    def wait(self, enough: Callable[[], bool], timeout: int = 0) -> None:
        """Let answers to tasks that were sent come in, until there are enough.

        Args:
            enough: asked after each answer; when no site can answer any more, the wait ends too.
            timeout: seconds after which the wait ends; 0 for none.

        Raises:
            AbortedError: the job was aborted meanwhile.
        """

    def await_return(self, sites: Sequence[str], timeout: int) -> None:
        """Wait until one of these sites, which are all absent, is heard of; not where no site can come back.

        Args:
            sites: who may come back.
            timeout: seconds after which the wait ends.

        Raises:
            AbortedError: the job was aborted meanwhile.
        """
        return

    # ------------------------------------------------------------------ what a subclass does

    @abstractmethod
    def deliver(self, task: str, message: FLModel, sites: list[str], timeout: int, receive: Receive) -> None:
        """Bring a task to sites, and their answers to ``receive``, until all have answered or none can be expected.

        Raises:
            AbortedError: the job was aborted meanwhile.
        """

    @abstractmethod
    def post(self, task: str, message: FLModel, site: str, receive: Receive) -> Callable[[], None]:
        """Bring a task to one site; its answer goes to ``receive`` whenever it comes. Gives what withdraws the task."""

    def count(self, site: str, up: int, down: int) -> None:
        """Add bytes that came from a site, and went to it; a subclass calls it for each answer."""
        before = self.traffic.get(site, (0, 0))
        self.traffic[site] = before[0] + up, before[1] + down

    # ------------------------------------------------------------------ what is noted

    def _deliver_each(
        self, task: str, messages: Mapping[str, FLModel], sites: list[str], timeout: int, receive: Receive
    ) -> None:
        """Bring each site a message of its own."""
        withdraw = [self.post(task, self._of_run(messages[site]), site, receive) for site in sites]
        try:
            self.wait(lambda: self.heard >= set(sites), timeout)
        finally:
            for each in withdraw:
                each()

    def _of_run(self, message: FLModel) -> FLModel:
        message.meta = {**(message.meta or {}), RUN_ID: self.run_id}
        return message


class _Asking:
    """A task that sites work on: which answers to it count, and what is noted of the others.

    Attributes:
        answers: those that were accepted, without their arrays.
        judged: the sites whose answers were accepted or noted.
    """

    def __init__(self, sites: Sites, accept: Accept | None, refused: str) -> None:
        self._sites, self._accept, self._refused, self._open = sites, accept, refused, True
        self.lock = sites.lock
        self.answers: dict[str, FLModel] = {}
        self.judged: set[str] = set()

    def close(self) -> None:
        """Let no further answer count."""
        with self._sites.lock:
            self._open = False

    def receive(self, site: str, answer: FLModel | RefusalError) -> bool:
        """Judge the answer of a site that is waited for."""
        self._sites.heard.add(site)
        return self.judge(site, answer)

    def judge(self, site: str, answer: FLModel | RefusalError) -> bool:
        """Have an answer accepted, or note why it is left out."""
        # An answer that arrives while the wait ends must not change a round that is being summed up.
        with self._sites.lock:
            # Of two answers to one task the first counts, whatever carries them.
            if not self._open or site in self.judged:
                return False
            self.judged.add(site)
            why = self._why_not(site, answer)
            if why is not None:
                self._sites.note(site, why)
            return why is None

    def _why_not(self, site: str, answer: FLModel | RefusalError) -> str | None:
        """Why an answer is left out; None if it was accepted."""
        if isinstance(answer, RefusalError):
            self._sites.refusals[site] = answer.reason
            return f"{answer.reason}: {answer}"
        why = None if self._accept is None else self._sites.try_accept(site, answer, self._accept, self._refused)
        if why is not None:
            return why
        self.answers[site] = FLModel(metrics=answer.metrics or {"taken": 1.0}, meta=answer.meta)
        return None


class Sent:
    """A task that was sent to one site; see ``Sites.send``."""

    def __init__(self, site: str, asking: _Asking, withdraw: Callable[[], None]) -> None:
        self._site, self._asking, self._withdraw = site, asking, withdraw

    @property
    def answered(self) -> bool:
        """Whether the site has answered, also by a refusal; ``accept`` has returned then."""
        with self._asking.lock:
            return self._site in self._asking.judged

    def withdraw(self) -> None:
        """Take the task back; no answer to it counts any more."""
        self._asking.close()
        self._withdraw()


def single_messages(message: Message) -> list[FLModel]:
    """The one message for all sites, or those of all sites."""
    return list(message.values()) if isinstance(message, Mapping) else [message]


def message_for_each(message: Message, sites: Sequence[str]) -> dict[str, FLModel]:
    """A message for each site, with a meta of its own; the arrays are those of the one message, not copied."""
    given = {site: copy.copy(message[site] if isinstance(message, Mapping) else message) for site in sites}
    for each in given.values():
        each.meta = dict(each.meta or {})
    return given
