"""Runs of a benchmark that are kept one by one, so that an interrupted one goes on where it was."""

import json
import multiprocessing
import os
import shutil
import statistics
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any


def kept(out: Path, *name: Any) -> Path:
    """Where the result of the run of this name is kept."""
    text = "-".join(map(str, name))
    return out / "runs" / f"{''.join(c if c.isalnum() else '_' for c in text)}.json"


def keep(path: Path, result: dict[str, Any]) -> Path:
    """Write a result, as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(result))
    temporary.rename(path)
    return path


def made_once(folder: Path, make: Callable[[Path], Any]) -> Path:
    """A folder that ``make`` has filled; what an interrupted call left is replaced.

    It is filled where it stays: datalists name files in whole paths, so that a folder cannot be moved.
    """
    complete = folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        complete.touch()
    return folder


def write_table(out: Path, lines: Iterable[str]) -> None:
    """Write ``table.md``, and print it."""
    text = "\n".join(lines)
    (out / "table.md").write_text(f"{text}\n")
    print(text)


def load(out: Path) -> list[dict[str, Any]]:
    """All finished runs."""
    return [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]


def run_all(function: Callable[..., Path], work: Iterable[tuple[Any, ...]], jobs: int) -> None:
    """Call ``function`` for each piece of work, ``jobs`` at a time in processes of their own; tell what is done."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(function, *item) for item in work]
        for number, done in enumerate(as_completed(waiting), 1):
            print(f"{number}/{len(waiting)} {done.result().name}", flush=True)


def spread(values: list[float]) -> str:
    """Mean and range over seeds."""
    mean = statistics.mean(values)
    return f"{mean:.4f}" if len(values) == 1 else f"{mean:.4f} ({min(values):.4f} to {max(values):.4f})"
