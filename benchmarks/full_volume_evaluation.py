"""Peak memory of ``fedseg evaluate`` with every score and pictures on whole BraTS volumes.

    python benchmarks/full_volume_evaluation.py --data /data/BraTS2021 --out runs/full-volume [--job jobs/brats_fedavg]

The job's network is trained for some epochs on small patches of the same cases, or not at all (``--epochs 0``: what it
predicts is then scattered over the whole image, the most that surfaces and lesions can be). Then ``fedseg evaluate
--pictures`` scores all cases in a process of its own. Printed: seconds, the process's peak of resident memory, and the
means.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from fedseg.data.datalist import Datalist, read_datalist
from fedseg.data.label_convention import settled
from fedseg.jobs.job import read_job
from fedseg.models.model_file import write_model
from fedseg.networks.weights import apply_difference, get_weights
from fedseg.training.trainer import SiteTrainer

ROOT = Path(__file__).resolve().parents[1]
PATCH = [64, 64, 64]


def import_cases(data: Path, out: Path) -> Datalist:
    """A datalist of all cases."""
    if not (out / "site").exists():
        fedseg("import-data", data, "--task", "brats", "--out", out / "site")
    return read_datalist(out / "site")


def make_model(job_folder: Path, datalist: Datalist, epochs: int, path: Path) -> None:
    """The job's network in a model file, trained for some epochs on small patches."""
    job = read_job(job_folder)
    job.set("task", {"name": "brats", "patch_size": PATCH})
    job.set("training.local_epochs", 1)
    trainer = SiteTrainer(job.plan, "site", settled(job.plan.task, datalist))
    weights = get_weights(trainer.network)
    for number in range(epochs):
        weights = apply_difference(weights, trainer.train_round(weights, number, epochs).update)
    write_model(path, read_job(job_folder).plan, weights, epochs - 1)


def fedseg(*arguments: object) -> None:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "fedseg", *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "custom")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with BraTS case folders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--job", type=Path, default=ROOT / "jobs" / "brats_fedavg")
    parser.add_argument("--epochs", type=int, default=2, help="0: an untrained network")
    parser.add_argument("--overlap", type=float, default=0.5, help="of the windows; less is quicker, in equal memory")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    datalist, model = import_cases(options.data, options.out), options.out / f"model-{options.epochs}.safetensors"
    if not model.exists():
        make_model(options.job, datalist, options.epochs, model)
    start, result = time.monotonic(), options.out / "result"
    common = ["--task", "brats", "--data", options.out / "site", "--split", "all", "--out", result]
    common += ["--overlap", options.overlap]
    fedseg("evaluate", model, *common, "--pictures", "--threads", options.threads)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    content = json.loads((result / "evaluation.json").read_text("utf-8"))
    print(f"{len(content['cases'])} cases, {time.monotonic() - start:.0f} s, peak {peak:.2f} GiB of resident memory")
    print(f"pictures: {(result / 'overlays.png').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
