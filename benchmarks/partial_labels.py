"""Partial labels on the real hippocampus images: what a site gets for a structure that it has not drawn.

    python benchmarks/partial_labels.py --data ../shared/data/Task04_Hippocampus --out runs/benchmark-partial-labels

Four equal sites; one of them, a quarter of the patients, has the anterior part drawn alone. Arms, with the same cases,
patches and steps:

- full: every label as it is;
- background: the posterior part of that site is background, and the loss believes it;
- marginal: the datalist says what is drawn, and the marginal loss leaves the rest open;
- exclusion: likewise, with the exclusion loss beside it;
- distillation: the marginal loss with ConditionalDistillation.

Test cases keep all labels. The figure wanted: the posterior Dice at that site with the marginal loss is at least 0.95
of that of full labels. Every finished run is kept in OUT, so that an interrupted benchmark goes on where it was.
"""

from dataclasses import replace

from hippocampus_arms import FULL, SITES, Arm, Result, arguments, make_sites, means, run, share
from kept_runs import spread

from fedseg.data.datalist import SPLITS, Datalist
from fedseg.data.undrawn_labels import PartialLabels

PARTIAL, DRAWN, OTHER = SITES[-1], "anterior", "posterior"
ARMS = {
    FULL: Arm("hippocampus_fedavg", FULL),
    "background": Arm("hippocampus_fedavg", "believed"),
    "marginal": Arm("hippocampus_fedavg", "partial"),
    "exclusion": Arm("hippocampus_fedavg", "partial", {"training.undrawn": "exclusion"}),
    "distillation": Arm("hippocampus_partial_labels", "partial"),
}
WANTED = 0.95


def believed(datalist: Datalist) -> Datalist:
    """The same labels, of which nobody says that something is not drawn."""
    training, validation, test = (tuple(replace(c, drawn=None) for c in datalist.split(name)) for name in SPLITS)
    return replace(datalist, training=training, validation=validation, test=test)


def steps(result: Result) -> list[int]:
    """Optimizer steps of each site in the whole run."""
    return [sum(entry["sites"][site]["num_steps"] for entry in result["rounds"]) for site in SITES]


def table(results: list[Result]) -> list[str]:
    """Test Dice by arm, and the share of what full labels give."""
    if len({tuple(steps(result)) for result in results}) > 1:
        raise RuntimeError("The arms differ in their steps; they can not be compared.")
    lines = [f"| training | {DRAWN} at {PARTIAL} | {OTHER} at {PARTIAL} | share of full | {OTHER} at the others |"]
    lines.append("|---" * 5 + "|")
    for arm in ARMS:
        own, other = (means(results, arm, region, [PARTIAL]) for region in (DRAWN, OTHER))
        if other:
            reached = share(other, means(results, FULL, OTHER, [PARTIAL]))
            elsewhere = spread(means(results, arm, OTHER, SITES[:-1]))
            lines.append(f"| {arm} | {spread(own)} | {spread(other)} | {reached} | {elsewhere} |")
    return [*lines, "", f"Wanted: a share of at least {WANTED} with the marginal loss."]


def main() -> None:
    options = arguments(__doc__, ARMS, small=24)
    data = options.out / "data"
    partial = make_sites(options.data, options.patients, data / "partial", PartialLabels((DRAWN,), (PARTIAL,)))
    forms = {
        FULL: make_sites(options.data, options.patients, data / FULL),
        "partial": partial,
        "believed": {site: believed(datalist) for site, datalist in partial.items()},
    }
    run(options, ARMS, forms, table)


if __name__ == "__main__":
    main()
