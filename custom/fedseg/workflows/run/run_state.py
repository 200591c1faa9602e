"""What a run is between its rounds: models, checkpoints, record and results; how a stopped one is taken up again."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

from fedseg.contract.plan import Plan
from fedseg.files.digest import model_digest
from fedseg.networks.weights import Arrays
from fedseg.provenance.run_log import RECORD_FILE, SERVER_SIDE, RunLog
from fedseg.version import __version__
from fedseg.workflows.run.checkpoint import CheckpointError, Checkpoints
from fedseg.workflows.run.global_model import GlobalModel, stored_weights
from fedseg.workflows.run.participants import Participants
from fedseg.workflows.run.site_selection import SiteSelection


class RunState(Participants):
    """A run at the server, from its start or from its last checkpoint.

    Attributes:
        model, selection: the global model with its rule, and who is asked; both remember former rounds.
        rounds: entries of the finished rounds, see ``scores.describe_round``.
        totals: sums of what sites stated when they accepted the job.
        best_round: the round after which the best model so far was made; None before it is known.
        stopped: the round and the reason where a stopping rule ended the training.
        start_id: of this start of the server; ``lineage`` names for each finished round the start that made it.
    """

    plan: Plan
    checkpoints: Checkpoints

    def __init__(
        self,
        run_id: str | None,
        task_check_period: float,
        site_silence: int,
        *,
        model: GlobalModel,
        selection: SiteSelection,
        num_rounds: int,
        keep_checkpoints: int,
        resume: bool,
        resume_round: int | None,
    ) -> None:
        """Take checked arguments; see ``FederatedTraining``."""
        super().__init__(run_id or uuid.uuid4().hex, task_check_period, site_silence)
        self.model, self.selection, self.num_rounds = model, selection, num_rounds
        self.keep_checkpoints, self.resume, self.resume_round = keep_checkpoints, resume, resume_round
        self.totals: dict[str, float] = {}
        self.rounds: list[dict[str, Any]] = []
        self.stopped: dict[str, Any] | None = None
        self.best_round: int | None = None
        self.start_id = uuid.uuid4().hex[:12]
        self.lineage: list[str] = []
        self._start = time.time()
        self._hours_before = 0.0

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
        self._open_record()

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

    def _open_record(self) -> None:
        """Begin the run's record, or go on with it, by a line that says who asked for what."""
        log = RunLog(self.checkpoints.folder / RECORD_FILE, SERVER_SIDE, "server", self.run_id)
        self.record.keep_in(log)
        last = len(self.rounds) - 1
        model = self._digest_after(last)
        if self.resume and not self.record.names(model, last):
            raise CheckpointError(
                f"The checkpoint of round {last} holds another model than the run's record names, or the record is "
                "gone; nobody could tell later where the model comes from. Bring back record and checkpoints as they "
                "were, or start a new run."
            )
        self.record.enter(
            "resumed" if self.resume else "start",
            **self.record.job,
            plan=self.plan.digest,
            num_rounds=self.num_rounds,
            start=self.start_id,
            round=last,
            model=model,
        )

    def _weights_after(self, round_number: int) -> Arrays:
        """The global model after a finished round: the last one, or one that a checkpoint holds."""
        if round_number == len(self.rounds) - 1:
            return self.model.weights
        return stored_weights(self.checkpoints.load(round_number)[0])

    def _digest_after(self, round_number: int) -> str:
        """The name of the model after a finished round in the run's record; -1 for the initial one."""
        return model_digest(self._weights_after(round_number))

    def _store_final(self, name: str, round_number: int) -> str:
        """Enter a model as one that the run leaves, and write it; returns the name of its file."""
        model = self._digest_after(round_number)
        self.record.enter("final", name=Path(name).stem, round=round_number, model=model)
        return self._store(name, round_number)

    def _store(self, name: str, round_number: int) -> str:
        """Write the model after a round in place of the one of the same name; returns the name of its file."""
        self.record.model(name, self.plan, self._weights_after(round_number), round_number)
        return name

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
