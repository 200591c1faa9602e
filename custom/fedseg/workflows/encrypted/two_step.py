"""The round of an encrypted run: reports first, then ciphertexts that the sites have weighted themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.contract.protocol import MODE, SCALE, START, UPLOAD
from fedseg.workflows.encrypted.job_check import check_encryption
from fedseg.workflows.encrypted.model import LEAST_SITES, EncryptedRunModel
from fedseg.workflows.run.round_protocol import UPDATE_REFUSED, JobParts, RoundProtocol
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.sites import Accept


class TwoStep(RoundProtocol):
    """Reports, of which the rule makes weights; then weighted ciphertexts, which are added as they arrive.

    A site that lacks the model to which a message adds refuses it, and is asked once more, with the whole model.
    """

    encrypts = True

    def __init__(self, model: EncryptedRunModel) -> None:
        self._model = model

    def check_job(self, job: JobParts) -> None:
        super().check_job(job)
        check_encryption(job, self._model.fixed_scale is not None)

    def collect(self, run: RunState, asked: Sequence[str]) -> None:
        model = self._model
        self.train(run, asked)
        if lacking := self._lacking(run, asked):
            self.train(run, lacking)
        for site in model.drop_outliers():
            run.note(site, f"{UPDATE_REFUSED}: its largest value is over 1000 times the median of the other sites'")
        if len(model.reports) >= max(LEAST_SITES, min(run.settings.min_sites, len(asked))):
            self._collect_ciphertexts(run)

    def score(
        self, run: RunState, number: int, sites: Sequence[str], meta: Mapping[str, Any], accept: Accept
    ) -> dict[str, FLModel]:
        answers = super().score(run, number, sites, meta, accept)
        lacking = self._lacking(run, sites)
        return {**answers, **super().score(run, number, lacking, meta, accept)} if lacking else answers

    def _collect_ciphertexts(self, run: RunState) -> None:
        """The second step, with the sites that reported."""
        model = self._model
        weights = model.weigh()
        meta = {SCALE: model.scale, MODE: model.mode, START: run.start_id}
        task = FLModel(metrics=weights, meta=meta, current_round=run.number, total_rounds=run.settings.num_rounds)
        timeout = run.settings.round_timeout
        run.sites.ask(UPLOAD, task, sorted(weights), timeout, model.accept_ciphertexts, UPDATE_REFUSED)
        model.drop_missing()

    def _lacking(self, run: RunState, sites: Sequence[str]) -> list[str]:
        """The sites that have just said that they lack the model to which the message added."""
        lacking = [site for site in sorted(sites) if run.sites.refusals.get(site) == "history"]
        for site in lacking:
            self._model.forget_site(site)
        return lacking
