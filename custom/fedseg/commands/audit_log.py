"""``fedseg audit-log``: verify or show the record of a run, or the ledger of a swarm.

The record of a run at the server and at its sites, and the ledger of a swarm: who submitted what, who took part, which
models were made.

example: fedseg audit-log verify runs/first
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from fedseg import allowed
from fedseg.commands.arguments import Command
from fedseg.console import out
from fedseg.contract.round_numbers import nth
from fedseg.errors import DataError, UsageError
from fedseg.files.hash_chain_check import ChainError
from fedseg.provenance.reading import Record, read_record
from fedseg.provenance.run_log import SERVER_SIDE

if TYPE_CHECKING:
    from fedseg.provenance.swarm.audit import Copy

_SHOWN = 16
# Kinds of arrays in the answers to direct calls, for people.
_LEFT = {
    "features": "features of image patches",
    "labels": "labels as they are",
    "at_predictions": "gradients at the predictions, which tell the labels",
    "parameters": "gradients of the site's part of the network",
    "part": "weights of the site's part of the network",
}


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    actions = Command(subparsers, None, __doc__).actions("verify or show")
    verify = Command(actions, run_verify)
    verify.path("paths", "record, ledger of a swarm, model, or folder of a run", "PATH", nargs="+")
    verify.path("--root", "rootCA.pem of the federation: check who issued the certificates in a ledger", "FILE")
    told = "signatures that each block of a ledger must have (default: what the ledger says)"
    verify.value("--quorum", told, int, metavar="N")
    Command(actions, run_show).path("path", "record, ledger of a swarm, or folder of a run", "PATH")


def run_verify(options: argparse.Namespace) -> int:
    """``fedseg audit-log verify``: check records and ledgers, and models against them.

    Verify the hash chains of records, compare the records of server and sites, and models with their provenance files
    and the record. Of ledgers of a swarm verify blocks, signatures and quorum, and that copies agree. Ends with 1 if a
    check fails.

    example: fedseg audit-log verify runs/first
    """
    from fedseg.provenance.audit import audit

    if options.quorum is not None:
        allowed.whole("--quorum", options.quorum)
    findings = audit(options.paths, options.root, options.quorum)
    for finding in findings:
        word = "[green]ok   [/green]" if finding.good else "[red]WRONG[/red]"
        out().print(f"{word} {escape(finding.text)}")
    wrong = sum(not finding.good for finding in findings)
    out().print(f"{wrong} of {len(findings)} check(s) failed." if wrong else f"All {len(findings)} check(s) hold.")
    return int(wrong > 0)


def run_show(options: argparse.Namespace) -> int:
    """``fedseg audit-log show``: print a record or a ledger as a table.

    Print a record, or the ledger of a swarm, one row for each line or block, and its head: the hash to note elsewhere.

    example: fedseg audit-log show runs/first/report/record.jsonl
    """
    if (ledger := _one_ledger(options.path)) is not None:
        return _show_ledger(ledger)
    record = _one_record(options.path)
    table = Table("line", "time (UTC)", "what", "details")
    for entry in record.entries:
        describe = _DETAILS.get(entry["kind"], _all)
        cells = (entry["number"], entry["time"].partition(".")[0].replace("T", " "), entry["kind"], describe(entry))
        table.add_row(*(escape(str(cell)) for cell in cells))
    out().print(table)
    of_run = f" of the run {record.run_id}" if record.run_id else ""
    out().print(escape(f"{record.title[0].upper()}{record.title[1:]}{of_run}: {len(record.entries)} lines, intact"))
    out().print(f"head {record.head}")
    return 0


def _one_ledger(path: Path) -> Copy | None:
    """The ledger of a swarm at a path; None where a record lies there, or a whole folder."""
    from fedseg.provenance.swarm.audit import is_ledger, read_copy

    if not path.is_file() or not is_ledger(path):
        return None
    try:
        return read_copy(path)
    except ChainError as error:
        raise DataError(f"{path} was changed. {error}") from None


def _show_ledger(copy: Copy) -> int:
    table = Table("round", "time (UTC)", "leader", "took part, with cases", "signed", "model", "rule")
    for signed in copy.blocks:
        block = signed.block
        parts = ", ".join(f"{site} {part.cases}" for site, part in block.parts.items())
        time = block.time.rstrip("Z").replace("T", " ")
        cells = (nth(block.round), time, block.leader, parts, ", ".join(signed.sites), block.model[:_SHOWN], block.rule)
        table.add_row(*(escape(str(cell)) for cell in cells))
    out().print(table)
    signed_words = "signed" if copy.opening.root else "not signed, as in a simulation"
    whose = f"{copy.title[0].upper()}{copy.title[1:]} of the run {copy.opening.run_id}"
    out().print(escape(f"{whose}: {len(copy.blocks)} block(s), {signed_words}, lines intact"))
    out().print(f"head {copy.head}")
    return 0


def _one_record(path: Path) -> Record:
    """The record at a path; in a folder that of the server, or the only one."""
    from fedseg.provenance.collection import collect
    from fedseg.provenance.swarm.audit import is_ledger

    files = [file for file in collect([path])[0] if not is_ledger(file)]
    try:
        records = [read_record(file) for file in files]
    except ChainError as error:
        raise DataError(f"{path} holds a record that was changed. {error}") from None
    chosen = [record for record in records if record.side == SERVER_SIDE] or records
    # Of several copies of a record the one that goes on longest.
    whose = {(r.side, r.name, r.run_id): r for r in sorted(chosen, key=lambda record: len(record.entries))}
    if len(whose) != 1:
        raise UsageError(f"{path} holds {len(whose)} records; name one of them, e.g. {files[0] if files else path}.")
    return next(iter(whose.values()))


def _job(entry: Mapping[str, Any]) -> str:
    submitter = entry.get("submitter") or {}
    who = ", ".join(str(submitter[name]) for name in ("name", "organisation") if submitter.get(name))
    after = f", after round {nth(entry['round'])}" if entry["kind"] == "resumed" else ""
    versions = " ".join(f"{name} {number}" for name, number in sorted(entry.get("versions", {}).items()))
    job = f"{entry.get('job')} ({entry.get('job_id')}), content {str(entry.get('job_hash', ''))[:_SHOWN]}"
    return f"{job}, by {who or 'nobody named'}{after}; {versions}"


def _round(entry: Mapping[str, Any]) -> str:
    sites = ", ".join(f"{site} {_taken(part)}" for site, part in entry["sites"].items())
    left = "; ".join(f"without {site}: {why}" for site, why in entry["left_out"].items())
    return f"round {nth(entry['round'])}: {sites}; model {entry['model'][:_SHOWN]}" + (f"; {left}" if left else "")


def _taken(part: Mapping[str, Any]) -> str:
    epsilon = part.get("epsilon")
    return f"{part['cases']} case(s)" + ("" if epsilon is None else f", epsilon {epsilon:.4g}")


def _received(entry: Mapping[str, Any]) -> str:
    return f"round {nth(entry['round'])}: model {entry['model'][:_SHOWN]}, {entry['cases']} training case(s)"


def _sent(entry: Mapping[str, Any]) -> str:
    epsilon = "" if entry.get("epsilon") is None else f", epsilon {entry['epsilon']:.4g}"
    rest = f" in round {nth(entry['round'])}" if entry.get("round") is not None else ""
    return f"{entry['task']}{rest}: {entry['content']}, {entry['bytes']} bytes{epsilon}"


def _called(entry: Mapping[str, Any]) -> str:
    rest = f"round {nth(entry['round'])}: " if entry.get("round") is not None else ""
    left = ", ".join(_LEFT.get(kind, kind) for kind in entry["left"]) or "no data"
    traffic = f"{entry['bytes_out']} bytes out, {entry['bytes_in']} bytes in"
    return f"{rest}answered {entry['calls']} direct call(s) of the server; what left the site: {left}; {traffic}"


def _refused(entry: Mapping[str, Any]) -> str:
    rest = f" in round {nth(entry['round'])}" if entry.get("round") is not None else ""
    job = f"; {_job(entry)}" if "job_id" in entry else ""
    return f"{entry['task']}{rest}: {entry['reason'] or entry['code']}: {entry['text']}{job}"


def _model(entry: Mapping[str, Any]) -> str:
    return f"{entry['name']}: model {entry['model'][:_SHOWN]}, after round {nth(entry['round'])}"


def _all(entry: Mapping[str, Any]) -> str:
    hidden = ("number", "time", "kind", "previous", "hash", "schema")
    known = {name: value for name, value in entry.items() if name not in hidden and value not in ("", None)}
    if "round" in known:
        known["round"] = nth(known["round"])
    return ", ".join(f"{name} {_words(value)}" for name, value in known.items())


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


_DETAILS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "start": _job,
    "resumed": _job,
    "accepted": lambda entry: _all(entry) if "site" in entry else f"{_job(entry)}; cases {_words(entry['cases'])}",
    "round": _round,
    "received": _received,
    "sent": _sent,
    "called": _called,
    "refused": _refused,
    "final": _model,
    "model": _model,
}
