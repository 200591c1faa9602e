"""The loop of a run: prepare, rounds, and a last evaluation of everything that may be used."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.contract.plan import Plan
from fedseg.contract.protocol import SHARE
from fedseg.contract.report import ReportField
from fedseg.contract.round_numbers import nth
from fedseg.errors import FedsegError
from fedseg.memory import give_back
from fedseg.networks.weights import Arrays
from fedseg.workflows.run.acceptance import read_update
from fedseg.workflows.run.cross_site import CrossSiteScoring
from fedseg.workflows.run.last_evaluation import beats_best, conclude, evaluate_run
from fedseg.workflows.run.record import BEST_MODEL, LAST_MODEL, RunRecord, round_line
from fedseg.workflows.run.round_protocol import RoundProtocol, RoundsOver
from fedseg.workflows.run.run_model import RunModel, RunPlace
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.scores import describe_round, validation_scores
from fedseg.workflows.run.selection_base import Selection, SiteSelection
from fedseg.workflows.run.settings import RunSettings
from fedseg.workflows.run.sites import Sites

# Of its events a run tells whoever watches only so many.
SHOWN_EVENTS = 50


class TrainingRun:
    """A training over rounds, whatever a round is and whatever carries its messages.

    1. ``prepare``: every site accepts the job or refuses it with a reason; the others take part. A site that did not
       answer in time is invited again and takes part from the round after its answer.
    2. ``run_rounds``: the protocol collects the updates of the selected sites, the model makes the next one of them. A
       site that fails is named, left out, and asked again in the next round. After every round a checkpoint is written,
       from which a stopped run continues to the last bit.
    3. ``finish``: the last model is scored at every site, and so is the best one where it is another: of two models the
       one with the better mean validation score over the cases of the sites that scored both.

    >>> from pathlib import Path
    >>> from fedseg.aggregators.fedavg import FedAvg
    >>> def simulate(sites, selection, plan, folder):  # sites: a ``Sites``
    ...     run = TrainingRun(RunSettings(3), WeightedModel(FedAvg()), Broadcast(), selection, sites, RunRecord(folder))
    ...     run.run(plan, RunPlace(folder / "state", folder))
    ...     return run.state.rounds

    Attributes:
        state: all that the run knows.
        protocol: how a round goes.
    """

    def __init__(
        self,
        settings: RunSettings,
        model: RunModel,
        protocol: RoundProtocol,
        selection: SiteSelection,
        sites: Sites,
        record: RunRecord,
    ) -> None:
        self.state, self.protocol = RunState(settings, model, selection, sites, record), protocol

    def run(self, plan: Plan, place: RunPlace, report_fields: Mapping[str, ReportField] | None = None) -> None:
        """The whole run; see ``RunState.load``."""
        self.state.load(plan, place, report_fields)
        self.train()

    def execute(self) -> None:
        """The whole run, once its state is loaded; its checkpoints are free for others afterwards."""
        try:
            self.train()
        finally:
            # An error that is remembered somewhere would hold the lock on and on.
            self.state.checkpoints.unlock()

    def train(self) -> None:
        """See ``execute``; the checkpoints stay locked."""
        self.prepare()
        self.run_rounds()
        self.finish()

    def prepare(self) -> None:
        """Ask every connected site to take part.

        Raises:
            FedsegError: too few do.
        """
        run, settings = self.state, self.state.settings
        asked_to_evaluate = settings.evaluate_only or ()
        accepted = run.participants.prepare(run.plan.digest, settings.prepare_seconds, asked_to_evaluate)
        if len(accepted) < settings.min_sites and (settings.num_rounds or not run.participants.evaluators):
            raise FedsegError(self._too_few_accepted(sorted(accepted)))
        if not settings.num_rounds:
            return
        if run.rounds:
            for _ in set(accepted) - set(run.participants.former):
                run.model.add_site()
        else:
            for answer in accepted.values():
                for name, value in answer.statistics.items():
                    run.totals[name] = run.totals.get(name, 0.0) + value
            run.model.start(len(accepted))
            if run.model.before_rounds:
                self._share()
        self.protocol.begin(run)

    def _too_few_accepted(self, accepted: Sequence[str]) -> str:
        """Why a run cannot begin."""
        run, scoring = self.state, sorted(self.state.participants.evaluators)
        alone = (
            f"No site but {', '.join((*accepted, *scoring))} answered." if accepted or scoring else "No site answered."
        )
        reasons = "; ".join(f"{e['site']}: {e['what']}" for e in run.events) or alone
        only = f" {', '.join(scoring)} score(s) models only." if scoring else ""
        return f"{len(accepted)} site(s) accepted the job, but {run.settings.min_sites} must. {reasons}{only}"

    def run_rounds(self) -> None:
        """All rounds that are still to run, as long as no stopping rule speaks.

        Sites score what they receive, so a round tells the score of the model that the round before made; the score of
        the last one comes with the last evaluation.
        """
        run = self.state
        while (number := len(run.rounds)) < self.total_rounds:
            reason = run.settings.stopping.reason(run.rounds, run.hours(), run.plan.objective.primary)
            if reason is not None:
                self._stop(reason)
                break
            run.record.round = number
            try:
                self.run_round()
            except RoundsOver as over:
                if not run.rounds:
                    raise
                self._stop(str(over))
                break
            if number > 0 and beats_best(run, validation_scores(run.rounds[number], run.plan.objective.primary)):
                run.best_round = number - 1
                run.save_model(BEST_MODEL, number - 1)
            run.save_model(LAST_MODEL, number)
            run.save_average(number)
            run.save_checkpoint()
            run.write_results()
        run.record.round, run.record.evaluating = -1, True

    @property
    def total_rounds(self) -> int:
        """See ``RoundProtocol.total_rounds``."""
        return self.protocol.total_rounds(self.state)

    def _stop(self, reason: str) -> None:
        """End the rounds; ``reason`` is told."""
        run = self.state
        run.stopped = {"round": len(run.rounds) - 1, "reason": reason}
        run.record.event("stopped", round=len(run.rounds) - 1, what=reason)

    def run_round(self) -> None:
        """One round: who is asked, what they send, and the next model."""
        run, start = self.state, time.perf_counter()
        chosen = self._select()
        run.site_settings = chosen.settings
        run.sites.traffic.clear()
        run.model.begin_round(self._keep_update if run.settings.keep_updates else None)
        run.model.sites_drawn(chosen.draw)
        self.protocol.collect(run, chosen.sites)
        chosen = self.protocol.asked(run, chosen)
        answered = len(self.protocol.participants(run))
        if answered < (needed := min(run.settings.min_sites, len(chosen.sites))):
            raise FedsegError(self._too_few(answered, needed))
        run.model.finish_round()
        self._conclude(chosen, time.perf_counter() - start)
        give_back()

    def _too_few(self, answered: int, needed: int) -> str:
        """Why a round failed, and what is left of the run."""
        run = self.state
        told = [f"{event['site']}: {event['what']}" for event in run.events if event["round"] == run.number]
        kept = f"The model after round {len(run.rounds)} is kept." if run.rounds else "No round was finished."
        round_ = nth(run.number)
        why = "; ".join(told) or "The others did not answer"
        return f"{answered} site(s) answered in round {round_}, but {needed} must. {why.rstrip('.')}. {kept}"

    def finish(self) -> None:
        """Collect what is still missing, and have the models scored."""
        self.evaluate()
        conclude(self.state)

    def evaluate(self) -> CrossSiteScoring | None:
        """See ``finish``; gives the evaluation across sites where there is one."""
        self.protocol.finish(self.state)
        return evaluate_run(self.state, self.protocol)

    def progress(self) -> dict[str, Any]:
        """How far the run is: ``round`` (from 0) of ``rounds`` during a round, the latest events, and see
        ``Sites.progress``."""
        run = self.state
        now = {**run.sites.progress(), **({"events": run.events[-SHOWN_EVENTS:]} if run.events else {})}
        return now if run.number < 0 else {"round": run.number, "rounds": self.total_rounds, **now}

    def _share(self) -> None:
        """Collect the arrays that the model needs of the sites before round 0."""
        run, settings = self.state, self.state.settings
        message = FLModel(metrics={SHARE: 1.0}, meta={})

        def accept(site: str, answer: FLModel) -> None:
            run.model.accept_before_rounds(site, read_update(site, answer, run.report_fields))

        sent = sorted(run.sites.ask(SHARE, message, sorted(run.facts), settings.prepare_seconds, accept))
        if len(sent) < settings.min_sites:
            raise FedsegError(f"{len(sent)} site(s) sent arrays before the first round, but {settings.min_sites} must.")
        run.model.finish_before_rounds({site: run.facts[site].num_samples for site in sent})
        model = run.model.digest_after(-1)
        run.record.append("shared", sites=sent, start=run.start_id, round=-1, model=model)

    def _select(self) -> Selection:
        """The sites of the round at hand, among those of which something is heard."""
        run = self.state
        self._add_newcomers()
        present = {site: facts for site, facts in run.facts.items() if run.sites.absence(site) is None}
        chosen = run.selection.select(present or dict(run.facts), run.plan.seed, run.number)
        run.record.event(
            "round", round=run.number, total=self.total_rounds, sites=chosen.sites, selection=chosen.reasons
        )
        return chosen

    def _add_newcomers(self) -> None:
        run = self.state
        for site in run.participants.add_newcomers(run.plan.digest):
            if (why := self.protocol.unfit(run, site)) is None:
                run.model.add_site()
            else:
                del run.facts[site]
                run.note(site, f"left out: {why}")

    def _conclude(self, chosen: Selection, seconds: float) -> None:
        """Remember and write down what the round was."""
        run = self.state
        for site in chosen.sites:
            report = run.model.reports.get(site)
            # Who did not answer took at least as long as it was waited for.
            took = report.seconds if report else max(seconds, run.facts[site].seconds or 0.0)
            run.facts[site] = replace(run.facts[site], seconds=took)
        run.lineage.append(run.start_id)
        entry = describe_round(run.number, seconds, run.model, run.sites.traffic, chosen, run.plan.objective)
        run.rounds.append(entry)
        model = run.model.digest_after(run.number)
        run.record.append("round", **round_line(entry, run.events), start=run.start_id, model=model)
        scored = f"val_{run.plan.objective.primary.name}"
        run.record.event(
            "round_done", round=run.number, total=self.total_rounds, seconds=seconds, **{scored: entry[scored]}
        )

    def _keep_update(self, name: str, arrays: Arrays) -> None:
        self.state.record.update(self.state.number, name, arrays)
