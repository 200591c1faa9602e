"""A run that is repeated without each of its sites: how a model does where it has never been trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedseg.errors import AbortedError, FedsegError
from fedseg.evaluation.cross_site import LAST, WITHOUT, Cell, MatrixModel
from fedseg.workflows.run.checkpoint import Checkpoints
from fedseg.workflows.run.cross_site import CrossSiteScoring
from fedseg.workflows.run.last_evaluation import conclude
from fedseg.workflows.run.record import RunRecord
from fedseg.workflows.run.round_protocol import RoundProtocol
from fedseg.workflows.run.run_model import RunModel
from fedseg.workflows.run.selection_base import SiteSelection
from fedseg.workflows.run.settings import RunSettings
from fedseg.workflows.run.sites import Sites
from fedseg.workflows.run.training_run import TrainingRun

NewParts = Callable[[], tuple[RunModel, RoundProtocol, SiteSelection]]
"""Makes the parts of a run that remember its rounds: each run has its own."""


class LeaveOneOutRun(TrainingRun):
    """A run with all sites, and then one without each: the site that is left out scores the models and does not train.

    A run without a site has an id of its own, which ends with ``-without-`` and the site's name, and so has states,
    ledger entries and records of its own. Where it fails, its row of the matrix says why, and the next one begins.
    """

    def __init__(self, settings: RunSettings, parts: NewParts, sites: Sites, record: RunRecord) -> None:
        """Prepare the run with all sites.

        Args:
            settings: of the run with all sites; of those without one the same but for who trains.
            parts: makes model, protocol and selection of each run.
            sites: the port to the sites.
            record: of the run with all sites; the others lie in folders of it.
        """
        super().__init__(settings, *parts(), sites, record)
        self._parts = parts
        self._now: TrainingRun = self

    def train(self) -> None:
        """See ``TrainingRun``."""
        self.prepare()
        self.run_rounds()
        across, sites = self.evaluate(), sorted(self.state.facts)
        if across is not None and self.state.rounds and len(sites) > 1:
            for site in sites:
                self._without(site, across)
        conclude(self.state)

    def progress(self) -> dict[str, Any]:
        """Of the run that is on now."""
        return super().progress() if self._now is self else self._now.progress()

    def _without(self, site: str, across: CrossSiteScoring) -> None:
        """Repeat the run without a site, and add what became of it to the matrix."""
        run = self.state
        run_id, note, model = run.sites.run_id, run.sites.note, MatrixModel(WITHOUT, site)
        run.record.event("without", site=site)
        cells: dict[str, Cell] = {}
        try:
            model, cells = self._train_without(site)
        except AbortedError:
            raise
        except FedsegError as error:
            model = replace(model, missing=str(error).rstrip("."))
        finally:
            self._now = self
            run.sites.run_id, run.sites.note = run_id, note
        across.add_row(model, cells)

    def _train_without(self, site: str) -> tuple[MatrixModel, dict[str, Cell]]:
        """The model without a site, and what all sites said of it."""
        run = self.state
        run_id = f"{run.sites.run_id}-without-{site}"
        settings = replace(
            run.settings,
            # There is one site less: a job that asks for all of them would have no such training at all.
            min_sites=min(run.settings.min_sites, len(run.facts) - 1),
            cross_site=False,
            evaluate_only=(*(run.settings.evaluate_only or ()), site),
            run_id=run_id,
            resume=bool(Checkpoints(run.place.state / run_id, run.settings.keep_checkpoints).resumable()),
            resume_round=None,
        )
        record = run.record.beside(f"without-{site}")
        fold = self._now = TrainingRun(settings, *self._parts(), run.sites, record)
        with record.failures():
            fold.state.load(run.plan, replace(run.place, models={}), run.report_fields)
            try:
                fold.prepare()
                fold.run_rounds()
                across = fold.evaluate()
                conclude(fold.state)
            finally:
                fold.state.checkpoints.unlock()
        if across is None:
            raise FedsegError("The site that was left out did not score the model")
        row = next(model for model in across.matrix.models if model.kind == LAST)
        return MatrixModel(WITHOUT, site, row.digest), across.matrix.cells[row.name]
