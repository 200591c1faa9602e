"""Mixed labels on the real hippocampus images: how far boxes go in the place of masks.

    python benchmarks/mixed_labels.py --data ../shared/data/Task04_Hippocampus --out runs/benchmark-mixed-labels

Four equal sites. A tenth of the patients has masks, and the others have boxes around each region. Arms, with the same
cases and splits:

- full: every case has its mask;
- masks: FedAvg on the tenth with masks alone;
- fedst: self-training (FedST);
- fedmix: FedMix;
- fedst_later, fedmix_later: the same, whose first pseudo-labels come two rounds later; networks of which mean Dice is
  0.6 agree.

Test cases keep their masks. The figure wanted: the mean Dice of FedMix is at least 0.95 of that of full masks. Every
finished run is kept in OUT, so that an interrupted benchmark goes on where it was.
"""

import statistics
from dataclasses import replace

from hippocampus_arms import FULL, Arm, Result, arguments, make_sites, means, run, share
from kept_runs import spread

from fedseg.data.weak_labels import EVERYWHERE, WeakLabels

ARMS = {
    FULL: Arm("hippocampus_fedavg", FULL),
    "masks": Arm("hippocampus_fedavg", "masks"),
    "fedst": Arm("hippocampus_fedst", "mixed"),
    "fedmix": Arm("hippocampus_fedmix", "mixed"),
    "fedst_later": Arm("hippocampus_fedst", "mixed", {"hook.self_training.from_round": 5}),
    "fedmix_later": Arm("hippocampus_fedmix", "mixed", {"hook.mixed.from_round": 5, "hook.mixed.least_agreement": 0.6}),
}
REGIONS = ("anterior", "posterior", "mean")
WANTED, SHARE = 0.95, 0.9


def taught(result: Result) -> int:
    """Cases from which the last round learned."""
    last = result["rounds"][-1]["sites"].values()
    return sum(int(site.get("taught_cases", site["num_samples"])) for site in last)


def table(results: list[Result]) -> list[str]:
    """Test Dice by arm, the cases that taught in the last round, and the share of what full masks give."""
    lines = ["| training | anterior | posterior | mean | share of full | cases that taught |", "|---" * 6 + "|"]
    for arm in ARMS:
        dice = [means(results, arm, region) for region in REGIONS]
        if dice[0]:
            cases = statistics.mean(taught(result) for result in results if result["arm"] == arm)
            reached = share(dice[-1], means(results, FULL, "mean"))
            lines.append(f"| {arm} | {' | '.join(map(spread, dice))} | {reached} | {cases:.0f} |")
    return [*lines, "", f"Wanted: a share of at least {WANTED} with FedMix."]


def main() -> None:
    options = arguments(__doc__, ARMS, small=40)
    data, weak = options.out / "data", WeakLabels({EVERYWHERE: "boxes"}, SHARE)
    mixed = make_sites(options.data, options.patients, data / "mixed", weak=weak)
    full = make_sites(options.data, options.patients, data / FULL)
    # Masks for validation teach nothing here, and without one a site could not take part. Nor could one that has none
    # to train on.
    masks = {site: replace(full[site], training=mixed[site].labelled.training) for site in full}
    forms = {FULL: full, "mixed": mixed, "masks": {site: lists for site, lists in masks.items() if lists.training}}
    run(options, ARMS, forms, table)


if __name__ == "__main__":
    main()
