"""Whether the server's record and those of the sites tell the same story."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedseg.contract.round_numbers import nth
from fedseg.errors import DataError
from fedseg.files.hash_chain_check import Entry
from fedseg.provenance.reading import Record, ServerRound, ServerStart, named_models, server_starts

# A chain can be sound and yet hold lines that no run of this version writes.
_OTHER_LINES = (KeyError, TypeError, ValueError, AttributeError)
_NOT_WHOLE = "a line lacks what such a line holds in this version"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        good: whether it holds.
        text: what was compared, or what is wrong and in which line.
    """

    good: bool
    text: str


def compare(server: Record, sites: Sequence[Record]) -> list[Finding]:
    """Compare the server's record of a run with those of its sites, check by check.

    Args:
        server: the server's record.
        sites: records of sites; those of other runs are findings themselves.
    """
    try:
        starts = server_starts(server)
    except DataError as error:
        return [Finding(False, f"{server.title}: {error}")]
    except _OTHER_LINES:
        return [Finding(False, f"{server.title}: {_NOT_WHOLE}")]
    rounds = sum(len(start.rounds) for start in starts)
    findings = [
        Finding(True, f"{server.title}: {len(starts)} start(s) and {rounds} finished round(s) follow from each other")
    ]
    mine = [site for site in sites if site.run_id == server.run_id]
    for site in sites:
        if site not in mine:
            text = f"is of the run {site.run_id}, that of the server is of the run {server.run_id}"
            findings.append(Finding(False, f"{site.title}: {text}"))
    for site in mine:
        findings += [_checked(check, server, starts, site) for check in _CHECKS]
    return [*findings, *_same_weights(mine)]


# What holds, in words, and what does not.
Outcome = tuple[str, list[str]]
Check = Callable[[Record, Sequence[ServerStart], Record], Outcome]


def _checked(check: Check, server: Record, starts: Sequence[ServerStart], site: Record) -> Finding:
    try:
        good, wrong = check(server, starts, site)
    except _OTHER_LINES:
        good, wrong = "", [_NOT_WHOLE]
    return Finding(not wrong, f"{site.title}: {wrong[0] if wrong else good}")


def _job(server: Record, starts: Sequence[ServerStart], site: Record) -> Outcome:
    """Job, content and plan that the site accepted are those that the server ran."""
    wrong, accepted = [], list(site.of_kind("accepted"))
    facts = [{**start.facts, "kind": ""} for start in starts]
    for entry in accepted:
        known = [its for its in facts if its.get("job_id") == entry.get("job_id")]
        if not known:
            wrong.append(f"line {entry['number']} accepts the job {entry.get('job_id')}, which the server did not run")
        for name in ("job_hash", "plan", "job", "submitter") if known else ():
            if entry.get(name) not in [its.get(name) for its in known]:
                wrong.append(f"line {entry['number']} accepts a job with another {name} than the server ran")
    return f"{len(accepted)} time(s) accepted the job that the server ran, with equal content and plan", wrong


def _rounds(server: Record, starts: Sequence[ServerStart], site: Record) -> Outcome:
    """Every round that the server counts for the site is in the site's record, with equal cases, and was answered."""
    wrong, count = [], 0
    for start, told in _counted(starts, site.name):
        count += 1
        here = f"round {nth(told.number)} (start {start.id})"
        number = _trained(told, site)
        begun = _start(told, site, start)
        lines = _of_round(site, "received", begun, number, "train")
        if not lines:
            wrong.append(f"the server counts {here}, of which the site's record knows nothing")
        elif not _of_round(site, "sent", begun, number):
            wrong.append(f"the server counts {here}, in which nothing was sent by the site's record")
        cases = told.sites[site.name]["cases"]
        wrong += [
            f"line {line['number']} trained {line['cases']} case(s) in {here}, the server counts {cases}"
            for line in lines
            if line["cases"] != cases
        ]
    return f"all {count} round(s) that the server counts are there, with equal numbers of cases", wrong


def _told(server: Record, starts: Sequence[ServerStart], site: Record) -> Outcome:
    """The server tells of every finished round for which the site sent something: it counts, or why it does not."""
    rounds: dict[Any, ServerRound] = {
        (start.id, number): told for start in starts for number, told in start.rounds.items()
    }
    wrong, count = [], 0
    for line in site.of_kind("sent"):
        told = rounds.get((line.get("start"), line.get("round")))
        if told is None:
            continue
        count += 1
        if site.name not in {*told.sites, *told.left_out}:
            wrong.append(
                f"line {line['number']} sent something for round {nth(told.number)}, of which the server is silent"
            )
    return f"of all {count} result(s) for finished rounds the server says whether they count", wrong


