"""Curves of a site's losses and scores for TensorBoard at the server."""

from __future__ import annotations

from nvflare.apis.analytix import AnalyticsDataType, LogWriterName
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.apis.utils.analytix_utils import create_analytic_dxo, send_analytic_dxo

from fedseg.contract.report import SiteReport
from fedseg.filters.guard.guard import CURVES
from fedseg.tasks.objective import Score


def send_curves(sender: FLComponent, report: SiteReport, score: Score, round_number: int, fl_ctx: FLContext) -> None:
    """Send the points of a round as FLARE's federated events, which the site's guard sees.

    Args:
        sender: the component that sends.
        report: of the round.
        score: the primary one.
        round_number: of the round.
        fl_ctx: of the task.
    """
    curves: dict[str, float | None] = {"train_loss": report.train_loss, "val_loss": report.val_loss}
    curves.update({f"val_{score.name}/{output}": value for output, value in report.val_scores.items()})
    for tag, value in curves.items():
        if value is not None:
            dxo = create_analytic_dxo(
                tag, value, AnalyticsDataType.SCALAR, LogWriterName.TORCH_TB, global_step=round_number
            )
            send_analytic_dxo(sender, dxo, fl_ctx, CURVES, fire_fed_event=True)
