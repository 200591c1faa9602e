"""Peak memory of aggregation by number of sites: 19 million float32 parameters, sites arriving in random order.

    python benchmarks/aggregation_memory.py [--sites 4 100] [--rules FedAvg DOS CoordinateMedian]

Each case runs in a process of its own, which makes one update at a time, hands it to the rule and forgets it, as a
server that receives one answer after the other. The update that is being made counts, so does the result; the rule has
aggregated a small model before, so that the compiler is in the base of both cases.

``peak`` is the kernel's own highest mark of resident memory (VmHWM), pages of mapped files included. ``above start`` is
the same without what the process held before the first update (Python, torch, FLARE, compiler). The spool of 100 sites
takes 7.7 GB of disk in TMPDIR; it is no process's memory, though the system may keep it in its file cache.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from aggregation_speed import RULES, make_update, shapes, wrap


def status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def measure(name: str, sites: int) -> dict[str, float]:
    """One aggregation in this process."""
    rule = next(kind for kind in RULES if kind.__name__ == name)()
    for site in range(3):
        rule.accept_model(wrap(site, site + 1, {"w": np.full(5, site, np.float32)}))
    rule.aggregate_model()
    rule.reset_stats()
    shapes()
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
    start, began = status("VmRSS"), time.perf_counter()
    for site in np.random.default_rng(0).permutation(sites):
        rule.accept_model(make_update(int(site), int(site) + 1))
    accepted = status("VmHWM")
    aggregating = time.perf_counter()
    result = rule.aggregate_model()
    finished = time.perf_counter()
    assert all(np.isfinite(array).all() for array in result.params.values())
    return {
        "start": start,
        "accepting": accepted,
        "peak": status("VmHWM"),
        "accept_seconds": aggregating - began,
        "aggregate_seconds": finished - aggregating,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sites", type=int, nargs="+", default=[4, 100], help="numbers of sites; the first is compared with"
    )
    parser.add_argument(
        "--rules", nargs="+", default=["FedAvg", "DOS", "CoordinateMedian"], choices=[r.__name__ for r in RULES]
    )
    parser.add_argument("--case", nargs=2, metavar=("RULE", "SITES"), help="measure one case in this process")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case[0], int(arguments.case[1]))))
        return
    columns = ["rule", "sites", "start (MB)", "accepting (MB)", "peak (MB)", "ratio", "above start (MB)", "ratio"]
    columns += ["making and accepting (s)", "aggregate (s)"]
    print("|", " | ".join(columns), "|")
    print("|" + "---|" * len(columns))
    for rule in arguments.rules:
        first: dict[str, float] = {}
        for sites in arguments.sites:
            command = [sys.executable, __file__, "--case", rule, str(sites)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            case = json.loads(done.stdout.splitlines()[-1])
            first = first or case
            row = [rule, sites, *(f"{case[part] / 1e6:.0f}" for part in ("start", "accepting", "peak"))]
            above, first_above = (c["peak"] - c["start"] for c in (case, first))
            row += [f"{case['peak'] / first['peak']:.3f}", f"{above / 1e6:.0f}", f"{above / first_above:.3f}"]
            row += [f"{case['accept_seconds']:.1f}", f"{case['aggregate_seconds']:.2f}"]
            print("|", " | ".join(str(value) for value in row), "|", flush=True)


if __name__ == "__main__":
    main()
