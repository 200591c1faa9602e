"""Time to aggregate four updates of a residual U-Net with 19 million parameters, against FLARE's own helper.

    python benchmarks/aggregation_speed.py [--repetitions 15] [--sites 4]

FLARE's ``WeightedAggregationHelper`` (what its FedAvg and its weighted aggregators call) sums while updates arrive;
here an update is first written to disk, and all are summed at the end. So two times are given for each rule:
``aggregate``, with all updates accepted, as the helper has them in memory; and ``with accepting``, the writing
included. The helper's time is that of all its calls (``add`` for each site, ``get_result``) on numpy arrays.

Every repetition runs all rules once, one after the other, so that whatever else the machine does meets all alike; the
first is left out of the medians and given in a column of its own, since it holds what is paid once (the compiler; fresh
memory). FedAvg's result is compared with the helper's. Run nothing else meanwhile.
"""

import argparse
import functools
import logging
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

from fedseg.aggregators.base import Aggregator
from fedseg.aggregators.dos import DOS
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.fedcostwavg import FedCostWAvg
from fedseg.aggregators.fednova import FedNova
from fedseg.aggregators.fedpidavg import FedPIDAvg
from fedseg.aggregators.krum import Krum
from fedseg.aggregators.norm_clipping import NormClipped
from fedseg.aggregators.robust import CoordinateMedian, GeometricMedian, TrimmedMean
from fedseg.aggregators.similarity import RegAgg, SimAgg
from fedseg.contract.report import SiteReport
from fedseg.networks.registry import ResidualUNet
from fedseg.networks.weights import Arrays

NETWORK = ResidualUNet(channels=(32, 64, 128, 256, 512), strides=(2, 2, 2, 2))
RULES = (
    FedAvg, FedCostWAvg, FedPIDAvg, FedNova, SimAgg, RegAgg, NormClipped, Krum, GeometricMedian, DOS, TrimmedMean,
    CoordinateMedian,
)  # fmt: skip
HELPER = "FLARE helper"


@functools.cache
def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the network's arrays, for four channels and three regions (BraTS)."""
    with torch.device("meta"):
        return {name: tuple(array.shape) for name, array in NETWORK.build(4, 3, (64, 64, 64)).state_dict().items()}


def make_update(site: int, samples: int) -> FLModel:
    """Random numbers of the size of an update, with the report that every site sends."""
    generator = np.random.default_rng(site)
    return wrap(site, samples, {name: generator.standard_normal(shape, np.float32) for name, shape in shapes().items()})


def wrap(site: int, samples: int, arrays: Arrays) -> FLModel:
    """Arrays as an update, with the report that every site sends."""
    report = SiteReport(samples, samples, 0.5, 0.4, {"mean": 0.7}, 1)
    return FLModel(
        params_type=ParamsType.DIFF, params=arrays, meta={"client_name": f"site-{site:03d}", **report.to_meta()}
    )


def run_helper(updates: list[FLModel], samples: list[int]) -> Arrays:
    """The weighted mean as FLARE makes it."""
    helper = WeightedAggregationHelper()
    for update, weight in zip(updates, samples, strict=True):
        helper.add(update.params, float(weight), update.meta["client_name"], 0)
    return helper.get_result()


def accept(rule: Aggregator, updates: list[FLModel]) -> None:
    """Hand all updates to a rule, as at the start of a round."""
    rule.reset_stats()
    for update in updates:
        rule.accept_model(update)


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=4, help="updates to aggregate")
    parser.add_argument("--repetitions", type=int, default=15, help="runs of each rule, besides the first")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # Krum says in every round that four sites are few
    samples = [10 * (number + 1) for number in range(arguments.sites)]
    updates = [make_update(number, amount) for number, amount in enumerate(samples)]
    rules = {kind.__name__: kind() for kind in RULES}
    accepting: dict[str, list[float]] = {name: [] for name in rules}
    combining: dict[str, list[float]] = {name: [] for name in (HELPER, *rules)}
    for _ in range(arguments.repetitions + 1):
        combining[HELPER].append(seconds(lambda: run_helper(updates, samples)))
        for name, rule in rules.items():
            accepting[name].append(seconds(lambda rule=rule: accept(rule, updates)))
            combining[name].append(seconds(rule.aggregate_model))
            if name != "FedAvg":
                rule.reset_stats()
    theirs, ours = run_helper(updates, samples), rules["FedAvg"].aggregate_model().params
    difference = max(float(np.abs(theirs[name] - ours[name]).max()) for name in theirs)
    count = sum(array.size for array in theirs.values())
    print(f"{arguments.sites} sites, {count} float32 parameters in {len(theirs)} arrays, {os.cpu_count()} processors;")
    print(f"largest difference between FedAvg and the helper: {difference:.1e}")
    print()
    print("| rule | aggregate: median (s) | fastest | first | helper / rule | with accepting: median (s) |")
    print("|---|---|---|---|---|---|")
    reference = statistics.median(combining[HELPER][1:])
    for name, times in combining.items():
        median = statistics.median(times[1:])
        whole = statistics.median(
            [a + c for a, c in zip(accepting.get(name, [0.0] * len(times)), times, strict=True)][1:]
        )
        print(f"| {name} | {median:.4f} | {min(times):.4f} | {times[0]:.3f} | {reference / median:.2f} | {whole:.3f} |")


if __name__ == "__main__":
    main()
