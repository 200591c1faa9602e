"""What of a stopped job may change before it goes on."""

from __future__ import annotations

from collections.abc import Sequence

from fedseg.errors import UsageError
from fedseg.jobs.job import Job, parse_setting

# What decides when a round or the run ends, but not what a round makes.
CHANGEABLE = tuple(
    f"workflow.{name}"
    for name in (
        "round_timeout", "prepare_timeout", "site_silence", "min_sites", "target_dice", "patience", "max_hours",
        "max_epsilon", "keep_updates", "fine_tune", "fresh_states", "message_timeout", "start_timeout",
    )
)  # fmt: skip


def change_stopped(job: Job, settings: Sequence[str]) -> None:
    """Change a job that goes on; later settings win.

    Args:
        job: as it was when it stopped.
        settings: each ``key=value``, as typed on the command line.

    Raises:
        UsageError: a setting that decides what a round makes; names those that may change.
    """
    for text in settings:
        key, value = parse_setting(text)
        if key not in CHANGEABLE:
            raise UsageError(
                f"--set {text}: a run goes on with the job as it was; only {', '.join(CHANGEABLE)} may change."
            )
        job.set(key, value)
