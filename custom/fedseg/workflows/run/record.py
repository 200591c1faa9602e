"""What a run leaves at the server: its record, models with their provenance, results, and events as they happen."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from fedseg.contract.plan import Plan
from fedseg.errors import FedsegError
from fedseg.files.arrays import contiguous
from fedseg.files.digest import model_digest
from fedseg.files.documents import write_json
from fedseg.files.full_disk import is_full
from fedseg.files.hash_chain_check import Entry
from fedseg.models.model_file import write_model
from fedseg.models.note import ModelNote, replaced_note
from fedseg.networks.weights import Arrays
from fedseg.provenance.run_log import RunLog
from fedseg.version import versions

logger = logging.getLogger(__name__)
FOLDER = "fedseg"
# In the notes of a round: for each site the rounds that ended since it received the model that it trained.
STALENESS = "staleness"
# Of updates whose model another start of the server had sent: that start.
STARTS = "starts"
PROGRESS_FILE = "progress.jsonl"
RESULTS_FILE = "results.json"
LAST_MODEL = "last.safetensors"
BEST_MODEL = "best.safetensors"
AVERAGE_MODEL = "average.safetensors"
# Of one site in one round.
_MOST_NOTES = 50
# Events that stand in the run's record too: who was asked, who accepted, what went wrong where, and how it ended.
_RECORDED = ("prepare", "accepted", "site", "stopped", "finished")


class RunRecord:
    """The server's folder of one run, and its record, which lies where it outlives the job.

    Files are replaced as a whole, so that a crash leaves the one before. ``progress.jsonl`` is for whoever watches, and
    may lack a line; the record may not: a line that cannot be written there ends the run.

    Attributes:
        folder: what the job's download will hold.
        job: name, id, content and submitter of the job, see ``messages.job_facts``; empty where nobody told.
        round: at hand, from 0; -1 outside of rounds.
        evaluating: whether the rounds are over.
        own_arrays: names of arrays that each site has for itself, see ``models.model_file.write_model``.
        events: what went wrong at which site in which round.
    """

    def __init__(
        self,
        folder: Path,
        job: Mapping[str, Any] | None = None,
        on_event: Callable[[dict[str, Any]], object] = lambda event: None,
    ) -> None:
        self.folder, self.job, self._on_event = folder, dict(job or {}), on_event
        self.round, self.evaluating = -1, False
        self.own_arrays: frozenset[str] | None = None
        self.events: list[dict[str, Any]] = []
        self._noted = Counter[tuple[str, int]]()
        self._log: RunLog | None = None
        # Of each model after a round the latest line that names it: number and hash.
        self._lines: dict[tuple[str, int], tuple[int, str]] = {}
        # Who took part in each round of the branch that is followed.
        self._sites: dict[int, set[str]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def beside(self, name: str) -> RunRecord:
        """The record of another run of the same job, in a folder of this one."""
        other = RunRecord(self.folder / name, self.job, self._on_event)
        other.own_arrays = self.own_arrays
        return other

    def keep_in(self, log: RunLog) -> None:
        """From now on, write the run's record there; what a former start of the run wrote is gone on with.

        Raises:
            RecordError: it was changed, is of another run, or cannot be read.
        """
        self._log = log
        for entry in log.entries():
            self._learn(entry)

    def append(self, kind: str, **details: Any) -> None:
        """Add a line to the run's record, before what it tells of takes effect.

        Raises:
            RecordError: it cannot be written; the run must not go on.
        """
        if self._log is not None:
            self._learn(self._log.append(kind, **details))

    def _learn(self, entry: Entry) -> None:
        """Remember which line names a model, and who took part; a run that goes back forgets the rounds after."""
        if "model" in entry and "round" in entry:
            self._lines[entry["model"], entry["round"]] = entry["number"], entry["hash"]
        if entry["kind"] == "round":
            self._sites[entry["round"]] = set(entry["sites"])
        elif entry["kind"] in ("start", "resumed"):
            self._sites = {number: sites for number, sites in self._sites.items() if number <= entry["round"]}

    def names(self, digest: str, round_number: int) -> bool:
        """Whether a line of the record names this model as the one after a round."""
        return (digest, round_number) in self._lines

    def event(self, kind: str, **details: Any) -> None:
        """Tell of an event: in the run's record, if it belongs there, and in ``progress.jsonl``.

        Raises:
            RecordError: see ``enter``. A failure to write ``progress.jsonl`` is logged only.
        """
        if kind in _RECORDED:
            self.append(kind, **details)
        self._progress(kind, details)

    def note_site(self, site: str, what: str) -> None:
        """Remember and write down what went wrong at a site in the round at hand."""
        logger.warning("%s: %s", site, what)
        self._noted[site, self.round] += 1
        if (noted := self._noted[site, self.round]) > _MOST_NOTES:
            # Each is a line that is forced to the disk, and a site may answer tasks that nobody gave it for ever.
            return
        if noted == _MOST_NOTES:
            what = f"{what} (what else goes wrong there in this round is not noted)"
        stage = {"stage": "evaluation"} if self.evaluating else {}
        self.events.append({"round": self.round, "site": site, "what": what, **stage})
        self.event("site", round=self.round, site=site, what=what)

    def _progress(self, kind: str, details: Mapping[str, Any]) -> None:
        line = json.dumps({"time": time.time(), "event": kind, **details}) + "\n"
        try:
            # One write for a line, so that lines of several threads do not mix.
            with (self.folder / PROGRESS_FILE).open("ab", buffering=0) as file:
                file.write(line.encode())
        except OSError as error:
            logger.warning("An event could not be written (%s): %s", error, line)
        self._on_event({"event": kind, **details})

    def finished(self, **details: Any) -> None:
        """Tell that the run is complete, and leave its record beside the results."""
        self.event("finished", **details)
        self.copy_record()

    def failed(self, what: str) -> None:
        """Tell why the run ends; if the record is the reason, it is told elsewhere only."""
        try:
            self.append("failed", what=what)
            self.copy_record()
        except FedsegError as error:
            logger.error("The end of the run does not stand in its record: %s", error)
        self._progress("failed", {"what": what})

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Tell of an error that ends the run before it ends it."""
        try:
            yield
        except FedsegError as error:
            self.failed(str(error))
            raise
        except Exception as error:
            full = "The server's disk is full. Make room on it, then resume the run after its last finished round."
            self.failed(full if is_full(error) else f"An unexpected {type(error).__name__} at the server: {error}")
            raise

    def copy_record(self) -> None:
        """Leave a copy of the record beside the results, so that whoever fetches the job has it."""
        if self._log is not None:
            self._log.copy_to(self.folder)

    def results(self, content: dict[str, Any]) -> None:
        """Write ``results.json``: everything that the server knows so far."""
        self.copy_record()
        write_json(self.folder / RESULTS_FILE, content)

    def model(self, name: str, plan: Plan, weights: Arrays, round_number: int) -> None:
        """Write a model file and its provenance."""
        note = self.note(name, plan, model_digest(weights), round_number)
        with replaced_note(self.folder / name, note):
            write_model(self.folder / name, plan, weights, round_number, self.own_arrays)

    def note(self, name: str, plan: Plan, digest: str, round_number: int) -> ModelNote | None:
        """Where a model comes from, by the latest line of the record that names it; one is added where none does.

        Args:
            name: of the model's file.
            plan: of the job.
            digest: of the model.
            round_number: after which it was made.

        Returns:
            The note; None while there is no record.
        """
        if self._log is None:
            return None
        if not self.names(digest, round_number):
            self.append("model", name=Path(name).stem, round=round_number, model=digest)
        line, line_hash = self._lines[digest, round_number]
        taken = {site for number, sites in self._sites.items() if number <= round_number for site in sites}
        return ModelNote(
            model=digest,
            run_id=self._log.run_id,
            job=str(self.job.get("job", "")),
            job_id=str(self.job.get("job_id", "")),
            round=round_number,
            plan=plan.digest,
            line=line,
            hash=line_hash,
            versions=versions(),
            sites=tuple(sorted(taken)),
        )

    def update(self, round_number: int, name: str, arrays: Arrays) -> None:
        """Keep a site's update, or the global model before aggregation under the name ``global``."""
        folder = self.folder / "updates" / f"round-{round_number:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(contiguous(arrays), folder / f"{name}.safetensors")


def round_line(entry: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the run's record says of a finished round: who took part with how many cases, and who not and why.

    Args:
        entry: of the round, see ``scores.describe_round``.
        events: what went wrong at sites so far.
    """
    noted = {event["site"]: event["what"] for event in events if event["round"] == entry["round"]}
    left_out = {site: why for site, why in entry["selection"].items() if site not in entry["asked"]}
    left_out |= {site: noted.get(site, "no update") for site in entry["asked"] if site not in entry["sites"]}
    sites = {
        site: {"cases": part["num_samples"], "epsilon": part["epsilon"], "privacy": part["privacy"]}
        for site, part in entry["sites"].items()
    }
    for site, late in entry.get("notes", {}).get(STALENESS, {}).items():
        if late:
            sites[site]["trained"] = entry["round"] - late
    for site, start in entry.get("notes", {}).get(STARTS, {}).items():
        sites[site]["start"] = start
    return {"round": entry["round"], "sites": sites, "left_out": left_out}
