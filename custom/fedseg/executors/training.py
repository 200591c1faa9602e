"""The executor of a site that trains whole networks: weights in, weight differences out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedseg.contract.protocol import MODEL_ID, RUN_ID, SHARE, START, TOTALS, UPLOAD
from fedseg.contract.report import SiteReport
from fedseg.contract.round_settings import parse_round_settings
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.executors.refusals import check_statistics
from fedseg.executors.site_executor import Answer, SiteExecutor
from fedseg.filters.chain import is_guaranteed, update_chain
from fedseg.filters.encrypt import encrypts
from fedseg.messages.job import job_plan
from fedseg.messages.task_data import follow_server, update_message
from fedseg.networks.weights import Arrays, join_shared
from fedseg.site.pending_update import largest, load_update, save_update, weight_facts
from fedseg.training.site_round import empty_round, site_round
from fedseg.training.trainer import SiteTrainer

logger = logging.getLogger(__name__)


class SegmentationExecutor(SiteExecutor):
    """Trains and validates at one site.

    Tasks: ``prepare`` (accept the job or refuse it), ``train``, ``validate`` and ``submit_model``; where a method needs
    arrays of all sites before the first round also ``share``; in jobs that encrypt updates also ``upload``, until which
    the update of a round waits on the site's own disk. Everything that is trained stands in the job's plan file; where
    data and state are stands in the site's own profile.
    """

    def __init__(self, hooks: list[str] | None = None) -> None:
        """Name the hooks of the job's method.

        Args:
            hooks: ids of components of the job that are training hooks, in the order in which they are called; see
                ``fedseg.training.hooks``. (FLARE does not build components that stand in a list.)

        Raises:
            ConfigurationError: ``hooks`` is not a list of ids.
        """
        if not all(isinstance(hook, str) for hook in hooks or []):
            raise ConfigurationError("executor.hooks", hooks, "a list of component ids")
        super().__init__(hooks or [])

    def tasks(self) -> Mapping[str, Answer]:
        return {**super().tasks(), SHARE: self._share, UPLOAD: self._upload}

    def _share(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Arrays of the job's method that the server needs of all sites before the first round."""
        task, session = FLModelUtils.from_shareable(shareable), self.session
        trainer = self.load_run(job_plan(fl_ctx), task.meta.get(RUN_ID), fl_ctx)
        session.attach(trainer, -1, {}, task.meta, fl_ctx)
        arrays = trainer.arrays_before_rounds()
        check_statistics(session.guaranteed and not is_guaranteed(update_chain(fl_ctx, [SHARE])), arrays)
        training, validation = trainer.count("training"), trainer.count("validation")
        report = SiteReport(training, num_steps=0, train_loss=None, val_loss=None, val_cases=validation)
        return update_message(join_shared({}, arrays), report)

    def train(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """Train a round from the received model; in encrypted jobs the update stays here and only its report leaves."""
        model, session = FLModelUtils.from_shareable(shareable), self.session
        trainer = self.load_run(job_plan(fl_ctx), model.meta.get(RUN_ID), fl_ctx)
        received, number = self.received(model.params, model.meta, fl_ctx), int(model.current_round or 0)
        follow_server(trainer.state, model.meta, trainer.site)
        encrypted = encrypts(fl_ctx)
        session.record.received(received, number, model.meta, trainer.count("training"), encrypted)
        session.attach(trainer, number, received, model.meta, fl_ctx)
        update, report = self._train_round(trainer, received, model)
        report = session.permitted(replace(report, largest=largest(update) if encrypted else None))
        if encrypted:
            save_update(session.folder, number, model.meta.get(START), update, report, model.meta.get(MODEL_ID))
            update = {}
        return self.reply(update, report, number, fl_ctx)

    def _train_round(self, trainer: SiteTrainer, received: Arrays, task: FLModel) -> tuple[Arrays, SiteReport]:
        number, total = int(task.current_round or 0), max(1, int(task.total_rounds or 1))
        settings = parse_round_settings(task.meta)
        try:
            return site_round(trainer, received, number, total, task.meta.get(TOTALS), settings)
        except RefusalError as error:
            if not (self.session.guaranteed and error.reason == "loss"):
                raise
            # To refuse would tell something of the data, outside of the guarantee and as often as the server likes.
            logger.error("The round could not be trained (%s); an update of zeros is sent in its place.", error)
            return empty_round(trainer, received)

    def _upload(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """The update of the round, now that the server has said what it weighs; the job's filters encrypt it."""
        task, session = FLModelUtils.from_shareable(shareable), self.session
        trainer = self.load_run(job_plan(fl_ctx), task.meta.get(RUN_ID), fl_ctx)
        if not encrypts(fl_ctx):
            raise RefusalError("privacy", "The job has no filter that encrypts, so the update stays at this site.")
        number, weights = int(task.current_round or 0), task.metrics or {}
        session.record.belongs_to(number, task.meta)
        update, report, before = load_update(session.folder, number, task.meta.get(START))
        session.attach(trainer, number, {}, {**task.meta, **weight_facts(weights, trainer.site, before)}, fl_ctx)
        return update_message(update, report, number)
