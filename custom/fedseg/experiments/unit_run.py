"""A unit from the start to its folder, which is there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from fedseg.errors import FedsegError
from fedseg.experiments.arms import ENSEMBLE
from fedseg.experiments.definition import Watts
from fedseg.experiments.rows import Row
from fedseg.experiments.scoring import score_ensemble, score_models
from fedseg.experiments.trained import Told, Trained, train
from fedseg.experiments.units import Unit
from fedseg.files.documents import load_json, sync, write_json, write_whole
from fedseg.processes import MemoryWatch

UNITS, WORK, CACHE = "units", "work", "cache"
RECORD, ROWS, ERROR = "unit.json", "rows.json", "error.txt"
PROGRESS = "progress"
JOULES_PER_KWH = 3.6e6
_TRAINING_SHARE = 0.9
"""Of a unit's time, for its progress; the rest is scoring."""


@dataclass(frozen=True)
class Record:
    """What a finished unit was.

    Attributes:
        digest: of the unit.
        costs: quantities.
        models: files in the unit's folder by the site that uses them.
        order: see ``Trained``.
    """

    digest: str
    costs: dict[str, float]
    models: dict[str, str]
    order: list[str]


@dataclass(frozen=True)
class Done(Record):
    """What a finished unit left.

    Attributes:
        results, curves: rows without experiment, arm, seed and fold.
    """

    results: list[Row]
    curves: list[Row]


def read_record(out: Path, name: str) -> Record | None:
    """What the finished unit of this name was; None where it is not finished, or cannot be read.

    Args:
        out: folder of the experiment.
        name: of the unit.
    """
    try:
        return Record(**load_json(out / UNITS / name / RECORD))
    except (OSError, ValueError, TypeError):
        return None


def read_done(out: Path, name: str) -> Done | None:
    """What the finished unit of this name left; arguments and None as of ``read_record``."""
    record = read_record(out, name)
    try:
        return None if record is None else Done(**vars(record), **load_json(out / UNITS / name / ROWS))
    except (OSError, ValueError, TypeError):
        return None


def is_done(out: Path, unit: Unit) -> bool:
    """Whether the unit, as it is defined now, is finished."""
    record = read_record(out, unit.name)
    return record is not None and record.digest == unit.digest


def try_unit(unit: Unit, out: Path, watts: Watts) -> str:
    """Do a unit, unless it is done; whatever goes wrong ends this unit only.

    Args:
        unit, out, watts: as of ``run_unit``.

    Returns:
        Why it failed; empty where it is done. The traceback lies in ``work/<unit>/error.txt``.
    """
    try:
        run_unit(unit, out, watts)
    except Exception as error:
        told = out / WORK / unit.name / ERROR
        with suppress(OSError):  # on a full disk the reason is all that there is
            told.parent.mkdir(parents=True, exist_ok=True)
            told.write_text(traceback.format_exc(), "utf-8")
        if isinstance(error, FedsegError):
            return str(error)
        return f"{type(error).__name__}: {str(error).rstrip('.')}. Its traceback is in {told}."
    return ""


def run_unit(unit: Unit, out: Path, watts: Watts) -> None:
    """Do a unit, unless it is done.

    Args:
        unit: the unit; what it needs is done.
        out: folder of the experiment.
        watts: for the energy.

    Raises:
        FedsegError: it failed; its log, if there is one, stays in ``work/<unit>``.
    """
    if is_done(out, unit):
        return
    work = out / WORK / unit.name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    tell = _teller(work / PROGRESS)
    meter = _Meter()
    try:
        trained = _ensemble(unit, out) if unit.arm.kind == ENSEMBLE else train(unit, work, out / CACHE, tell)
        tell(1.0)
        results = _scored(unit, trained, out / CACHE)
    finally:
        meter.stop()
    costs = trained.costs | meter.costs(watts)
    models = {} if unit.arm.kind == ENSEMBLE else {site: file.name for site, file in trained.models.items()}
    (work / PROGRESS).unlink(missing_ok=True)
    write_json(work / ROWS, {"results": results, "curves": trained.curves})
    write_json(work / RECORD, vars(Record(unit.digest, costs, models, trained.order)))
    _keep(work, out / UNITS / unit.name)


def _ensemble(unit: Unit, out: Path) -> Trained:
    models: dict[str, Path] = {}
    for name in unit.needs:
        record = read_record(out, name)
        if record is None:
            raise FedsegError(f"The unit {name}, whose model is needed, is not finished.")
        models |= {site: out / UNITS / name / file for site, file in record.models.items()}
    return Trained(models, [], {"rounds": 0, "steps": 0, "samples": 0, "bytes_sent": 0, "bytes_received": 0})


def _scored(unit: Unit, trained: Trained, cache: Path) -> list[Row]:
    plan = unit.job.plan
    torch.set_num_threads(plan.training.threads)
    if unit.arm.kind == ENSEMBLE:
        return score_ensemble(plan, list(trained.models.values()), unit.fold, cache)
    return score_models(plan, trained.models, unit.fold, unit.arm.elsewhere, cache)


def _keep(work: Path, final: Path) -> None:
    """Give the finished folder its name, in the place of one of a former definition."""
    # First of all it says no more that it is finished, whatever happens to the rest of it.
    (final / RECORD).unlink(missing_ok=True)
    shutil.rmtree(final, ignore_errors=True)
    final.parent.mkdir(exist_ok=True)
    os.replace(work, final)
    sync(final.parent)


def _teller(file: Path) -> Told:
    def tell(share: float) -> None:
        write_whole(file, f"{_TRAINING_SHARE * share:.4f}")

    return tell


def read_progress(out: Path, unit: Unit) -> float:
    """The share of a unit that is done, from 0 to 1; 0 where it says nothing."""
    try:
        return float((out / WORK / unit.name / PROGRESS).read_text("utf-8"))
    except (OSError, ValueError):
        return 0.0


class _Meter:
    """Seconds and memory of this process from now on."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()
        self._watch = MemoryWatch(os.getpid(), interval=0.2)
        self._gpu = torch.cuda.is_available()

    def stop(self) -> None:
        """End the measuring."""
        self._watch.stop()
        self._seconds = time.monotonic() - self._wall
        self._busy = time.process_time() - self._cpu
        self._resident = psutil.Process().memory_info().rss / 2**20

    def costs(self, watts: Watts) -> dict[str, float]:
        """``cpu_seconds``, ``wall_seconds``, ``peak_memory_mib``; with a GPU ``gpu_seconds``; with watts ``kwh``."""
        peak = round(max(self._watch.peak_total, self._resident), 1)
        found = {"cpu_seconds": self._busy, "wall_seconds": self._seconds, "peak_memory_mib": peak}
        used = {"cpu": (watts.cpu, self._busy)}
        if self._gpu:
            found["gpu_seconds"] = self._seconds
            used["gpu"] = (watts.gpu, self._seconds)
        # A part whose power nobody has stated makes the sum unknown, not smaller.
        if all(power is not None for power, _ in used.values()):
            found["kwh"] = sum(float(power or 0) * seconds for power, seconds in used.values()) / JOULES_PER_KWH
        return found
