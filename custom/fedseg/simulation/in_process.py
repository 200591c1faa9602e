"""A whole federation in one process: the job's own workflow over sites that are method calls away.

Everything but the transport is what runs over FLARE: workflow, executors, filters, guard, states and records. So the
models are the same to the last bit, and so are reports, bytes and the lines of the records.
"""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nvflare.apis.dxo import from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from fedseg.contract.scores import FEWEST, PERSONAL
from fedseg.data.datalist import FILE_NAME, Datalist, write_datalist
from fedseg.errors import UsageError
from fedseg.evaluation.case_intervals import summarise_cases
from fedseg.jobs.job import Job
from fedseg.networks.weights import Arrays
from fedseg.processes import MemoryWatch
from fedseg.simulation.local_sites import LocalSites
from fedseg.simulation.run_folder import (
    LOG,
    MARKER,
    SERVER_FOLDER,
    Event,
    SimulationResult,
    end_run,
    rescue_updates,
    site_environment,
    start_run,
)
from fedseg.training.trainer import SiteTrainer
from fedseg.workflows.peers.model import SwarmModel
from fedseg.workflows.run.flare_workflow import Run
from fedseg.workflows.run.record import RunRecord
from fedseg.workflows.run.scores import summarise_final
from fedseg.workflows.run.training_run import TrainingRun
from fedseg.workflows.run.weighted_model import WeightedModel

logger = logging.getLogger(__name__)
Tamper = Callable[[str, int, Arrays], Arrays]


def simulate_in_process(
    job: Job,
    data: Path,
    out: Path,
    sites: Sequence[str],
    on_event: Callable[[Event], None],
    ledger: Path | None = None,
) -> SimulationResult:
    """Run a job with all its sites in this process; it leaves what ``simulator.simulate`` leaves.

    Args:
        job, data, out, sites, on_event, ledger: see ``simulator.simulate``.

    Raises:
        FedsegError: the run ended without a model; the text names the reason and the log.
    """
    start, watch = time.monotonic(), MemoryWatch(os.getpid())
    start_run(job, out, out / "state", sites)
    try:
        with _log_to(out / LOG):
            local = LocalSites(out / MARKER, out / "workspace", site_environment(data, out / "state", ledger), sites)
            record = RunRecord(out / SERVER_FOLDER, on_event=on_event)
            try:
                with record.failures():
                    load_run(local, record).execute()
            except Exception:
                logger.exception("The run has failed")  # its record says why, from which ``end_run`` has it
            finally:
                local.close()
    finally:
        watch.stop()
        rescue_updates(out)
    results = end_run(job, out, list(sites))
    return SimulationResult(results, time.monotonic() - start, {**watch.peak, "total": watch.peak_total})


@contextmanager
def _log_to(file: Path) -> Iterator[None]:
    """What is logged goes into a file, as that of FLARE's simulator does."""
    handler, root = logging.FileHandler(file, encoding="utf-8"), logging.getLogger()
    handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()


