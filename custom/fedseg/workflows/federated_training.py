"""The federated training loop: prepare, rounds, and a last evaluation of everything that may be used."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.base import Aggregator
from fedseg.aggregators.server_optimizers import ServerOptimizer
from fedseg.aggregators.shared_state import SharedState
from fedseg.contract.plan import PLAN_FILE, read_plan
from fedseg.contract.protocol import KEEP, LINEAGE, START, TOTALS
from fedseg.contract.report import SiteReport, parse_report
from fedseg.errors import FedsegError, RefusalError
from fedseg.memory import give_back
from fedseg.messages.job import report_fields
from fedseg.messages.job_facts import job_facts
from fedseg.models.model_file import INITIAL_FILE
from fedseg.networks.weights import Arrays
from fedseg.site.profile import PROFILE_FILE, read_state_folder
from fedseg.workflows.run import arguments
from fedseg.workflows.run.acceptance import check_report
from fedseg.workflows.run.global_model import GlobalModel
from fedseg.workflows.run.last_evaluation import LastEvaluation
from fedseg.workflows.run.record import BEST_MODEL, FOLDER, LAST_MODEL, RunRecord, round_line
from fedseg.workflows.run.scores import describe_round, validation_scores
from fedseg.workflows.run.site_selection import SiteSelection
from fedseg.workflows.run.stopping import StoppingRules
from fedseg.workflows.selection import AllSites


class FederatedTraining(LastEvaluation):
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
        shared_arrays: SharedState | None = None,
        selection: SiteSelection | None = None,
        min_sites: int = 1,
        round_timeout: int = 0,
        prepare_timeout: int | None = None,
        site_silence: int = 120,
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
            site_silence: seconds without a sign of life (a site's process gives one every 10 s, also while it trains)
                after which no task waits for a site any more; 0 waits on. It is asked again once it is heard of.
            target_dice, patience, max_hours, max_epsilon: see ``StoppingRules``.
            keep_updates: store every round's global model and updates beside the results.
            keep_checkpoints: how many of the last rounds server and sites keep to go on from; 0 keeps all.
            run_id: keys the state of server and sites; if None it is made at the first start. In a federation it is
                the id of that job, so that whoever knows the job can continue the run.
            resume: continue the stopped run ``run_id`` from its checkpoint at the server.
            resume_round: the finished round to continue after; None for the last one.
            task_check_period: seconds between looks at the tasks; small, since rounds may be short.
        """
        prepare_timeout = round_timeout if prepare_timeout is None else prepare_timeout
        arguments.check_counts(1, num_rounds=num_rounds, min_sites=min_sites)
        arguments.check_counts(0, round_timeout=round_timeout, prepare_timeout=prepare_timeout)
        arguments.check_counts(0, site_silence=site_silence, keep_checkpoints=keep_checkpoints)
        arguments.check_switches(task_check_period, keep_updates=keep_updates, resume=resume)
        arguments.check_resumption(run_id, resume, resume_round)
        parts = {"server_optimizer": server_optimizer, "shared_arrays": shared_arrays, "selection": selection}
        arguments.check_parts(aggregator=aggregator, **parts)
        arguments.check_rules_of_scores(selection, target_dice=target_dice, patience=patience)
        super().__init__(
            run_id,
            task_check_period,
            site_silence,
            model=GlobalModel(aggregator, server_optimizer, shared_arrays),
            selection=selection or AllSites(),
            num_rounds=num_rounds,
            keep_checkpoints=keep_checkpoints,
            resume=resume,
            resume_round=resume_round,
        )
        self._named, self.min_sites, self.keep_updates = run_id is not None, min_sites, keep_updates
        self.round_timeout, self.prepare_timeout = round_timeout, prepare_timeout
        self.stopping = StoppingRules(target_dice, patience, max_hours, max_epsilon)

    def run(self) -> None:
        """The whole job; a failure is recorded before FLARE ends the job with it."""
        run_folder, job_id = Path(self.get_run_dir()), str(self.fl_ctx.get_job_id())
        self.record = RunRecord(run_folder / FOLDER)
        try:
            workspace = self.engine.get_workspace()
            self.record.job = job_facts(self.fl_ctx, workspace)
            site_config = Path(workspace.get_site_config_dir())
            if not self._named and (site_config / PROFILE_FILE).is_file():
                # A server of its own, not a simulated one: FLARE's job ids are unique here.
                self.run_id = job_id
            config = Path(workspace.get_app_config_dir(job_id))
            plan, initial = read_plan(config / PLAN_FILE), config / INITIAL_FILE
            self.model.report_fields = report_fields(self.fl_ctx)
            state = read_state_folder("server", site_config, run_folder)
            self.open(plan, state, initial if initial.is_file() else None)
            self._prepare()
            self._run_rounds()
            self._finish()
        except FedsegError as error:
            self.record.failed(str(error))
            raise
        except Exception as error:
            self.record.failed(f"An unexpected {type(error).__name__} at the server: {error}")
            raise

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
        present = {site: facts for site, facts in self.sites.items() if self.presence.absence(site) is None}
        chosen = self.selection.select(present or dict(self.sites), self.plan.seed, self._round)
        self.record.event(
            "round", round=self._round, total=self.num_rounds, sites=chosen.sites, selection=chosen.reasons
        )
        if self.keep_updates:
            self.record.update(self._round, "global", self.model.weights)
        self.model.begin_round()
        self._collect(chosen.sites)
        answered, needed = len(self._took_part()), min(self.min_sites, len(chosen.sites))
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
        model = self._digest_after(self._round)
        self.record.enter("round", **round_line(entry, self.events), start=self.start_id, model=model)
        give_back()
        self.record.event("round_done", round=self._round, seconds=seconds, val_dice=entry["val_dice"])

    def _took_part(self) -> list[str]:
        """The sites of the round at hand that count for ``min_sites``."""
        return sorted(self.model.reports)

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
            report = parse_report(model.meta, self.model.report_fields)
            self._check_report(site, report)
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

    def _check_report(self, site: str, report: SiteReport) -> None:
        """Believe no number that can be known; see ``check_report``."""
        check_report(report, self.sites[site], self.plan.training)

    def _keep_update(self, site: str, update: Arrays) -> None:
        self.record.update(self._round, site, update)
