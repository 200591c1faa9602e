"""A run at the server between its rounds: models, checkpoints, record and results; how a stopped one is continued."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedseg.contract.plan import Plan
from fedseg.contract.protocol import EVALUATE, FRESH, KEEP, LAST, LINEAGE, START, TOTALS
from fedseg.contract.report import ReportField
from fedseg.contract.round_numbers import listed, nth
from fedseg.contract.round_settings import RoundSettings
from fedseg.files.digest import model_digest
from fedseg.models.model_file import fitting_weights
from fedseg.provenance.run_log import RECORD_FILE, SERVER_SIDE, RunLog
from fedseg.version import __version__
from fedseg.workflows.run.checkpoint import CheckpointError, Checkpoints
from fedseg.workflows.run.participants import Participants
from fedseg.workflows.run.record import AVERAGE_MODEL, STALENESS, RunRecord
from fedseg.workflows.run.run_model import RunModel, RunPlace
from fedseg.workflows.run.selection_base import SiteFacts, SiteSelection
from fedseg.workflows.run.settings import RunSettings
from fedseg.workflows.run.sites import Sites


class RunState:
    """All that a run knows; what it hands to its round protocol.

    Attributes:
        settings: of the run.
        model, selection: the model, and who is asked; both remember former rounds.
        sites: the port to the sites.
        report_fields: what components of the job report beside the fixed fields.
        personal: the plan of the models that sites have for themselves; None for the job's.
        record: where events are written as they happen.
        participants: the sites that accepted the job.
        rounds: entries of the finished rounds, see ``scores.describe_round``.
        site_settings: what holds at single sites in the round at hand in the place of its settings.
        totals: sums of what sites stated when they accepted the job.
        best_round: the round after which the best model so far was made; None before it is known.
        outcome: what the results say of models that were scored after the rounds.
        place: the server's folders.
        stopped: the round and the reason where a stopping rule ended the training.
        start_id: of this start of the server; ``lineage`` names for each finished round the start that made it.
    """

    plan: Plan
    report_fields: Mapping[str, ReportField]
    checkpoints: Checkpoints
    place: RunPlace

    def __init__(
        self, settings: RunSettings, model: RunModel, selection: SiteSelection, sites: Sites, record: RunRecord
    ) -> None:
        self.settings, self.model, self.selection, self.sites, self.record = settings, model, selection, sites, record
        self.participants = Participants(sites, record.event)
        sites.run_id, sites.note = settings.run_id or sites.run_id or uuid.uuid4().hex, record.note_site
        self.rounds: list[dict[str, Any]] = []
        self.site_settings: Mapping[str, RoundSettings] = {}
        self.totals: dict[str, float] = {}
        self.best_round: int | None = None
        self.personal: Plan | None = None
        self.stopped: dict[str, Any] | None = None
        self.outcome: dict[str, Any] = {}
        self.start_id = uuid.uuid4().hex[:12]
        self.lineage: list[str] = []
        self._start = time.time()
        self._hours_before = 0.0

    @property
    def facts(self) -> dict[str, SiteFacts]:
        """What is known of every site that accepted the job."""
        return self.participants.facts

    @property
    def number(self) -> int:
        """Of the round at hand, from 0; -1 outside of rounds."""
        return self.record.round

    @property
    def events(self) -> list[dict[str, Any]]:
        """What went wrong at which site in which round."""
        return self.record.events

    def note(self, site: str, what: str) -> None:
        """Remember and write down what went wrong at a site."""
        self.record.note_site(site, what)

    def hours(self) -> float:
        """Time that the run has taken, in all of its starts."""
        return self._hours_before + (time.time() - self._start) / 3600

    def round_meta(self) -> dict[str, Any]:
        """What sites are told with every round."""
        return {
            TOTALS: self.totals,
            KEEP: self.settings.keep_checkpoints,
            START: self.start_id,
            LINEAGE: list(self.lineage),  # a task may be sent before a round ends and done after it
            **self.kept_meta(),
        }

    def kept_meta(self) -> dict[str, Any]:
        """What sites must have kept of former rounds: of each the last one that it trained in."""
        last: dict[str, int] = {}
        for entry in self.rounds:
            late = entry.get("notes", {}).get(STALENESS, {})
            last |= {site: max(last.get(site, -1), entry["round"] - late.get(site, 0)) for site in entry["sites"]}
        # A site whose process was started anew must not forget that it is left out.
        asked = {EVALUATE: sorted(self.settings.evaluate_only)} if self.settings.evaluate_only else {}
        return {LAST: [list(pair) for pair in sorted(last.items())], FRESH: self.settings.fresh_states, **asked}

    # ------------------------------------------------------------------ start and resumption

    def load(self, plan: Plan, place: RunPlace, report_fields: Mapping[str, ReportField] | None = None) -> None:
        """Start from the plan's seeded network, from a model file, or from the run's checkpoint where there is one.

        Args:
            plan: the job's plan.
            place: the server's folders; checkpoints lie in a folder of its state folder that is named after the run.
            report_fields: what components of the job report beside the fixed fields.
        """
        self.report_fields = report_fields or {}
        self.plan, self._start, run_id, resume = plan, time.time(), self.sites.run_id, self.settings.resume
        self.checkpoints = Checkpoints(place.state / run_id, self.settings.keep_checkpoints)
        self.place = place
        for path in place.models.values():
            fitting_weights(plan, path)  # refused now, and not after all rounds
        self.model.load(plan, place, self.checkpoints)
        self.checkpoints.lock()
        rounds = self.checkpoints.resumable()
        if resume and not rounds:
            raise CheckpointError(f"There is no checkpoint of the run {run_id} at this server to continue from.")
        if rounds and not resume:
            raise CheckpointError(
                f"This server has checkpoints of the run {run_id}: set workflow.resume to true to continue it, or "
                "give another run_id for a new run."
            )
        if resume:
            chosen = self.settings.resume_round
            self._resume(rounds[-1] if chosen is None else chosen)
        self._open_record()
        if self.model.remark:
            self.note("server", self.model.remark)

    def _resume(self, number: int) -> None:
        if number not in self.checkpoints.resumable():
            raise CheckpointError(
                f"The run cannot be continued after round {nth(number)}, only after "
                f"{listed(self.checkpoints.resumable())}: sites keep no older states."
            )
        arrays, values = self.checkpoints.load(number)
        for name, now in self._identity().items():
            if values[name] != now:
                raise CheckpointError(
                    f"The checkpoint of round {nth(number)} is of a job with another {name} ({values[name]}, now "
                    f"{now}); continue with the job as it was, or start a new run with another run_id."
                )
        self.model.restore(number, arrays, values["history"])
        self.selection.restore(values["selection_history"])
        self.rounds, self.record.events, self.totals = values["rounds"], values["events"], values["totals"]
        self.best_round, self.lineage = values["best_round"], values["lineage"]
        self.participants.former = values["seconds_of"]
        self._hours_before = values["hours"]
        self.checkpoints.drop_after(number)
        self.record.event("resumed", round=number, run_id=self.sites.run_id)

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a run to continue from a checkpoint."""
        return {
            "version": __version__,
            "plan": self.plan.digest,
            **self.model.identity(),
            "selection": self.selection.describe(),
            "num_rounds": self.settings.num_rounds,
            "model_average": self.settings.model_average,
        }

    def _open_record(self) -> None:
        """Begin the run's record, or continue it, by a line that says who asked for what."""
        log = RunLog(self.checkpoints.folder / RECORD_FILE, SERVER_SIDE, "server", self.sites.run_id)
        self.record.keep_in(log)
        last = len(self.rounds) - 1
        model = self.model.digest_after(last)
        average = [] if self.model.average is None else [model_digest(self.model.average.weights)]
        if self.settings.resume and not all(self.record.names(each, last) for each in (model, *average)):
            raise CheckpointError(
                f"The checkpoint of round {nth(last)} holds another model than the run's record names, or the record "
                "is gone; nobody could tell later where the model comes from. Bring back record and checkpoints as "
                "they were, or start a new run."
            )
        self.record.append(
            "resumed" if self.settings.resume else "start",
            **self.record.job,
            plan=self.plan.digest,
            num_rounds=self.settings.num_rounds,
            start=self.start_id,
            round=last,
            model=model,
        )

    # ------------------------------------------------------------------ what is stored

    def save_checkpoint(self) -> None:
        """Store all that the run continues from after the round at hand."""
        values = {
            **self._identity(),
            "history": self.model.history(),
            "selection_history": self.selection.history(),
            "rounds": self.rounds,
            "events": self.events,
            "totals": self.totals,
            "best_round": self.best_round,
            "lineage": self.lineage,
            "seconds_of": {site: facts.seconds for site, facts in self.facts.items()},
            "hours": self.hours(),
        }
        self.checkpoints.save(self.number, self.model.state(), values)

    def save_model(self, name: str, number: int) -> None:
        """Write the model after a round in place of the one of the same name."""
        self.model.save(self.record, self.plan, name, number, final=False)

    def save_final(self, name: str, number: int) -> dict[str, Any]:
        """Write a model that the run leaves; gives what the results say of it."""
        self.record.append("final", name=Path(name).stem, round=number, model=self.model.digest_after(number))
        return self.model.save(self.record, self.plan, name, number, final=True)

    def save_average(self, number: int) -> dict[str, Any]:
        """Write the average of the models up to a round in place of the one before; gives what the results say of it.

        Nothing where the job keeps none.
        """
        if self.model.average is None:
            return {}
        weights = self.model.average.weights
        if not self.record.names(digest := model_digest(weights), number):
            self.record.append("average", round=number, model=digest)
        self.record.model(AVERAGE_MODEL, self.plan, weights, number)
        return {"model": AVERAGE_MODEL}

    def write_results(self, **parts: Any) -> None:
        """Write everything that is known so far for the summary of the run; ``parts`` are added to the outcome."""
        told = self.participants.answers
        self.outcome |= parts
        content = {
            "run_id": self.sites.run_id,
            "plan": self.plan.to_dict(),
            "num_rounds": self.settings.num_rounds,
            "sites": sorted(self.facts),
            "evaluators": sorted(self.participants.evaluators),
            "cases": {site: dict(told[site].cases) for site in sorted(self.facts)},
            "phantoms": [site for site in sorted(told) if told[site].phantoms],
            "selection": self.selection.describe(),
            "rounds": self.rounds,
            "events": self.events,
            "stopped": self.stopped,
            "seconds": self.hours() * 3600,
            **self.outcome,
        }
        self.record.results(content)