class InProcessFederation:
    """A job in one process, round by round, from Python: for comparing many rules on many seeds.

    Stopping rules are not asked, no model files and no checkpoints are written.

    >>> def first_weights(job, datalists):
    ...     federation = InProcessFederation(job, datalists)
    ...     federation.run(lambda entry: print(entry["round"], entry["val_dice"]))
    ...     return federation.model.weights

    Attributes:
        training: the run, see ``TrainingRun``.
        model: of the run.
        rounds: the entries of the finished rounds, as in ``summary.json``.
        events: what went wrong at which site in which round.
    """

    def __init__(
        self,
        job: Job,
        datalists: Mapping[str, Datalist],
        *,
        state: Path | None = None,
        cache: Path | None = None,
        tamper: Tamper | None = None,
    ) -> None:
        """Lay the job at the sites, and have them accept it.

        Args:
            job: a checked job; it is not changed.
            datalists: the cases of each site.
            state: folder for the states and ledgers of the sites; None keeps them as long as this object.
            cache: folder for prepared cases, shared by all sites (``cache: disk``).
            tamper: changes an update before its filters, called with site, round and arrays: attacks and failures of
                tests.
        """
        self.plan = job.check()
        self._scratch = tempfile.TemporaryDirectory(prefix="fedseg-in-process-")
        out = Path(self._scratch.name)
        state = out / "state" if state is None else state
        for site, datalist in datalists.items():
            write_datalist(datalist, out / "data" / site / FILE_NAME)
            if cache is not None:
                for folder in (cache, state / site):
                    folder.mkdir(parents=True, exist_ok=True)
                (state / site / "cache").symlink_to(cache.resolve(), target_is_directory=True)
        job = copy.deepcopy(job)
        job.workflow["run_id"] = uuid.uuid4().hex
        start_run(job, out, state, sorted(datalists))
        changed = None if tamper is None else partial(_Tampered, tamper)
        environment = site_environment(out / "data", state, None)
        self.local = LocalSites(out / MARKER, out / "workspace", environment, sorted(datalists), changed)
        self.training = _training(load_run(self.local, RunRecord(out / SERVER_FOLDER)))
        self.training.prepare()
        self.model, self.rounds = self.training.state.model, self.training.state.rounds
        self.events, self.run_id = self.training.state.events, self.local.run_id

    @property
    def trainers(self) -> dict[str, SiteTrainer]:
        """By site."""
        return {name: site.trainer for name, site in self.local.sites.items()}

    def run(self, on_round: Callable[[dict[str, Any]], None] = lambda entry: None) -> None:
        """All rounds that are left; ``on_round`` gets each round's entry."""
        while len(self.rounds) < self.training.total_rounds:
            on_round(self.run_round())

    def run_round(self) -> dict[str, Any]:
        """One round; returns its entry.

        Raises:
            FedsegError: too few sites gave an update, or the rule could not combine them.
        """
        self.training.state.record.round = len(self.rounds)
        self.training.run_round()
        return self.rounds[-1]

    @property
    def weights(self) -> Arrays:
        """Of the present model: the server's, or in a swarm that of the first site that has it.

        Raises:
            UsageError: nobody has weights of the whole network, as in encrypted and in split training.
        """
        if isinstance(self.model, WeightedModel):
            return self.model.weights
        if isinstance(self.model, SwarmModel):
            digest = self.model.digest_after(len(self.rounds) - 1)
            return self._held_at(list(self.local.sites), digest)
        raise UsageError("Only a model whose weights the server or a site of a swarm has can be scored between rounds.")

    def _held_at(self, sites: Sequence[str], digest: str) -> Arrays:
        """The model with a digest, from the first of these sites that has it."""
        for site in sites:
            executor = self.local.sites[site].runner.find_executor(AppConstants.TASK_TRAIN)
            if (found := executor.held(digest)) is not None:
                return dict(found)
        raise UsageError("No site has the model after the last round.")

    def evaluate(self, distances: bool = True) -> dict[str, Any]:
        """Score the present model on every site's final split; the form of ``final`` in ``summary.json``.

        Args:
            distances: also the scores that take longer: all but Dice and volumes.

        Raises:
            UsageError: see ``weights``.
        """
        last, own = len(self.rounds) - 1, self.model.own_models()
        if own:
            models = {site: self._held_at([site], own.get(site, self.model.digest_after(-1))) for site in self.trainers}
            return score_sites(self.trainers, lambda site: self.trainers[site].own_model(models[site]), last, distances)
        weights = self.weights
        return score_sites(self.trainers, lambda site: self.trainers[site].own_model(weights), last, distances)


def score_sites(
    trainers: Mapping[str, SiteTrainer], weights: Callable[[str], Arrays], last_round: int, distances: bool
) -> dict[str, Any]:
    """Score each site's model on its final split; the form of ``final`` in ``summary.json``.

    Args:
        trainers: by site.
        weights: of the model that a site uses.
        last_round: after which the models are these.
        distances: also the scores that take longer: all but Dice and volumes.
    """
    parts = {}
    kind = next(iter(trainers.values())).objective
    for site, trainer in trainers.items():
        split = trainer.datalist.final_split
        models = {"": weights(site), PERSONAL: trainer.personal_model()}
        scored = {name: trainer.validate(w, split, distances) for name, w in models.items() if w is not None}
        found = {name: summarise_cases(kind, cases, FEWEST) for name, cases in scored.items()}
        parts[site] = {"split": split, **found.pop(""), **found}
    return summarise_final(parts, last_round, kind)


def load_run(local: LocalSites, record: RunRecord) -> Run:
    """The run of a job over sites in this process."""
    with local.surroundings(), local.server.new_context() as fl_ctx:
        return local.server.job.build_workflow().load(local, record, fl_ctx)


def _training(run: Run) -> TrainingRun:
    if not isinstance(run, TrainingRun):
        raise UsageError("Only a job that trains has rounds. `fedseg simulate --in-process` runs the others.")
    return run


class _Tampered(Filter):
    """Changes a site's updates before all other filters."""

    def __init__(self, change: Tamper, site: str) -> None:
        super().__init__()
        self._change, self._site = change, site

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """See FLARE's ``Filter``."""
        if shareable.get_return_code(ReturnCode.OK) != ReturnCode.OK:
            return shareable
        dxo = from_shareable(shareable)
        dxo.data = self._change(self._site, int(shareable.get_header(AppConstants.CURRENT_ROUND)), dxo.data)
        return dxo.update_shareable(shareable)
