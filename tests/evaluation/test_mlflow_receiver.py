"""FLARE's receiver keeps in MLflow what a site's executor sends. Skipped where MLflow is not installed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import EventScope, FLContextKey, ProcessType, ReservedKey
from nvflare.apis.fl_context import FLContext, FLContextManager
from nvflare.apis.shareable import Shareable

from fedseg.contract.report import SiteReport
from fedseg.evaluation.mlflow_store import local_store
from fedseg.executors.curves import send_curves
from fedseg.filters.guard.guard import CURVES
from fedseg.jobs.components import build_component
from fedseg.tasks.objective import Score

pytest.importorskip("mlflow", reason="MLflow is an extra: pip install 'fedseg[mlflow]'")


class Sender(FLComponent):
    """Keeps the events that an executor would send to the server."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Shareable] = []

    def fire_fed_event(self, event_type: str, event_data: Shareable, fl_ctx: FLContext, targets: object = None) -> None:
        assert event_type == CURVES
        self.sent.append(event_data)


def context(workspace: Path) -> FLContext:
    """That of a server's job process with one site."""
    places = SimpleNamespace(get_result_root=lambda job: str(workspace), get_run_dir=lambda job: str(workspace))
    engine = SimpleNamespace(get_clients=lambda: [Client("alpha", "token")], get_workspace=lambda: places)
    stickers = {FLContextKey.PROCESS_TYPE: ProcessType.SERVER_JOB}
    manager = FLContextManager(engine, "server", "job", private_stickers=stickers)
    return manager.new_context()


def test_a_receiver_of_flare_keeps_what_a_site_sends(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri, score = local_store(tmp_path), Score("dice", "Dice")
    arguments = {
        "tracking_uri": uri,
        "kw_args": {"experiment_name": "study"},
        "events": [CURVES],
        "buffer_flush_time": 0,
    }
    path = "nvflare.app_opt.tracking.mlflow.mlflow_receiver.MLflowReceiver"
    receiver = build_component({"path": path, "args": arguments})
    fl_ctx, sender = context(tmp_path), Sender()
    receiver.handle_event(EventType.START_RUN, fl_ctx)
    for number in range(3):
        values = {"num_samples": 4, "num_steps": 2, "train_loss": 1.0 / (1 + number), "val_loss": None}
        report = SiteReport(**values, val_scores={"ET": 0.5 + 0.1 * number})
        send_curves(sender, report, score, number, fl_ctx)
    for sent in sender.sent:
        sent.set_peer_props({ReservedKey.IDENTITY_NAME: "alpha"})
        fl_ctx.set_prop(FLContextKey.EVENT_DATA, sent, private=True, sticky=False)
        fl_ctx.set_prop(FLContextKey.EVENT_SCOPE, EventScope.FEDERATION, private=True, sticky=False)
        receiver.handle_event(CURVES, fl_ctx)
    receiver.handle_event(EventType.END_RUN, fl_ctx)
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    stored = {each.step: each.value for each in client.get_metric_history(run.info.run_id, "val_dice/ET")}
    assert stored == pytest.approx({0: 0.5, 1: 0.6, 2: 0.7})
    assert client.get_metric_history(run.info.run_id, "train_loss")[0].value == 1.0
