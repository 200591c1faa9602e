"""The federated training loop: prepare, rounds, and a last evaluation of everything that may be used."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.workflows.model_controller import ModelController

from fedseg.aggregators.weighted import WeightedAggregator
from fedseg.errors import AbortedError, ConfigurationError, FedsegError
from fedseg.evaluation.metrics import pool
from fedseg.executors.protocol import (
    BYTES_DOWN,
    BYTES_UP,
    MODEL_NAME,
    PLAN_DIGEST,
    PREPARE,
    REASON,
    RUN_ID,
    SPLITS,
    TEXT,
)
from fedseg.networks.weights import Arrays, apply_difference, check_weights, get_weights, is_averaged
from fedseg.training.model_file import read_model
from fedseg.training.plan import PLAN_FILE, Plan, read_plan
from fedseg.training.site_report import SiteReport, parse_report
from fedseg.training.state import check_run_id
from fedseg.workflows.record import BEST_MODEL, FOLDER, LAST_MODEL, RunRecord


class FederatedTraining(ModelController):
    """Train one model over all sites that accept the job.

    1. ``prepare``: every site accepts the job or refuses it with a reason; the others go on.
    2. Each round: the global weights go to all accepted sites, their updates to the aggregator. A site that fails,
       or whose update has unknown names, other shapes or non-finite values, is named, left out, and asked again in
       the next round.
    3. The last model is scored at every site, and so is the best one (by mean validation Dice over the cases of all
       sites) where it is another.
    """

    def __init__(
        self,
        num_rounds: int,
        aggregator: WeightedAggregator,
        min_sites: int = 1,
        round_timeout: int = 0,
        keep_updates: bool = False,
        run_id: str | None = None,
        task_check_period: float = 0.02,
    ) -> None:
        """Check the arguments.

        Args:
            num_rounds: training rounds.
            aggregator: how updates become one.
            min_sites: sites that must accept the job, and answer in each round; with fewer the job fails.
            round_timeout: seconds after which a task (prepare, a round's training, the last evaluation) goes on
                without the sites that have not answered; 0 waits for all.
            keep_updates: store every round's global model and updates beside the results.
            run_id: keys the sites' state; made at the first start if None.
            task_check_period: seconds between looks at the tasks; small, since rounds may be short.
        """
        for name, value, least in (
            ("num_rounds", num_rounds, 1),
            ("min_sites", min_sites, 1),
            ("round_timeout", round_timeout, 0),
        ):
            if type(value) is not int or value < least:
                raise ConfigurationError(f"workflow.{name}", value, f"a whole number of at least {least}")
        if not isinstance(task_check_period, int | float) or not 0 < task_check_period < 60:
            raise ConfigurationError("workflow.task_check_period", task_check_period, "seconds above 0 and below 60")
        if not isinstance(keep_updates, bool):
            raise ConfigurationError("workflow.keep_updates", keep_updates, "true or false")
        if run_id is not None:
            check_run_id(run_id)
        if not isinstance(aggregator, WeightedAggregator):
            raise ConfigurationError("workflow.aggregator", type(aggregator).__name__, "an aggregator of fedseg")
        super().__init__(persistor_id="", allow_empty_global_weights=True, task_check_period=task_check_period)
        self.num_rounds, self.aggregator = num_rounds, aggregator
        self.min_sites, self.round_timeout, self.keep_updates = min_sites, round_timeout, keep_updates
        self.run_id = run_id or uuid.uuid4().hex
        self.events: list[dict[str, Any]] = []
        self.rounds: list[dict[str, Any]] = []
        self._answers: dict[str, FLModel] = {}
        self._bytes: dict[str, tuple[int, int]] = {}
        self._round = -1

    # ---------------------------------------------------------------- the run

    def run(self) -> None:
        """The whole job; a failure is recorded before FLARE ends the job with it."""
        self.record = RunRecord(Path(self.get_run_dir()) / FOLDER)
        try:
            app_config = self.engine.get_workspace().get_app_config_dir(self.fl_ctx.get_job_id())
            self.open(read_plan(Path(app_config) / PLAN_FILE))
            self.sites = self._prepare()
            self._finish(self._run_rounds())
        except FedsegError as error:
            self.record.event("failed", what=str(error))
            raise
        except Exception as error:
            self.record.event("failed", what=f"An unexpected {type(error).__name__} at the server: {error}")
            raise

    def open(self, plan: Plan) -> None:
        """Start from the plan's seeded network."""
        self.plan, self._start = plan, time.time()
        network = plan.network.build(len(plan.task.channels), plan.task.output_channels, plan.seed)
        self.weights = get_weights(network)

    def _run_rounds(self) -> tuple[float, int] | None:
        """All rounds; returns the best validation Dice so far with the round after which that model was made.

        Sites score what they receive, so a round tells the score of the model that the round before made; the score
        of the last one comes with the last evaluation.
        """
        best: tuple[float, int] | None = None
        for number in range(self.num_rounds):
            self._round = number
            received = self._train_round()
            if number > 0 and received is not None and (best is None or received > best[0]):
                best = (received, number - 1)
                self.record.model(BEST_MODEL, self.plan, self._received, number - 1)
            self.record.model(LAST_MODEL, self.plan, self.weights, number)
            self._write_results()
        self._round = -1
        return best

    def _prepare(self) -> list[str]:
        self.record.event("prepare", sites=sorted(c.name for c in self.engine.get_clients()), run_id=self.run_id)
        answers = self._ask(PREPARE, FLModel(metrics={"prepare": 1.0}, meta={PLAN_DIGEST: self.plan.digest}), None)
        for site in sorted(answers):
            self.record.event("accepted", site=site, cases=answers[site].metrics)
        if len(answers) < self.min_sites:
            reasons = "; ".join(f"{e['site']}: {e['what']}" for e in self.events) or "no site answered"
            raise FedsegError(f"{len(answers)} site(s) accepted the job, but {self.min_sites} must. {reasons}")
        return sorted(answers)

    def _train_round(self) -> float | None:
        """One round; returns the mean validation Dice of the model that the sites received."""
        start = time.perf_counter()
        self._received = self.weights
        self.record.event("round", round=self._round, total=self.num_rounds, sites=self.sites)
        if self.keep_updates:
            self.record.update(self._round, "global", self.weights)
        self.aggregator.reset_stats()
        model = FLModel(
            params_type=ParamsType.FULL, params=self.weights, current_round=self._round, total_rounds=self.num_rounds
        )
        self._reports: dict[str, SiteReport] = {}
        self._ask("train", model, self.sites, self._take_update)
        if len(self._reports) < self.min_sites:
            raise FedsegError(
                f"{len(self._reports)} site(s) answered in round {self._round}, but {self.min_sites} must; "
                "the model of the round before is kept."
            )
        self.weights = apply_difference(self.weights, self.aggregator.aggregate_model().params)
        seconds = time.perf_counter() - start
        entry = self._describe_round(seconds)
        self.rounds.append(entry)
        self.record.event("round_done", round=self._round, seconds=seconds, val_dice=entry["val_dice"])
        return entry["val_dice"]

    def _take_update(self, model: FLModel) -> bool:
        """Hand an update to the aggregator as it arrives; False leaves the site out of the round."""
        site = model.meta["client_name"]
        try:
            report = parse_report(model.meta)
            averaged = {name: value for name, value in self.weights.items() if is_averaged(value)}
            params = model.params or {}
            check_weights({n: averaged[n] for n in averaged if n in params}, params)
            if self.keep_updates:
                self.record.update(self._round, site, params)
            self.aggregator.accept_model(model)
        except FedsegError as error:
            self._note(site, f"update left out: {error}")
            return False
        except Exception as error:
            # FLARE would swallow it, and with it the site's name.
            self._note(site, f"update left out: {type(error).__name__} while it was taken")
            return False
        self._reports[site] = report
        self.record.event(
            "update",
            round=self._round,
            site=site,
            train_loss=report.train_loss,
            val_dice=report.val_dice.get("mean"),
            seconds=report.seconds,
        )
        return True

    def _describe_round(self, seconds: float) -> dict[str, Any]:
        reports = {site: self._reports[site] for site in sorted(self._reports)}
        costs = self.aggregator.costs(reports)
        return {
            "round": self._round,
            "seconds": seconds,
            "rule": self.aggregator.describe(),
            "weights": self.aggregator.last_weights,
            "val_dice": _mean_over_cases([(r.val_dice.get("mean"), r.val_cases) for r in reports.values()]),
            "sites": {
                site: {
                    "num_samples": report.num_samples,
                    "num_steps": report.num_steps,
                    "train_loss": report.train_loss,
                    "cost": costs[site],
                    "val_dice": dict(report.val_dice),
                    "val_loss": report.val_loss,
                    "bytes_up": self._bytes[site][0],
                    "bytes_down": self._bytes[site][1],
                    "seconds": report.seconds,
                    "seconds_training": report.seconds_training,
                }
                for site, report in reports.items()
            },
        }

    # ------------------------------------------------------- the last evaluation

    def _finish(self, best: tuple[float, int] | None) -> None:
        """Score the last model, then the best one where it is another."""
        self.record.event("evaluate", model="last")
        last, on_validation = self._evaluate("last", self.weights, self.num_rounds - 1)
        if on_validation is not None and (best is None or on_validation >= best[0]):
            self.record.model(BEST_MODEL, self.plan, self.weights, self.num_rounds - 1)
            best_scores = dict(last, round=self.num_rounds - 1)
        elif best is not None:
            self.record.event("evaluate", model="best")
            weights = read_model(self.record.folder / BEST_MODEL).weights
            best_scores = dict(self._evaluate("best", weights, best[1])[0], round=best[1])
        else:
            best_scores = {}
        best_scores["model"] = BEST_MODEL if best_scores else None
        last["model"] = LAST_MODEL
        self._write_results(final=last, best=best_scores)
        self.record.event("finished", mean_dice=last["mean_dice"], pooled_dice=last["pooled_dice"])

    def _evaluate(self, name: str, weights: Arrays, round_number: int) -> tuple[dict[str, Any], float | None]:
        """Scores on the final split of every site, and the mean Dice over all validation cases."""
        splits = ["final", "validation"] if name == "last" else ["final"]
        model = FLModel(params_type=ParamsType.FULL, params=weights, meta={SPLITS: splits, MODEL_NAME: name})
        answers = self._ask("validate", model, self.sites, self._take_scores)
        if len(answers) < self.min_sites:
            raise FedsegError(f"{len(answers)} site(s) scored the {name} model, but {self.min_sites} must.")
        final = {site: answers[site].metrics["final"] for site in sorted(answers)}
        scored = {site: part for site, part in final.items() if part["cases"]}
        means = [p["dice"]["mean"] for p in scored.values() if p["dice"]["mean"] is not None]
        content = {
            "split": "/".join(sorted({part["split"] for part in scored.values()})) or None,
            "sites": {s: {k: v for k, v in p.items() if k != "split"} for s, p in scored.items()},
            "mean_dice": sum(means) / len(means) if means else None,
            "pooled_dice": pool(scored.values())["dice"]["mean"] if scored else None,
            "after_round": round_number,
        }
        validation = [a.metrics["validation"] for a in answers.values() if "validation" in a.metrics]
        return content, _mean_over_cases([(v["dice"]["mean"], v["cases"]) for v in validation])

    def _take_scores(self, answer: FLModel) -> bool:
        """Accept a site's scores if they can be pooled."""
        try:
            parts = list((answer.metrics or {}).values())
            pool([part for part in parts if part["cases"]])
            complete = "final" in (answer.metrics or {}) and all(part["split"] for part in parts)
        except (KeyError, TypeError, ValueError, AttributeError):
            complete = False
        if not complete:
            self._note(answer.meta["client_name"], "sent scores that cannot be read; they were left out")
        return complete

    # ------------------------------------------------------------- talking to sites

    def _ask(self, task: str, model: FLModel, sites: list[str] | None, take: Any = None) -> dict[str, FLModel]:
        """Send a task and wait for the answers; who fails or stays silent is noted by name."""
        asked = sites or sorted(c.name for c in self.engine.get_clients())
        self._answers, self._heard, noted = {}, set[str](), len(self.events)
        model.meta = {**(model.meta or {}), RUN_ID: self.run_id}

        def receive(answer: FLModel) -> bool:
            site = answer.meta["client_name"]
            accepted = take is None or take(answer)
            if accepted:
                self._answers[site] = FLModel(metrics=answer.metrics or {"taken": 1.0}, meta=answer.meta)
            return accepted

        if model.current_round is not None:
            self.set_fl_context(model)
        task_object = self._prepare_task(model, task, self.round_timeout, receive)
        self.broadcast_and_wait(
            task=task_object, targets=asked, min_responses=0, fl_ctx=self.fl_ctx, abort_signal=self.abort_signal
        )
        if self.abort_signal.triggered:
            raise AbortedError(f"The job was aborted during the task {task}; the last finished round is kept.")
        for site in asked:
            if site not in self._heard:
                limit = f" within {self.round_timeout} s" if self.round_timeout else ""
                self._note(site, f"did not answer the task {task}{limit}")
            elif site not in self._answers and site not in {e["site"] for e in self.events[noted:]}:
                self._note(site, f"sent an answer to the task {task} that cannot be read")
        return self._answers

    def _accept_train_result(
        self, client_name: str, result: Shareable, fl_ctx: FLContext, is_unknown_task: bool = False
    ) -> bool:
        """Note a failed result by the site's name and reason instead of ending the job."""
        code = result.get_return_code()
        if is_unknown_task:
            return False
        self._heard.add(client_name)
        self._bytes[client_name] = (int(result.get_header(BYTES_UP, 0)), int(result.get_header(BYTES_DOWN, 0)))
        if code and code != ReturnCode.OK:
            text = result.get_header(TEXT) or f"FLARE reports {code}"
            self._note(client_name, f"{result.get_header(REASON) or 'failed'}: {text}")
            return False
        return super()._accept_train_result(client_name, result, fl_ctx, is_unknown_task)

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """A result that comes after its round has ended is dropped, and noted."""
        self._note(client.name, f"answered the task {task_name} too late; the result was dropped")

    def _note(self, site: str, what: str) -> None:
        self.warning(f"{site}: {what}")
        self.events.append({"round": self._round, "site": site, "what": what})
        self.record.event("site", round=self._round, site=site, what=what)

    def _write_results(self, **parts: Any) -> None:
        content = {
            "run_id": self.run_id,
            "plan": self.plan.to_dict(),
            "num_rounds": self.num_rounds,
            "sites": self.sites,
            "rounds": self.rounds,
            "events": self.events,
            "seconds": time.time() - self._start,
            **parts,
        }
        self.record.results(content)


def _mean_over_cases(scores: list[tuple[float | None, int]]) -> float | None:
    """Mean Dice of sites weighted by their cases: the one number by which models of a run are compared."""
    known = [(dice, cases) for dice, cases in scores if dice is not None and cases > 0]
    return sum(dice * cases for dice, cases in known) / sum(cases for _, cases in known) if known else None
