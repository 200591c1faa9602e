"""What to try in a federation, and why: one table of rules over its statistics and a first run.

``docs/how-to/choose-a-method.md`` has the same table for people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from fedseg.errors import DataError
from fedseg.evaluation.summary import mean_score, number, part, rows
from fedseg.statistics.distances import (
    SitePair,
    intensity_difference,
    label_difference,
    size_difference,
    volume_difference,
)
from fedseg.statistics.document import FederationStatistics
from fedseg.statistics.drawn import cases_drawn, share_acquired

SCHEMA = "fedseg-advice-1"
# Rules of thumb, like those of ``statistics.distances``: from here on a difference is worth a try.
DRAWN_SHARE, SITE_GAP, STILL_RISING, FALL, SLOWER = 0.9, 0.1, 0.01, 0.02, 3.0


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        statistics: of the federation.
        pairs: its sites beside each other.
        run: the summary of a first run; empty without one.
    """

    statistics: FederationStatistics
    run: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pairs(self) -> list[SitePair]:
        """Every pair of sites."""
        return self.statistics.pairs


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    Attributes:
        name: short, for programs.
        when: what is seen, for people.
        jobs: job folders to try, as examples of their method; a job takes another task by ``--set task=...``.
        settings: ``KEY=VALUE`` of ``--set`` to try in the job at hand.
        because: why they may help.
        evidence: page under ``docs`` that tells what was measured or how it works, with its section.
        find: the fact as a sentence without its full stop; empty where it is not there.
        of_run: whether it looks at a run.
    """

    name: str
    when: str
    jobs: tuple[str, ...]
    settings: tuple[str, ...]
    because: str
    evidence: str
    find: Callable[[Subject], str]
    of_run: bool = False

    def to_dict(self, reason: str) -> dict[str, Any]:
        """Plain JSON form of an advice."""
        return {
            "rule": self.name,
            "reason": reason,
            "jobs": list(self.jobs),
            "settings": list(self.settings),
            "because": self.because,
            "evidence": self.evidence,
        }


def _undrawn(subject: Subject) -> str:
    sites, task = subject.statistics.sites, subject.statistics.task
    counts = {site: cases_drawn(one, task) for site, one in sorted(sites.items())}
    for region in task.region_names if task.classes else ():
        shares = {site: (count[region] or 0.0) / sites[site].cases for site, count in counts.items()}
        few, most = min(shares, key=lambda s: shares[s]), max(shares, key=lambda s: shares[s])
        if shares[few] < DRAWN_SHARE <= shares[most] and sites[few].noise is None:
            told = f"in {counts[few][region]:g}" if counts[few][region] else f"in fewer than {sites[few].minimum}"
            return f"{region} is drawn {told} of {sites[few].cases} cases at {few}, and in all or most at {most}"
    return ""


def _missing(subject: Subject) -> str:
    task = subject.statistics.task
    found = [
        (share, channel, site)
        for channel in task.optional_channels
        for site, one in sorted(subject.statistics.sites.items())
        if (share := share_acquired(one, channel)) is not None and share < 1
    ]
    if not found:
        return ""
    share, channel, site = min(found)
    return f"{share:.0%} of the cases at {site} have {channel}"


def _site_gap(subject: Subject) -> str:
    scored = {site: mean_score(part(s, "dice")) for site, s in part(subject.run, "final", "sites").items()}
    known = sorted((value, site) for site, value in scored.items() if value is not None)
    if len(known) < 2 or known[-1][0] - known[0][0] < SITE_GAP:
        return ""
    (low, worst), (high, best) = known[0], known[-1]
    return f"The model's Dice is {low:.2f} at {worst} and {high:.2f} at {best}"


def _course(subject: Subject) -> list[float]:
    """Validation Dice of the model with which each round began."""
    found = (mean_score(entry.get("val_dice")) for entry in rows(subject.run, "rounds"))
    return [value for value in found if value is not None]


def _still_rising(subject: Subject) -> str:
    course = _course(subject)
    third = len(course) // 3
    if third < 1 or course[-1] - max(course[:-third]) < STILL_RISING:
        return ""
    return f"Validation Dice still rose in the last third of {len(course)} rounds, to {course[-1]:.3f}"


def _falling(subject: Subject) -> str:
    course = _course(subject)
    if not course or max(course) - course[-1] < FALL:
        return ""
    return f"Validation Dice fell from {max(course):.3f} to {course[-1]:.3f} by the last round"


def _slow_site(subject: Subject) -> str:
    seconds: dict[str, list[float]] = {}
    for entry in rows(subject.run, "rounds"):
        for site, told in part(entry, "sites").items():
            if (value := number(part(told).get("seconds"))) is not None and value > 0:
                seconds.setdefault(site, []).append(value)
    typical = {site: median(values) for site, values in seconds.items()}
    if len(typical) < 2:
        return ""
    slowest = max(typical, key=lambda site: typical[site])
    others = median(value for site, value in typical.items() if site != slowest)
    if typical[slowest] < SLOWER * others:
        return ""
    return f"{slowest} takes {typical[slowest]:.0f} s a round, the others {others:.0f} s"


RULES = (
    Rule(
        "scanners",
        "intensities differ after normalisation",
        ("hippocampus_cyclic", "brats_fedprox", "hippocampus_combat", "brats_histogram_standardisation",
         "hippocampus_harmofl", "brats_fedbn"),
        (),
        "Scanners differ: let the model visit the sites in turn, keep updates near the global model, or bring images "
        "or normalisations together.",
        "docs/explanation/harmonisation.md",
        lambda subject: intensity_difference(subject.statistics.task, subject.pairs),
    ),
    Rule(
        "labels",
        "classes differ, or how often a region is there",
        ("hippocampus_class_weights", "hippocampus_loss_focused", "brats_flop", "hippocampus_ditto"),
        (),
        "First look whether all draw by one convention. If they do, rare classes need weight; if not, each site needs "
        "layers or a model of its own.",
        "docs/explanation/personal-models.md",
        lambda subject: label_difference(subject.pairs),
    ),
    Rule(
        "volumes",
        "volumes of a region differ",
        ("hippocampus_fine_tune",),
        (),
        "Other patients, or another way to draw: look at cases of both sites first. Fine-tuning is the least that a "
        "site can do for its own patients.",
        "docs/how-to/federated-statistics.md#how-far-sites-are-apart",
        lambda subject: volume_difference(subject.pairs, subject.statistics.sites),
    ),
    Rule(
        "sizes",
        "one site has many more cases than another",
        ("hippocampus_fedcostwavg",),
        ("aggregator.uniform_share=0.5",),
        "Weights between equal and by size give small sites a say.",
        "docs/explanation/results.md#aggregation-rules",
        lambda subject: size_difference(subject.statistics.sites),
    ),
    Rule(
        "drawn",
        "a region is not drawn everywhere",
        ("hippocampus_partial_labels", "pancreas_partial_labels"),
        ("training.undrawn=exclusion",),
        "What nobody drew is not background. Say it in the datalists, and the loss leaves it open; the global model "
        "can teach it besides.",
        "docs/how-to/partial-labels.md",
        _undrawn,
    ),
    Rule(
        "sequences",
        "cases lack a channel",
        ("brats_missing_sequences",),
        ("training.channel_dropout=0.2",),
        "A network that has lost channels at random in training does with what a case has.",
        "docs/how-to/own-task.md#patients-without-one-of-the-sequences",
        _missing,
    ),
    Rule(
        "worst site",
        "the first run is much worse at one site",
        ("hippocampus_ditto", "hippocampus_apfl"),
        ("workflow.fine_tune=2",),
        "A model beside the global one, or a fine-tuned one, follows that site; fine-tuning is what the others must "
        "beat.",
        "docs/explanation/personal-models.md",
        _site_gap,
        of_run=True,
    ),
    Rule(
        "unfinished",
        "the first run was still getting better",
        (),
        ("workflow.num_rounds=100",),
        "A comparison of unfinished runs says which method starts fastest.",
        "docs/how-to/compare-rules.md",
        _still_rising,
        of_run=True,
    ),
    Rule(
        "drift",
        "the first run got worse again",
        ("brats_fedprox", "brats_scaffold"),
        ("training.local_epochs=1", "training.learning_rate=0.001"),
        "Sites go too far between two rounds: shorter rounds, smaller steps, or a pull back to the global model.",
        "docs/explanation/aggregation.md#local-objectives",
        _falling,
        of_run=True,
    ),
    Rule(
        "slow site",
        "one site takes much longer than the others",
        ("hippocampus_fedbuff", "hippocampus_drop_slow"),
        (),
        "Nobody waits: updates of slow sites start from older models, or the slowest are left out of a round.",
        "docs/explanation/aggregation.md#without-waiting",
        _slow_site,
        of_run=True,
    ),
)  # fmt: skip
"""The whole table. Every job and setting exists, and every page."""
BEGIN_WITH = "hippocampus_fedavg"


@dataclass(frozen=True)
class Advice:
    """A rule that holds, and the fact by which it does."""

    rule: Rule
    reason: str


def advise(subject: Subject) -> list[Advice]:
    """The rules that hold, in the order of the table.

    Raises:
        DataError: sites cannot be compared, or the run is of another task than the statistics.
    """
    told = subject.run.get("task")
    if subject.run and told != subject.statistics.task.name:
        raise DataError(
            f"The run is of the task {told}, the statistics are of {subject.statistics.task.name}. Name a run of it."
        )
    if len({one.fine for one in subject.statistics.sites.values()}) > 1:
        raise DataError("Some sites counted in coarse bins and some in fine ones, so they cannot be compared.")
    looked_at = [rule for rule in RULES if subject.run or not rule.of_run]
    return [Advice(rule, reason) for rule in looked_at if (reason := rule.find(subject))]


def to_document(subject: Subject, found: Sequence[Advice]) -> dict[str, Any]:
    """Plain JSON form: what is advised, what was looked at, and with what to begin."""
    return {
        "schema": SCHEMA,
        "task": subject.statistics.task.name,
        "sites": sorted(subject.statistics.sites),
        "run": subject.run.get("run_id"),
        "begin_with": BEGIN_WITH,
        "advice": [each.rule.to_dict(f"{each.reason}.") for each in found],
        "looked_at": [rule.name for rule in RULES if subject.run or not rule.of_run],
    }


def rule_table() -> list[str]:
    """The table of rules as lines of Markdown, with links from a page of ``docs/how-to``."""
    lines = ["| rule | what is seen | try | because |", "|---|---|---|---|"]
    for rule in RULES:
        tries = ", ".join([*(f"`jobs/{job}`" for job in rule.jobs), *(f"`{setting}`" for setting in rule.settings)])
        page = rule.evidence.removeprefix("docs/how-to/")
        link = page if page != rule.evidence else f"../{rule.evidence.removeprefix('docs/')}"
        when = f"{rule.when}{' (of a run)' if rule.of_run else ''}"
        lines.append(f"| {rule.name} | {when} | {tries} | {rule.because} [More]({link}) |")
    return lines