def _privacy(server: Record, starts: Sequence[ServerStart], site: Record) -> Outcome:
    """Epsilon and what the filters did are, for each round that the server counts, those that the site sent."""
    wrong, count = [], 0
    for start, told in _counted(starts, site.name):
        count += 1
        sent = _of_round(site, "sent", _start(told, site, start), _trained(told, site))
        for name, words in (("epsilon", "epsilon"), ("privacy", "work of the site's filters")):
            noted = told.sites[site.name][name]
            if sent and noted not in [line[name] for line in sent]:
                by_site = ", ".join(str(line[name]) for line in sent)
                wrong.append(
                    f"the server notes {noted} as {words} in round {nth(told.number)}, the site sent {by_site}"
                )
    return f"what protected the updates of all {count} round(s) is what the site sent, epsilon too", wrong


def _received(server: Record, starts: Sequence[ServerStart], site: Record) -> Outcome:
    """The model that the site received in a round is the one that the server made in the round before.

    Where a model is carried from site to site, it is the one that the server notes for the visit; where sites merge the
    models of their peers, the one that it notes for the turn.
    """
    wrong, count, known = [], 0, {start.id: start for start in starts}
    visits = {
        (line["start"], line["round"]): line["received"]
        for line in server.of_kind("visit", "turn")
        if line["site"] == site.name
    }
    for line in site.of_kind("received"):
        if line["task"] != "train":
            continue
        count += 1
        start = known.get(line["start"])
        made = start.sent(line["round"]) if start else None
        expected = visits.get((line["start"], line["round"]), made)
        if expected is None:
            wrong.append(f"line {line['number']} tells of round {nth(line['round'])}, which the server's record lacks")
        elif line["model"] != expected:
            wrong.append(
                f"line {line['number']} received another model in round {nth(line['round'])} than the server had made"
            )
    return f"{count} model(s) received are those that the server had made in the round before", wrong


def _scored(server: Record, starts: Sequence[ServerStart], site: Record) -> Outcome:
    """Models that the site scored are models of the run."""
    models, lines = named_models(server), list(site.of_kind("scored"))
    wrong = [f"line {line['number']} scored a model that the server's record lacks" for line in lines]
    wrong = [text for line, text in zip(lines, wrong, strict=True) if line["model"] not in models]
    return f"{len(lines)} model(s) scored are models of the run", wrong


def _took_part(server: Record, starts: Sequence[ServerStart], site: Record) -> Outcome:
    """Numbers of cases that the site stated are those that the server noted."""
    stated = [line["cases"] for line in site.of_kind("accepted")]
    wrong = [
        f"the server's line {line['number']} notes the cases {line['cases']}, which the site never stated"
        for line in server.of_kind("accepted")
        if line["site"] == site.name and line["cases"] not in stated
    ]
    return "the numbers of cases that it stated are those that the server noted", wrong


_CHECKS: tuple[Check, ...] = (_job, _rounds, _told, _privacy, _received, _scored, _took_part)


def _same_weights(sites: Sequence[Record]) -> list[Finding]:
    """In runs that encrypt, all sites came to the same weights; the server has none to compare with."""
    seen: dict[Any, tuple[str, Record]] = {}
    for site in sites:
        for line in site.of_kind("received", "scored"):
            if "weights" not in line:
                continue
            weights, first = seen.setdefault(line.get("model"), (line["weights"], site))
            if weights != line["weights"]:
                text = f"line {line['number']} decrypted other weights than the site {first.name} from the same model"
                return [Finding(False, f"{site.title}: {text}")]
    return [Finding(True, f"{len(seen)} decrypted model(s) are equal at all sites")] if seen else []


def _counted(starts: Sequence[ServerStart], name: str) -> Iterator[tuple[ServerStart, ServerRound]]:
    return ((start, told) for start in starts for told in start.rounds.values() if name in told.sites)


def _trained(told: ServerRound, site: Record) -> int:
    """The round of the model that a site trained: an earlier one where its update came late in buffered training."""
    return int(told.sites[site.name].get("trained", told.number))


def _start(told: ServerRound, site: Record, start: ServerStart) -> str:
    """The start of the server that had sent the model: an earlier one where the update outlived a crash of it."""
    return str(told.sites[site.name].get("start", start.id))


def _of_round(site: Record, kind: str, start: str, number: int, *tasks: str) -> list[Entry]:
    lines = [line for line in site.of_kind(kind) if (line.get("start"), line.get("round")) == (start, number)]
    return [line for line in lines if not tasks or line["task"] in tasks]
