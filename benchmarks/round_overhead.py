"""Time of a round beyond the slowest site's own work.

    python benchmarks/round_overhead.py runs/hippocampus runs/demo

Reads finished runs of ``fedseg simulate``. A round's overhead is its wall time at the server (sending the weights,
waiting, collecting, aggregating) minus the largest ``seconds`` that a site reports for its own work in that round
(loading weights, validation, training, difference). Run nothing else meanwhile: what other programs take counts too.
"""

import argparse
import json
import statistics
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    print("| run | sites | rounds | slowest site (median s) | overhead median (s) | overhead max (s) |")
    print("|---|---|---|---|---|---|")
    for run in parser.parse_args().runs:
        summary = json.loads((run / "report" / "summary.json").read_text())
        slowest = [max(s["seconds"] for s in entry["sites"].values()) for entry in summary["rounds"]]
        over = [entry["seconds"] - own for entry, own in zip(summary["rounds"], slowest, strict=True)]
        print(
            f"| {run.name} | {len(summary['sites'])} | {len(over)} | {statistics.median(slowest):.2f} "
            f"| {statistics.median(over):.2f} | {max(over):.2f} |"
        )


if __name__ == "__main__":
    main()
