"""A site's records beside its ledger: what left with a guarantee, by its records, must have been charged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedseg.contract.round_numbers import nth
from fedseg.provenance.reading import read_record
from fedseg.provenance.run_log import RECORD_FILE


def uncharged(state: Path, releases: Iterable[Mapping[str, Any]]) -> list[str]:
    """Rounds that left this site with a guarantee and are not in its ledger, which then is an older copy or another.

    A ledger that was put back with all that lies beside it is sound by itself; the records of the runs are not in it.

    Args:
        state: the site's state folder, with a folder for each run.
        releases: of the ledger, see ``Ledger.history``.

    Returns:
        A line for each round, by the names of the runs.

    Raises:
        ChainError, DataError: a record was changed, or cannot be read.
    """
    charged = Counter((str(entry["run_id"]), entry["round"]) for entry in releases)
    left: Counter[tuple[str, Any]] = Counter()
    for path in sorted(state.glob(f"*/{RECORD_FILE}")):
        record = read_record(path)
        left.update((record.run_id, e.get("round", -1)) for e in record.of_kind("sent") if e.get("epsilon") is not None)
    return [f"run {run}, round {nth(number)}" for run, number in sorted((left - charged).elements())]
