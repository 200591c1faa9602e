"""The federated training loop: prepare, rounds, and a last evaluation of everything that may be used."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.base import Aggregator
from fedseg.aggregators.control_variates import SharedArrays
from fedseg.aggregators.server_optimizers import ServerOptimizer
from fedseg.errors import ConfigurationError, FedsegError, RefusalError
from fedseg.executors.protocol import KEEP, LINEAGE, MODEL_NAME, SPLITS, START, TOTALS
from fedseg.executors.site_profile import PROFILE_FILE, read_state_folder
from fedseg.networks.weights import Arrays
from fedseg.training.model_file import INITIAL_FILE
from fedseg.training.plan import PLAN_FILE, Plan, read_plan
from fedseg.training.site_report import parse_report
from fedseg.training.state import check_run_id
from fedseg.version import __version__
from fedseg.workflows.acceptance import check_report
from fedseg.workflows.checkpoint import CheckpointError, Checkpoints
from fedseg.workflows.global_model import GlobalModel, stored_weights
from fedseg.workflows.participants import Participants
from fedseg.workflows.record import BEST_MODEL, FOLDER, LAST_MODEL, RunRecord
from fedseg.workflows.scores import Scored, describe_round, is_better, readable, summarise_final, validation_scores
from fedseg.workflows.selection import AllSites, SiteSelection
from fedseg.workflows.stopping import StoppingRules


class FederatedTraining(Participants):
    """Train one model over all sites that accept the job.

    1. ``prepare``: every site accepts the job or refuses it with a reason; the others go on. A site that did not
       answer in time is invited again and takes part from the round after its answer.
    2. Each round: the global weights go to the selected sites, their updates to the aggregator. A site that fails, or
       whose update has unknown names, other shapes or non-finite values, is named, left out, and asked again in the
       next round. After every round a checkpoint is written, from which a stopped run goes on to the last bit.
    3. The last model is scored at every site, and so is the best one where it is another: of two models the one with
       the higher mean validation Dice over the cases of the sites that scored both.
    """

    def __init__(
        self,
        num_rounds: int,
        aggregator: Aggregator,
        server_optimizer: ServerOptimizer | None = None,
        shared_arrays: SharedArrays | None = None,
        selection: SiteSelection | None = None,
        min_sites: int = 1,
        round_timeout: int = 0,
        prepare_timeout: int | None = None,
        target_dice: float | None = None,
        patience: int | None = None,
        max_hours: float | None = None,
        max_epsilon: float | None = None,
        keep_updates: bool = False,
        keep_checkpoints: int = 2,
        run_id: str | None = None,
        resume: bool = False,
        resume_round: int | None = None,
        task_check_period: float = 0.02,
    ) -> None:
        """Check the arguments.

        Args:
            num_rounds: training rounds.
            aggregator: how updates become one.
            server_optimizer: what is made of the aggregated update; None adds it as it is.
            shared_arrays: further arrays that travel with weights and updates, such as SCAFFOLD's control variates.
            selection: which sites take part in a round; None asks all.
            min_sites: sites that must accept the job, and answer in each round (in a round that asks fewer sites, all
                of them); with fewer the job fails.
            round_timeout: seconds after which a round's training, or the last evaluation, goes on without the sites
                that have not answered; 0 waits for all.
            prepare_timeout: the same for ``prepare``, in which sites start their processes and check their data; None
                takes ``round_timeout``.
            target_dice, patience, max_hours, max_epsilon: see ``StoppingRules``.
            keep_updates: store every round's global model and updates beside the results.
            keep_checkpoints: how many of the last rounds server and sites keep to go on from; 0 keeps all.
            run_id: keys the state of server and sites; if None it is made at the first start. In a federation it is
                the id of that job, so that whoever knows the job can continue the run.
            resume: continue the stopped run ``run_id`` from its checkpoint at the server.
            resume_round: the finished round to continue after; None for the last one.
            task_check_period: seconds between looks at the tasks; small, since rounds may be short.
        """
        for name, value, least in (
            ("num_rounds", num_rounds, 1),
            ("min_sites", min_sites, 1),
            ("round_timeout", round_timeout, 0),
            ("prepare_timeout", 0 if prepare_timeout is None else prepare_timeout, 0),
            ("keep_checkpoints", keep_checkpoints, 0),
            ("resume_round", 0 if resume_round is None else resume_round, 0),
        ):
            if type(value) is not int or value < least:
                raise ConfigurationError(f"workflow.{name}", value, f"a whole number of at least {least}")
        if not isinstance(task_check_period, int | float) or not 0 < task_check_period < 60:
            raise ConfigurationError("workflow.task_check_period", task_check_period, "seconds above 0 and below 60")
        for name, switch in (("keep_updates", keep_updates), ("resume", resume)):
            if not isinstance(switch, bool):
                raise ConfigurationError(f"workflow.{name}", switch, "true or false")
        if run_id is not None:
            check_run_id(run_id)
        elif resume:
            raise ConfigurationError("workflow.resume", resume, "false without run_id, which says what to continue")
        if resume_round is not None and not resume:
            raise ConfigurationError("workflow.resume_round", resume_round, "null unless workflow.resume is true")
        for name, part, kind in (
            ("aggregator", aggregator, Aggregator),
            ("server_optimizer", server_optimizer, ServerOptimizer | None),
            ("shared_arrays", shared_arrays, SharedArrays | None),
            ("selection", selection, SiteSelection | None),
        ):
            if not isinstance(part, kind):
                shown = part if isinstance(part, str | int | float) else type(part).__name__
                allowed = f'the {name} of a method: {{"path": ..., "args": {{...}}}}'
                raise ConfigurationError(
                    f"workflow.{name}", shown, allowed, "docs/reference/method-table.md lists them."
                )
        if not isinstance(selection, AllSites | None):
            for name, rule in (("target_dice", target_dice), ("patience", patience)):
                if rule is not None:
                    why = "Rounds that ask other sites score on other cases, so their Dice cannot be compared."
                    raise ConfigurationError(f"workflow.{name}", rule, "null with a selection of sites", why)
        super().__init__(run_id or uuid.uuid4().hex, task_check_period)
        self._named = run_id is not None
        self.num_rounds, self.min_sites, self.round_timeout = num_rounds, min_sites, round_timeout
        self.prepare_timeout = round_timeout if prepare_timeout is None else prepare_timeout
        self.keep_updates, self.keep_checkpoints = keep_updates, keep_checkpoints
        self.resume, self.resume_round = resume, resume_round
        self.model = GlobalModel(aggregator, server_optimizer, shared_arrays)
        self.selection = selection or AllSites()
        self.stopping = StoppingRules(target_dice, patience, max_hours, max_epsilon)
        self.totals: dict[str, float] = {}
        self.rounds: list[dict[str, Any]] = []
        self.stopped: dict[str, Any] | None = None
        self.best_round: int | None = None
        self.start_id = uuid.uuid4().hex[:12]
        self.lineage: list[str] = []
        self._hours_before = 0.0

    # ---------------------------------------------------------------- the run

    def run(self) -> None:
        """The whole job; a failure is recorded before FLARE ends the job with it."""
        run_folder, job_id = Path(self.get_run_dir()), str(self.fl_ctx.get_job_id())
        self.record = RunRecord(run_folder / FOLDER)
        try:
            workspace = self.engine.get_workspace()
            site_config = Path(workspace.get_site_config_dir())
            if not self._named and (site_config / PROFILE_FILE).is_file():
                # A server of its own, not a simulated one: FLARE's job ids are unique here.
                self.run_id = job_id
            config = Path(workspace.get_app_config_dir(job_id))
            plan, initial = read_plan(config / PLAN_FILE), config / INITIAL_FILE
            state = read_state_folder("server", site_config, run_folder)
            self.open(plan, state, initial if initial.is_file() else None)
            self._prepare()
            self._run_rounds()
            self._finish()
        except FedsegError as error:
            self.record.event("failed", what=str(error))
            raise
        except Exception as error:
            self.record.event("failed", what=f"An unexpected {type(error).__name__} at the server: {error}")
            raise

    def open(self, plan: Plan, state: Path, initial: Path | None = None) -> None:
        """Start from the plan's seeded network, from ``initial``, or from the run's checkpoint where there is one.

        Args:
            plan: the job's plan.
            state: the server's state folder; checkpoints lie in a folder named after the run.
            initial: a model that the job brings to start from.
        """
        self.plan, self._start = plan, time.time()
        self.model.open(plan, initial)
        self.checkpoints = Checkpoints(state / self.run_id, self.keep_checkpoints)
        self.checkpoints.lock()
        rounds = self.checkpoints.resumable()
        if self.resume and not rounds:
            raise CheckpointError(f"There is no checkpoint of the run {self.run_id} at this server to continue from.")
        if rounds and not self.resume:
            raise CheckpointError(
                f"This server has checkpoints of the run {self.run_id}: set workflow.resume to true to continue it, or "
                "give another run_id for a new run."
            )
        if self.resume:
            self._resume(rounds[-1] if self.resume_round is None else self.resume_round)

    def _resume(self, number: int) -> None:
        if number not in self.checkpoints.resumable():
            raise CheckpointError(
                f"The run cannot be continued after round {number}, only after {self.checkpoints.resumable()}: sites "
                "keep no older states."
            )
        arrays, values = self.checkpoints.load(number)
        for name, now in self._identity().items():
            if values[name] != now:
                raise CheckpointError(
                    f"The checkpoint of round {number} is of a job with another {name} ({values[name]}, now {now}); "
                    "continue with the job as it was, or start a new run with another run_id."
                )
        self.model.restore(arrays, values["history"])
        self.selection.restore(values["selection_history"])
        self.rounds, self.events, self.totals = values["rounds"], values["events"], values["totals"]
        self.best_round, self.lineage = values["best_round"], values["lineage"]
        self.former = values["seconds_of"]
        self._hours_before = values["hours"]
        self.checkpoints.drop_after(number)
        self.record.event("resumed", round=number, run_id=self.run_id)

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a run to go on from a checkpoint."""
        return {
            "version": __version__,
            "plan": self.plan.digest,
            "rule": self.model.describe(),
            "selection": self.selection.describe(),
            "num_rounds": self.num_rounds,
        }

    def _save_checkpoint(self) -> None:
        values = {
            **self._identity(),
            "history": self.model.aggregator.history(),
            "selection_history": self.selection.history(),
            "rounds": self.rounds,
            "events": self.events,
            "totals": self.totals,
            "best_round": self.best_round,
            "lineage": self.lineage,
            "seconds_of": {site: facts.seconds for site, facts in self.sites.items()},
            "hours": self._hours(),
        }
        self.checkpoints.save(self._round, self.model.arrays(), values)

    def _run_rounds(self) -> None:
        """All rounds that are still to run, as long as no stopping rule speaks.

        Sites score what they receive, so a round tells the score of the model that the round before made; the score
        of the last one comes with the last evaluation.
        """
        for number in range(len(self.rounds), self.num_rounds):
            reason = self.stopping.reason(self.rounds, self._hours())
            if reason is not None:
                self.stopped = {"round": number - 1, "reason": reason}
                self.record.event("stopped", round=number - 1, what=reason)
                break
            self._round = number
            self._train_round()
            if number > 0 and self._beats_best(validation_scores(self.rounds[number])):
                self.best_round = number - 1
                self._store(BEST_MODEL, number - 1)
            self._store(LAST_MODEL, number)
            self._save_checkpoint()
            self._write_results()
        self._round = -1

    def _prepare(self) -> None:
        """Ask every connected site to take part."""
        accepted = self.admit(self.plan.digest, self.prepare_timeout)
        if len(accepted) < self.min_sites:
            reasons = "; ".join(f"{e['site']}: {e['what']}" for e in self.events) or "no site answered"
            raise FedsegError(f"{len(accepted)} site(s) accepted the job, but {self.min_sites} must. {reasons}")
        if self.rounds:
            for _ in set(accepted) - set(self.former):
                self.model.join()
            return
        for answer in accepted.values():
            for name, value in answer.statistics.items():
                self.totals[name] = self.totals.get(name, 0.0) + value
        self.model.start(len(accepted))

    def _train_round(self) -> None:
        """One round: who is asked, what they send, and the next model."""
        start = time.perf_counter()
        for _ in self.take_in_newcomers(self.plan.digest):
            self.model.join()
        chosen = self.selection.select(dict(self.sites), self.plan.seed, self._round)
        self.record.event(
            "round", round=self._round, total=self.num_rounds, sites=chosen.sites, selection=chosen.reasons
        )
        if self.keep_updates:
            self.record.update(self._round, "global", self.model.weights)
        self.model.begin_round()
        self._collect(chosen.sites)
        answered, needed = len(self.model.reports), min(self.min_sites, len(chosen.sites))
        if answered < needed:
            raise FedsegError(
                f"{answered} site(s) answered in round {self._round}, but {needed} must; "
                "the model of the round before is kept."
            )
        self.model.finish_round()
        seconds = time.perf_counter() - start
        for site in chosen.sites:
            report = self.model.reports.get(site)
            # Who did not answer took at least as long as it was waited for.
            took = report.seconds if report else max(seconds, self.sites[site].seconds or 0.0)
            self.sites[site] = replace(self.sites[site], seconds=took)
        self.lineage.append(self.start_id)
        entry = describe_round(self._round, seconds, self.model, self._bytes, chosen)
        self.rounds.append(entry)
        self.record.event("round_done", round=self._round, seconds=seconds, val_dice=entry["val_dice"])

    def _collect(self, sites: Sequence[str]) -> None:
        """Send the global model to the sites of the round and take in what they make of it."""
        message = FLModel(params_type=ParamsType.FULL, params=self.model.outgoing(), meta=self._round_meta())
        message.current_round, message.total_rounds = self._round, self.num_rounds
        self.ask("train", message, sites, self.round_timeout, self._take_update)

    def _round_meta(self) -> dict[str, Any]:
        """What sites are told with every round."""
        return {TOTALS: self.totals, KEEP: self.keep_checkpoints, START: self.start_id, LINEAGE: self.lineage}

    def _take_update(self, model: FLModel) -> bool:
        """Hand an update to the aggregator as it arrives; False leaves the site out of the round."""
        site = model.meta["client_name"]
        try:
            report = parse_report(model.meta)
            check_report(report, self.sites[site], self.plan.training)
            if self.stopping.max_epsilon is not None and report.epsilon is None:
                raise RefusalError("report", "The site reports no epsilon, although the job limits it.")
            self.model.take(model, self._keep_update if self.keep_updates else None)
        except FedsegError as error:
            self.note(site, f"update left out: {error}")
            return False
        except Exception as error:
            # FLARE would swallow it, and with it the site's name.
            self.note(site, f"update left out: {type(error).__name__} while it was taken")
            return False
        self.record.event(
            "update",
            round=self._round,
            site=site,
            train_loss=report.train_loss,
            val_dice=report.val_dice.get("mean"),
            seconds=report.seconds,
        )
        return True

    def _keep_update(self, site: str, update: Arrays) -> None:
        self.record.update(self._round, site, update)

    # ------------------------------------------------------- the last evaluation

    def _beats_best(self, scored: Scored) -> bool:
        """Whether a model with these validation scores is the best so far."""
        if self.best_round is None:
            return any(dice is not None for dice, _ in scored.values())
        return is_better(scored, validation_scores(self.rounds[self.best_round + 1])) is True

    def _finish(self) -> None:
        """Score the last model, then the best one where it is another."""
        last_round = len(self.rounds) - 1
        file = self._store(LAST_MODEL, last_round)
        self.record.event("evaluate", model="last")
        last, on_validation = self._evaluate("last", last_round)
        last["model"] = file
        self._write_results(final=last, best={"model": None})
        if self._beats_best(on_validation):
            file = self._store(BEST_MODEL, last_round)
            best_scores = dict(last, round=last_round, model=file)
        elif self.best_round is not None:
            self.record.event("evaluate", model="best")
            file = self._store(BEST_MODEL, self.best_round)
            best_scores = dict(self._evaluate("best", self.best_round)[0], round=self.best_round, model=file)
        else:
            best_scores = {"model": None}
        self._write_results(final=last, best=best_scores)
        self.record.event("finished", mean_dice=last["mean_dice"], pooled_dice=last["pooled_dice"])

    def _weights_after(self, round_number: int) -> Arrays:
        """The global model after a finished round: the last one, or one that a checkpoint holds."""
        if round_number == len(self.rounds) - 1:
            return self.model.weights
        return stored_weights(self.checkpoints.load(round_number)[0])

    def _store(self, name: str, round_number: int) -> str:
        """Write the model after a round in place of the one of the same name; returns the name of its file."""
        self.record.model(name, self.plan, self._weights_after(round_number), round_number)
        return name

    def _bring(self, round_number: int, sites: Sequence[str]) -> FLModel:
        """The message that brings the model after a round to sites, to be scored."""
        return FLModel(params_type=ParamsType.FULL, params=self._weights_after(round_number), meta={})

    def _evaluate(self, name: str, round_number: int) -> tuple[dict[str, Any], Scored]:
        """Scores on the final split of every site, and each site's Dice on its validation cases."""
        splits = ["final", "validation"] if name == "last" else ["final"]
        model = self._bring(round_number, sorted(self.sites))
        model.meta |= {SPLITS: splits, MODEL_NAME: name}
        answers = self.ask("validate", model, sorted(self.sites), self.round_timeout, self._take_scores)
        if not answers:
            raise FedsegError(f"No site scored the {name} model; it is kept unscored.")
        content = summarise_final({site: answers[site].metrics["final"] for site in sorted(answers)}, round_number)
        validation = {site: a.metrics["validation"] for site, a in answers.items() if "validation" in a.metrics}
        return content, {site: (part["dice"]["mean"], part["cases"]) for site, part in validation.items()}

    def _take_scores(self, answer: FLModel) -> bool:
        """Accept a site's scores if they can be pooled."""
        if not readable(answer.metrics):
            self.note(answer.meta["client_name"], "sent scores that cannot be read; they were left out")
            return False
        return True

    def _hours(self) -> float:
        return self._hours_before + (time.time() - self._start) / 3600

    def _write_results(self, **parts: Any) -> None:
        content = {
            "run_id": self.run_id,
            "plan": self.plan.to_dict(),
            "num_rounds": self.num_rounds,
            "sites": sorted(self.sites),
            "selection": self.selection.describe(),
            "rounds": self.rounds,
            "events": self.events,
            "stopped": self.stopped,
            "seconds": self._hours() * 3600,
            **parts,
        }
        self.record.results(content)
