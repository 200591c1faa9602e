"""Split training over FLARE: what a job of it is, what the server believes, and what a run leaves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants

from fedseg.contract.plan import Plan
from fedseg.contract.report import SiteReport
from fedseg.errors import ConfigurationError, FedsegError, RefusalError
from fedseg.workflows.run.acceptance import check_report
from fedseg.workflows.run.scores import Scored
from fedseg.workflows.split.rounds import SplitRounds


class SplitTraining(SplitRounds):
    """SplitAVG (Zhang et al., IEEE J Biomed Health Inform 2022) and its variants; see ``SplitSettings``.

    1. ``prepare``, as in ``FederatedTraining``.
    2. A round is one pass over the training cases of the largest site that it asks; the others see theirs again. The
       task ``train`` brings the server's part, with which each site scores its own network. Then iterations follow each
       other by direct calls. A site that does not answer one in time is left out of this iteration and of the rest of
       the round; with the next one it comes back with the state that it had.
       With ``site_update: handed_on`` (SplitNN) each site has its turn instead, one pass over its own cases.
    3. A checkpoint after every round holds the server's part with its optimizer; the sites keep theirs.
    4. With ``site_update: separate`` every site sends its own part at the end, if its policy lets it, and the run
       leaves one model for each; else it leaves one model for all, and the best one.
    """

    def __init__(
        self, num_rounds: int, message_timeout: int = 60, start_timeout: int = 600, min_sites: int = 1, **others: Any
    ) -> None:
        """Check the arguments.

        Args:
            num_rounds: see ``FederatedTraining``.
            message_timeout: seconds that a site may take to answer a call.
            start_timeout: seconds for which a round waits for the other sites once the first one has scored what it
                received; a site that was left out of the round before, and gives no sign of life, is waited for
                ``message_timeout``.
            min_sites: see ``FederatedTraining``; in a round sites count whose samples came into an iteration.
            others: further arguments of ``FederatedTraining``: who is asked in a round, time-outs, stopping rules and
                how a run goes on.

        Raises:
            ConfigurationError: a value is not allowed, or an argument has no meaning in split training.
        """
        for name in ("aggregator", "server_optimizer", "shared_arrays", "max_epsilon", "keep_updates"):
            if others.pop(name, None):
                raise ConfigurationError(f"workflow.{name}", "given", "left out in split training")
        super().__init__(num_rounds, message_timeout, start_timeout, min_sites=min_sites, **others)
        self._site_models: dict[str, str] = {}

    def open(self, plan: Plan, state: Path, initial: Path | None = None) -> None:
        torch.set_num_threads(plan.training.threads)
        super().open(plan, state, initial)

    def _prepare(self) -> None:
        super()._prepare()
        if uneven := self._uneven(self.sites):
            raise FedsegError(
                f"cut_gradient mean needs equal batches, but the training cases of {', '.join(uneven)} are no multiple "
                f"of {self.plan.training.batch_size}. Set cut_gradient to own, or training.batch_size to 1."
            )

    def take_in_newcomers(self, digest: str) -> list[str]:
        """See ``Participants``; one whose batches are not equal to the others' is left out where they must be."""
        arrived = super().take_in_newcomers(digest)
        uneven = self._uneven(arrived)
        for site in uneven:
            del self.sites[site]
            size = self.plan.training.batch_size
            self.note(site, f"left out: cut_gradient mean needs training cases that are a multiple of {size}")
        return [site for site in arrived if site not in uneven]

    def _uneven(self, sites: Iterable[str]) -> list[str]:
        """Those of the sites whose last batch is smaller than the others', where batches must be equal."""
        size, mean = self.plan.training.batch_size, self.model.split.cut_gradient == "mean"
        return sorted(site for site in sites if mean and self.sites[site].num_samples % size)

    def _took_part(self) -> list[str]:
        """Sites that have reported, and whose samples the server's part was trained with."""
        return [site for site in super()._took_part() if self.model.round.samples.get(site, 0)]

    def _collect(self, sites: Sequence[str]) -> None:
        super()._collect(sites)
        for site in sorted(set(self.model.reports) - set(self._took_part()) - set(self._out)):
            self.note(site, "left out of the round: none of its samples came into an iteration")

    def _check_report(self, site: str, report: SiteReport) -> None:
        facts, settings, steps = self.sites[site], self.plan.training, self._steps(site)
        if not 0 <= report.num_steps <= steps:
            raise RefusalError("report", f"The site reports {report.num_steps} steps; the round has {steps}.")
        ordinary = settings.local_epochs * -(-facts.num_samples // settings.batch_size)
        check_report(replace(report, num_steps=ordinary), facts, settings)

    def _finish(self) -> None:
        """With parts of their own, have them sent and write one model for each site; then score as usual."""
        if self.model.common is None:
            task = FLModel(metrics={"submit": 1.0}, meta={})
            self.ask(AppConstants.TASK_SUBMIT_MODEL, task, sorted(self.sites), self.round_timeout, self._take_part)
            last = len(self.rounds) - 1
            for site in sorted(self.model.parts):
                self._site_models[site] = f"last.{site}.safetensors"
                self.record.model(self._site_models[site], self.plan, self.model.whole(site), last)
        super()._finish()

    def _take_part(self, answer: FLModel) -> bool:
        """Take in a site's own part."""
        try:
            self.model.take_part(answer.meta["client_name"], answer.params or {})
        except FedsegError as error:
            self.note(answer.meta["client_name"], f"its part was left out: {error}")
            return False
        return True

    def _beats_best(self, scored: Scored) -> bool:
        """Nobody keeps the sites' own parts of earlier rounds, so that only the last model can be had."""
        return self.model.common is not None and super()._beats_best(scored)

    def _store(self, name: str, round_number: int) -> str:
        """The server's part alone is no model; see ``_finish``."""
        return name if self.model.common is None else super()._store(name, round_number)

    def _write_results(self, **parts: Any) -> None:
        if self._site_models or self.model.common is None:
            parts = {
                name: {**part, "model": None, "models": self._site_models} if name == "final" else part
                for name, part in parts.items()
            }
        super()._write_results(**parts)
