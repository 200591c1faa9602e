"""Do the jobs still make the models that they made? The models of tiny runs as digests, written or compared.

``python benchmarks/golden_models.py write FILE`` runs jobs on tiny images in FLARE's simulator and writes the digests
of their final models; ``compare FILE`` runs them again and names every one that differs. With ``--in-process`` they run
in this process, and the models must be the same. Digests hold on one kind of processor only: sums of floating-point
numbers depend on its vector width.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from fedseg.cli import main as fedseg  # noqa: E402
from tiny import PLAN, make_sites  # noqa: E402

# One job of each kind of round, rule, hook and filter that changes numbers in a way of its own.
EIGHT = (
    "hippocampus_fedavg",
    "hippocampus_fedcostwavg",
    "brats_scaffold",
    "brats_partial",
    "hippocampus_gaussian_dp",
    "hippocampus_he",
    "hippocampus_splitavg",
    "hippocampus_cyclic",
)
# Settings without which a method is refused.
NEEDED = {
    "brats_scaffold": {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1, "schedule": "constant"},
    "brats_fedpod": {"validate_after": True},
}
SITES = {"alpha": (4, 2), "beta": (3, 1), "gamma": (2, 1)}
# Partial sharing as a site would combine it: its normalisation stays, a tenth of the rest leaves, in eight bits.
PARTIAL_CHAIN = [
    {"path": "fedseg.filters.layers.PrivateLayers", "args": {"kind": "norm"}},
    {"path": "fedseg.filters.share_fraction.ShareFraction", "args": {"fraction": 0.1, "error_feedback": True}},
    {"path": "fedseg.filters.quantize.QuantizeUpdate", "args": {"bits": 8}},
]


def digests(out: Path) -> dict[str, str]:
    """Digests of the model files of a run, over names, shapes and values."""
    found = {}
    for file in sorted((out / "models").glob("last*.safetensors")):
        total = hashlib.sha256()
        for name, value in sorted(load_file(file).items()):
            total.update(f"{name} {value.dtype} {value.shape}".encode())
            total.update(value.tobytes())
        found[file.name] = total.hexdigest()
    return found


def job_folder(name: str, folder: Path) -> Path:
    """A copy of the job; the one of partial sharing gets the whole chain."""
    job = Path(shutil.copytree(ROOT / "jobs" / name, folder / name))
    if name == "brats_partial":
        file = job / "app" / "config" / "config_fed_client.json"
        content = json.loads(file.read_text("utf-8"))
        content["task_result_filters"] = [{"tasks": ["train"], "direction": "out", "filters": PARTIAL_CHAIN}]
        file.write_text(json.dumps(content), "utf-8")
    return job


def run(job: Path, data: Path, out: Path, in_process: bool = False) -> dict[str, str]:
    """Two rounds of a job on tiny images; digests of its final models, or why there are none."""
    plan = json.loads((job / "app" / "config" / "fedseg.json").read_text("utf-8"))
    training = (
        {**PLAN["training"], "batch_dice": False}
        if "split" in plan
        else {**PLAN["training"], **NEEDED.get(job.name, {})}
    )
    network = PLAN["network"] | {key: value for key, value in plan.get("network", {}).items() if key == "parts"}
    settings = {"task": PLAN["task"], "network": network, "training": training}
    arguments = ["simulate", str(job), "--data", str(data), "--out", str(out), "--rounds", "2", "--seed", "3"]
    arguments += ["--no-probe", *(f"--set={key}={json.dumps(value)}" for key, value in settings.items())]
    if in_process:
        said = io.StringIO()
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            code = fedseg([*arguments, "--in-process"])
        complaint = said.getvalue()
    else:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "custom")}
        command = [sys.executable, "-m", "fedseg", *arguments]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT, env=environment)
        code, complaint = done.returncode, done.stderr
    if code != 0:
        return {"failed": complaint.strip().splitlines()[-1] if complaint.strip() else str(code)}
    return digests(out)


def main() -> int:
    """Write or compare digests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("write", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--jobs", nargs="*", default=list(EIGHT), help="job folders (default: one of each kind)")
    parser.add_argument("--in-process", action="store_true", help="run them in this process")
    options = parser.parse_args()
    before = json.loads(options.file.read_text("utf-8")) if options.file.is_file() else {}
    differ = []
    with tempfile.TemporaryDirectory() as folder:
        data = make_sites(Path(folder) / "data", SITES)
        for job in options.jobs:
            found = run(job_folder(job, Path(folder) / "jobs"), data, Path(folder) / job, options.in_process)
            print(job, json.dumps(found), flush=True)
            if options.action == "write":
                before[job] = found
                options.file.write_text(json.dumps(before, indent=2) + "\n", "utf-8")
            elif before.get(job) != found:
                differ.append(job)
    if differ:
        print(f"other models than before: {', '.join(differ)}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
