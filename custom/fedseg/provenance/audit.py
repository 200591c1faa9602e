"""What ``fedseg audit-log`` checks: records and ledgers alone and against each other, models against records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedseg.contract.round_numbers import nth
from fedseg.errors import DataError, UsageError
from fedseg.files.digest import model_digest
from fedseg.files.hash_chain_check import ChainError
from fedseg.models.encrypted_file import read_encrypted_file
from fedseg.models.model_file import read_model
from fedseg.models.note import ModelNote, read_note
from fedseg.provenance.collection import collect
from fedseg.provenance.reading import Record, named_models, read_record
from fedseg.provenance.record_comparison import Finding, compare
from fedseg.provenance.run_log import SERVER_SIDE
from fedseg.provenance.swarm.audit import audit_swarm, is_ledger
from fedseg.provenance.swarm.signatures import Root


def audit(paths: Sequence[Path], root: Path | None = None, quorum: int | None = None) -> list[Finding]:
    """Check everything that the paths name or hold.

    Args:
        paths: records, ledgers of swarms, model files, and folders of runs or of states. Beside a model the record of
            its run is looked for, where the model lies in the folder of a run. Ledgers that are all named as files must
            be of one run.
        root: the federation's root certificate, by which signatures in ledgers are checked.
        quorum: how many signatures each block of a ledger must have; None for what the ledger says itself.

    Raises:
        UsageError: a path does not exist, nothing that can be checked lies there, or there is a root or a quorum, but
            no ledger.
        DataError: the root certificate cannot be read.
    """
    files, models = collect(paths)
    ledgers = [file for file in files if is_ledger(file)]
    if not ledgers and (root is not None or quorum is not None):
        raise UsageError("--root and --quorum are for the ledger of a swarm; none lies there.")
    one_run = all(ledger in paths for ledger in ledgers)
    findings = list(audit_swarm(ledgers, Root.read(root) if root else None, quorum, one_run))
    records = []
    for file in (file for file in files if file not in ledgers):
        finding, record = check_record(file)
        findings.append(finding)
        records += [record] if record else []
    findings += _compare_all(records)
    return findings + [check_model(model, records) for model in models]


def check_record(path: Path) -> tuple[Finding, Record | None]:
    """Verify one record by itself."""
    try:
        record = read_record(path)
    except (ChainError, DataError) as error:
        text = str(error) if str(path) in str(error) else f"{path}: {error}"
        return Finding(False, text), None
    torn = f", and {record.torn} bytes of a line that was never completed" if record.torn else ""
    return Finding(True, f"{path}: {record.title}, {len(record.entries)} lines, head {record.head}{torn}"), record


def _compare_all(records: Sequence[Record]) -> Iterator[Finding]:
    """Each run's records against each other. With one server's record, all others must be of its run."""
    longest: dict[tuple[str, str, str], Record] = {}
    for record in records:
        if record.run_id:
            known = longest.setdefault((record.side, record.name, record.run_id), record)
            if known is not record:
                yield _same_beginning(known, record)
            if len(record.entries) > len(known.entries):
                longest[record.side, record.name, record.run_id] = record
    servers = [record for record in longest.values() if record.side == SERVER_SIDE]
    sites = [record for record in longest.values() if record.side != SERVER_SIDE]
    for server in servers:
        yield from compare(server, [site for site in sites if len(servers) == 1 or site.run_id == server.run_id])


def _same_beginning(one: Record, other: Record) -> Finding:
    """Two copies of a record: the shorter one is where the longer one began."""
    short, long = sorted((one, other), key=lambda record: len(record.entries))
    good = long.entries[: len(short.entries)] == short.entries
    text = "is a copy of" if good else "tells another story than"
    return Finding(good, f"{other.path} {text} {one.path}")


def digest_of(path: Path) -> str:
    """Digest of a model file, encrypted or not.

    Raises:
        DataError: it is missing or not a model.
    """
    if path.suffix == ".encrypted":
        return read_encrypted_file(path).model.ids()[-1]
    return model_digest(read_model(path).weights)


def check_model(path: Path, records: Sequence[Record]) -> Finding:
    """Compare a model with its provenance file, and both with the record of the run.

    Args:
        path: the model.
        records: all at hand.
    """
    try:
        digest, note = digest_of(path), read_note(path)
    except DataError as error:
        return Finding(False, str(error))
    if note is None:
        return _without_note(path, digest, records)
    if note.model != digest:
        text = f"its digest is {digest[:16]}..., noted is {note.model[:16]}..."
        return Finding(False, f"{path} is not the model that its provenance file is about: {text}")
    servers = [record for record in records if record.side == SERVER_SIDE]
    if not servers:
        return Finding(True, f"{path} agrees with its provenance file; no record of a server is here to look further")
    found = [_named(note, record) for record in servers if record.run_id == note.run_id]
    if not found:
        return Finding(False, f"{path} is a model of the run {note.run_id}, of which no record is here")
    if True not in found:
        return Finding(False, f"{path}: line {note.line} of the record is not the one that its provenance file names")
    if note.opened_from:
        return _opened(path, note, records)
    return Finding(True, f"{path} is the model after round {nth(note.round)}, as line {note.line} of the record says")


def _named(note: ModelNote, record: Record) -> bool:
    if not 1 <= note.line <= len(record.entries):
        return False
    entry = record.entries[note.line - 1]
    model = note.opened_from or note.model
    return (entry["hash"], entry.get("model"), entry.get("round")) == (note.hash, model, note.round)


def _opened(path: Path, note: ModelNote, records: Sequence[Record]) -> Finding:
    """A decrypted model must be what the sites came to; the server's record knows only what it was opened from."""
    came_to = {
        str(entry["weights"])
        for record in records
        if record.side != SERVER_SIDE and record.run_id == note.run_id
        for entry in record.of_kind("received", "scored")
        if "weights" in entry and entry.get("model") == note.opened_from
    }
    text = f"{path} was opened from the model after round {nth(note.round)}, as line {note.line} of the record says"
    if came_to and came_to != {note.model}:
        return Finding(False, f"{text}, but the sites decrypted other weights")
    return Finding(True, text + (", and the sites decrypted the same" if came_to else "; no site's record says more"))


def _without_note(path: Path, digest: str, records: Sequence[Record]) -> Finding:
    """A model without provenance is good if a record names it."""
    for record in records:
        lines = named_models(record).get(digest, []) if record.side == SERVER_SIDE else []
        if lines:
            return Finding(True, f"{path} has no provenance file; line {lines[-1]} of the server's record names it")
        for entry in record.of_kind("received", "scored"):
            if digest in (entry.get("model"), entry.get("weights")):
                where = f"line {entry['number']} of the {record.title}"
                return Finding(True, f"{path} has no provenance file; {where} names it as {entry['kind']}")
    return Finding(False, f"{path} has no provenance file, and no record here names its digest {digest[:16]}...")
