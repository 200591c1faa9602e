"""A whole federation in one process, site after site, from the same job, parts and seeds as FLARE runs.

For comparing many rules on many seeds, where the start of processes and the waiting for tasks would cost more than the
training. A test holds it equal to FLARE's simulator.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedseg.contract.protocol import STEPS
from fedseg.contract.report import job_fields
from fedseg.contract.shapes import update_shapes
from fedseg.contract.update import Update
from fedseg.data.datalist import Datalist
from fedseg.errors import AbortedError, FedsegError, UsageError
from fedseg.filters.base import hooks_of, own_names
from fedseg.filters.context import SiteContext, patients_of
from fedseg.filters.restore import restore
from fedseg.jobs.job import Job
from fedseg.messages.sizes import message_size
from fedseg.messages.updates import write_update
from fedseg.networks.weights import Arrays
from fedseg.site.profile import SiteProfile
from fedseg.site.state import SiteState
from fedseg.training.site_round import site_round
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from fedseg.workflows.run.acceptance import read_update
from fedseg.workflows.run.checkpoint import Checkpoints
from fedseg.workflows.run.run_model import RunPlace
from fedseg.workflows.run.scores import describe_round, summarise_final
from fedseg.workflows.run.site_selection import SiteFacts
from fedseg.workflows.run.weighted_model import WeightedModel

Tamper = Callable[[str, int, Arrays], Arrays]


class InProcessFederation:
    """Sites, rule and rounds of a job, without FLARE's processes and messages.

    A site that refuses a round (its data, its loss, its update) is left out of it and named; any other error ends the
    run, since it would be an error of the program. Updates go through the job's filters, and bytes are those of the
    messages that FLARE would send. Time limits, minimum numbers of sites and stopping rules are not asked. Without a
    ``state`` folder a site that failed in a round goes on with the optimizer as the failure left it.

    Attributes:
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
        """Build sites and rule.

        Args:
            job: a checked job.
            datalists: the cases of each site.
            state: folder for the sites' states; None keeps optimizers in memory and hooks in their objects.
            cache: folder for prepared cases, shared by all sites (``cache: disk``).
            tamper: changes an update on its way, called with site, round and arrays: attacks and failures of tests.

        Raises:
            UsageError: the job encrypts or splits the network, or carries its model from site to site: this loop has
                no such rounds.
        """
        workflow = job.build_workflow()
        if not isinstance(workflow.model, WeightedModel):
            raise UsageError(f"{job.name}: jobs with such rounds run with `fedseg simulate`, not in one process.")
        self.plan = job.check()
        self.job_name = job.name
        self._filters = {site: job.build_filters() for site in datalists}
        self._shapes = update_shapes(self.plan)
        private, frozen = own_names(job.build_filters(), self.plan)
        self._scratch = tempfile.TemporaryDirectory() if state is None else None
        kept = state if state is not None else Path(self._scratch.name)  # type: ignore[union-attr]
        self._profiles = {site: _profile(kept, site) for site in datalists}
        self.model, self.selection, self.total_rounds = workflow.model, workflow.selection, workflow.settings.num_rounds
        self._report_fields = job_fields(job.client)
        self.tamper = tamper
        self.run_id = run_id = uuid.uuid4().hex
        self.trainers = {
            site: SiteTrainer(
                self.plan,
                site,
                datalists[site],
                TrainerSetup(
                    state=SiteState(state / site, run_id) if state is not None else None,
                    hooks=[*job.build_hooks(), *hooks_of(self._filters[site])],
                    private=private,
                    frozen=frozen,
                    simulated=True,
                    cache=cache,
                ),
            )
            for site in sorted(datalists)
        }
        torch.set_num_threads(self.plan.training.threads)
        self.rounds: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.sites = {site: SiteFacts(len(t.training_cases)) for site, t in self.trainers.items()}
        self.totals: dict[str, float] = {}
        for trainer in self.trainers.values():
            for name, value in trainer.statistics().items():
                self.totals[name] = self.totals.get(name, 0.0) + float(value)
        self.model.load(self.plan, RunPlace(kept, kept, job.initial), Checkpoints(kept / run_id))
        self.model.start(len(self.trainers))

    def run(self, on_round: Callable[[dict[str, Any]], None] = lambda entry: None) -> None:
        """All rounds that are left; ``on_round`` gets each round's entry."""
        while len(self.rounds) < self.total_rounds:
            on_round(self.run_round())

    def run_round(self) -> dict[str, Any]:
        """One round; returns its entry.

        Raises:
            FedsegError: no site gave an update, or the rule could not combine them.
        """
        start, number = time.perf_counter(), len(self.rounds)
        chosen = self.selection.select(dict(self.sites), self.plan.seed, number)
        self.model.begin_round()
        outgoing = self.model.outgoing(None)
        down = message_size(FLModelUtils.to_shareable(FLModel(params_type=ParamsType.FULL, params=outgoing)))
        traffic: dict[str, tuple[int, int]] = {}
        for site in chosen.sites:
            try:
                trainer, context = self.trainers[site], self._context(site, number)
                for item in self._filters[site]:
                    item.before_task(context)
                update, report = site_round(trainer, outgoing, number, self.total_rounds, self.totals)
                if self.tamper is not None:
                    update = self.tamper(site, number, update)
                sent = Update(update, report)
                for item in self._filters[site]:
                    sent = item.run(sent, context)
                traffic[site] = (message_size(write_update(sent, Shareable())), down)
                update = restore(sent, self._shapes).arrays
                meta = {"client_name": site, **sent.report.to_meta(), STEPS: [dict(step) for step in sent.steps]}
                answer = FLModel(params_type=ParamsType.DIFF, params=update, meta=meta)
                self.model.accept_update(site, read_update(site, answer, self._report_fields))
            except AbortedError:
                raise
            except FedsegError as error:
                self.events.append({"round": number, "site": site, "what": str(error)})
        self.model.finish_round()
        for site, report in self.model.reports.items():
            self.sites[site] = replace(self.sites[site], seconds=report.seconds)
        entry = describe_round(number, time.perf_counter() - start, self.model, traffic, chosen)
        self.rounds.append(entry)
        return entry

    def _context(self, site: str, number: int) -> SiteContext:
        """What the filters of a site know of a round."""
        trainer = self.trainers[site]
        patients = patients_of(trainer.datalist)
        profile = self._profiles[site]
        return SiteContext(site, self.job_name, self.plan, self.run_id, number, profile, patients, trainer=trainer)

    def evaluate(self, distances: bool = True) -> dict[str, Any]:
        """Score the present model on every site's final split; the form of ``final`` in ``summary.json``."""
        weights = self.model.weights
        last = len(self.rounds) - 1
        return score_sites(self.trainers, lambda site: self.trainers[site].personal(weights), last, distances)


def score_sites(
    trainers: Mapping[str, SiteTrainer], weights: Callable[[str], Arrays], last_round: int, distances: bool
) -> dict[str, Any]:
    """Score each site's model on its final split; the form of ``final`` in ``summary.json``.

    Args:
        trainers: by site.
        weights: of the model that a site uses.
        last_round: after which the models are these.
        distances: also HD95, which takes longer.
    """
    parts = {}
    for site, trainer in trainers.items():
        split = trainer.datalist.final_split
        scored = trainer.validate(weights(site), split, distances)
        parts[site] = {"split": split, **trainer.objective.summarise([case.score for case in scored])}
    return summarise_final(parts, last_round)


def _profile(state: Path, site: str) -> SiteProfile:
    folder = state / site
    return SiteProfile({}, folder, folder / "cache", ledger=folder / "ledger", simulated=True)
