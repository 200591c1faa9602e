"""A site's own record of what it was asked, received and sent; no line names a patient or a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

from fedseg.contract.protocol import BYTES_UP, MODEL_ID, PREPARE, REASON, START, STEPS, TEXT
from fedseg.contract.report import META_KEY
from fedseg.errors import RefusalError
from fedseg.files.digest import model_digest
from fedseg.messages.replies import refuse
from fedseg.networks.weights import Arrays, split_shared
from fedseg.provenance.run_log import RECORD_FILE, REFUSED_FILE, SITE_SIDE, RecordError, RunLog

logger = logging.getLogger(__name__)


class SiteRecord:
    """Writes a line for each task. It is on the disk before the site continues, and a result leaves after its line.

    A job that is refused before it has a run here stands in one record for all such jobs, since the server chooses run
    ids and could otherwise fill the site's disk with folders.
    """

    def __init__(self) -> None:
        self._log: RunLog | None = None
        self._result: Shareable | None = None
        self._place: dict[str, Any] = {}

    def open(self, folder: Path, site: str) -> None:
        """Write into the record of a run from now on.

        Args:
            folder: the site's folder of the run; its name is the run's id.
            site: name of the site.
        """
        self._log = RunLog(folder / RECORD_FILE, SITE_SIDE, site, folder.name)

    def close(self) -> None:
        """Write into no run's record until the next ``open``."""
        self._log = None

    def accepted(self, facts: Mapping[str, Any], plan: str, cases: Mapping[str, int]) -> None:
        """The site takes part.

        Args:
            facts: see ``job_facts``.
            plan: digest of the plan.
            cases: by split.

        Raises:
            RefusalError: the record cannot be written (reason ``state``).
        """
        self._append("accepted", **facts, plan=plan, cases=dict(cases))

    def received(
        self, weights: Arrays, round_number: int, meta: Mapping[str, Any], cases: int, encrypted: bool
    ) -> None:
        """A model came to be trained.

        Args:
            weights: as the task carried them, decrypted where they came encrypted.
            round_number: from 0.
            meta: of the task.
            cases: training cases that will be used.
            encrypted: whether a filter of this site decrypted the model, and said how the server names it.

        Raises:
            RefusalError: see ``accepted``.
        """
        self._place = {"round": round_number, "start": meta.get(START)}
        self._append("received", task="train", **self._place, **_named(weights, meta, encrypted), cases=cases)

    def lost(self) -> None:
        """The round was trained without what the site had kept of former rounds, which was gone or damaged.

        Raises:
            RefusalError: see ``accepted``.
        """
        self._append("lost", **self._place, what="state of former rounds")

    def called(self, tally: Mapping[str, Any]) -> None:
        """The direct calls of the round have ended.

        What leaves in a call leaves at once; so this line comes after it, and before the result of the round.

        Args:
            tally: see ``CallTally.to_dict``.

        Raises:
            RefusalError: see ``accepted``.
        """
        self._append("called", **self._place, **tally)

    def handed(self, what: str, round_number: int, to: str) -> None:
        """An update or a model is about to go to another site.

        Raises:
            RefusalError: see ``accepted``.
        """
        self._append("handed", what=what, round=round_number, to=to)

    def merged(self, round_number: int, meta: Mapping[str, Any], model: str, updates: Mapping[str, str]) -> None:
        """This site has merged a round.

        Args:
            round_number: from 0.
            meta: of the task.
            model: digest of the merged model.
            updates: digest of each update that is in it, by site.

        Raises:
            RefusalError: see ``accepted``.
        """
        self._append("merged", round=round_number, start=meta.get(START), model=model, updates=dict(updates))

    def scored(
        self, name: str, weights: Arrays, meta: Mapping[str, Any], cases: Mapping[str, int], encrypted: bool
    ) -> None:
        """A model was scored.

        Args:
            name: as the server calls it.
            weights, meta, encrypted: see ``received``.
            cases: number of cases of each split.

        Raises:
            RefusalError: see ``accepted``.
        """
        self._append("scored", name=name, **_named(weights, meta, encrypted), cases=dict(cases))

    def begin(self) -> None:
        """A task came; nothing is known of it yet."""
        self._result, self._place = None, {}

    def belongs_to(self, round_number: int, meta: Mapping[str, Any]) -> None:
        """What is sent next belongs to a round that was received before."""
        self._place = {"round": round_number, "start": meta.get(START)}

    @property
    def result(self) -> Shareable | None:
        """The result that is about to leave; None where it did not come through the filters, or holds an error."""
        found = self._result
        return found if found is not None and found.get_return_code(ReturnCode.OK) == ReturnCode.OK else None

    def leaving(self, result: Shareable) -> None:
        """A result has passed all filters; the site's guard may still empty it."""
        self._result = result

    def sent(self, task: str, state: Path | None, site: str, facts: Callable[[], Mapping[str, Any]]) -> None:
        """What is about to leave, or why nothing does. A result whose line cannot be written is emptied.

        Args:
            task: name of the task.
            state: the site's state folder, for jobs that have no run here; None where it is not known.
            site: name of the site.
            facts: returns those of the job, see ``job_facts``; called where the whole job is refused.
        """
        with self.or_nothing("record"):
            if (result := self.result) is not None:
                self._append("sent", task=task, **self._place, **_content(result))
            else:
                self._refused(task, self._result, state, site, facts)

    @contextmanager
    def or_nothing(self, what: str) -> Iterator[None]:
        """Empty the result where the block fails: FLARE swallows what an event handler raises, and would send it."""
        try:
            yield
        except RefusalError as error:
            self._withhold(error.reason, str(error))
        except BaseException as error:
            logger.exception("The %s could not be written, so nothing left the site", what)
            self._withhold("state", f"An unexpected {type(error).__name__} kept the site from writing its {what}.")

    def _withhold(self, reason: str, text: str) -> None:
        if self._result is not None:
            refuse(self._result, reason, text, headers=True)

    def _refused(
        self,
        task: str,
        result: Shareable | None,
        state: Path | None,
        site: str,
        facts: Callable[[], Mapping[str, Any]],
    ) -> None:
        log = self._log
        if log is None and state is not None:
            log = RunLog(state / REFUSED_FILE, SITE_SIDE, site, "")
        if log is None:
            return
        code, reason, text = ReturnCode.TASK_RESULT_FILTER_ERROR, "filter", "A filter failed, so nothing left."
        if result is not None:
            code, reason, text = (str(result.get_header(key, "")) for key in (ReservedHeaderKey.RC, REASON, TEXT))
        try:
            job = facts() if task == PREPARE or self._log is None else {}
            log.append("refused", **job, task=task, **self._place, code=code, reason=reason, text=text)
        except RecordError as error:
            logger.error("A refusal does not stand in the record: %s", error)

    def _append(self, kind: str, **details: Any) -> None:
        if self._log is None:
            raise RefusalError("state", "The task came before the run's record was opened at this site.")
        try:
            self._log.append(kind, **details)
        except RecordError as error:
            logger.error("%s", error)
            raise RefusalError("state", f"{error} Nothing leaves the site without its line in it.") from None


def _named(weights: Arrays, meta: Mapping[str, Any], encrypted: bool) -> dict[str, str]:
    """The model as the server names it; of an encrypted one the digest of its weights comes beside.

    In a job that does not encrypt, a name in the meta is the server's word only, and is not looked at.
    """
    digest = model_digest(split_shared(weights)[0])
    return {"model": str(meta.get(MODEL_ID)), "weights": digest} if encrypted else {"model": digest}


def _content(result: Shareable) -> dict[str, Any]:
    """What leaves, without a number that was made from images."""
    dxo = from_shareable(result)
    report = dxo.meta.get(META_KEY)
    return {
        "content": DataKind(dxo.data_kind).value,
        "bytes": int(result.get_header(BYTES_UP, 0)),
        "epsilon": report.get("epsilon") if isinstance(report, Mapping) else None,
        "privacy": [dict(step) for step in dxo.meta.get(STEPS) or ()],
    }
