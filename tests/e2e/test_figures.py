"""The figures that the documentation promises, each by the commands that a user types. Minutes each: --full only."""

import json
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.full
ROOT = Path(__file__).parents[2]


def fedseg(*arguments):
    command = [sys.executable, "-m", "fedseg", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT, timeout=1800)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def simulate(job, data, out, *options):
    """Run a job and return its summary."""
    fedseg("simulate", ROOT / "jobs" / job, "--data", data, "--out", out, *options)
    return json.loads((out / "report" / "summary.json").read_text("utf-8"))


def test_the_demo_reaches_its_figures(tmp_path):
    """Runs the commands of scripts/demo.sh in a temporary folder."""
    text = (ROOT / "scripts" / "demo.sh").read_text("utf-8")
    commands = text[text.index("data=") :].replace(
        "data=runs/demo-data out=runs/demo", f"data={tmp_path}/d out={tmp_path}/o"
    )
    commands = commands.replace("fedseg ", f"{sys.executable} -m fedseg ")
    start = time.monotonic()
    subprocess.run(["bash", "-euo", "pipefail", "-c", commands], check=True, cwd=ROOT, timeout=1200)
    print(f"demo: {time.monotonic() - start:.0f} s")  # noqa: T201
    summary = json.loads((tmp_path / "o" / "report" / "summary.json").read_text("utf-8"))
    for site, scores in summary["final"]["sites"].items():
        assert scores["dice"]["WT"] >= 0.80, site
        assert scores["dice"]["TC"] >= 0.65, site
        assert scores["dice"]["ET"] >= 0.65, site
    others = {entry["name"]: entry for entry in summary["comparison"]}
    whole = np.mean([s["dice"]["WT"] for s in summary["final"]["sites"].values()])
    assert whole > np.mean([s["dice"]["WT"] for s in others["flair threshold"]["sites"].values()])
    assert summary["final"]["mean_dice"] > others["own model elsewhere"]["mean_dice"]
    cases = sum(part["cases"] for part in summary["final"]["sites"].values())
    assert {entry["test"]["patients"] for entry in summary["comparison"]} == {cases}
    assert all(0 < entry["test"]["p"] <= entry["test"]["p_holm"] <= 1 for entry in summary["comparison"])


def test_pancreas_phantoms_of_two_scanners(tmp_path):
    fedseg("phantom", "pancreas", "--sites", 2, "--cases", 12, "--out", tmp_path / "data")
    summary = simulate("pancreas_fedavg", tmp_path / "data", tmp_path / "out")
    dice = summary["final"]["sites"]
    assert np.mean([s["dice"]["pancreas"] for s in dice.values()]) >= 0.70
    assert np.mean([s["dice"]["tumour"] for s in dice.values()]) >= 0.40
    spacings = set()
    for site in dice:
        model = tmp_path / "out" / "models" / "last.safetensors"
        data = tmp_path / "data" / site
        fedseg(
            "predict", model, "--task", "pancreas", "--data", data, "--out", tmp_path / site, "--split", "validation"
        )
        for path in (tmp_path / site).iterdir():
            mask, image = nib.load(path), nib.load(next((data / "imagesTr").glob(path.name)))
            assert mask.shape == image.shape
            np.testing.assert_allclose(mask.affine, image.affine)
            spacings.add(tuple(round(float(z), 2) for z in image.header.get_zooms()))
    assert len(spacings) == 2


@pytest.mark.images
def test_hippocampus_with_the_jobs_defaults(tmp_path, test_data):
    source = test_data / "Task04_Hippocampus"
    fedseg("partition", source, "--out", tmp_path / "data", "--sizes", "80,60,40,20")
    summary = simulate("hippocampus_fedavg", tmp_path / "data", tmp_path / "out")
    assert len(summary["rounds"]) == 15
    assert summary["final"]["pooled_dice"] >= 0.86
    assert min(s["dice"]["mean"] for s in summary["final"]["sites"].values()) >= 0.82


@pytest.mark.images
def test_brats_full_volumes_fit_in_ten_gigabytes(tmp_path, test_data):
    fedseg("partition", test_data / "BraTS2021", "--out", tmp_path / "data", "--sites", 2)
    for site in ("site-1", "site-2"):
        fedseg("check-data", "brats", tmp_path / "data" / site)
    summary = simulate("brats_fedavg", tmp_path / "data", tmp_path / "out", "--rounds", 1)
    assert summary["cost"]["peak_rss_mb"]["total"] < 10 * 1024
    assert sum(s["cases"] for s in summary["final"]["sites"].values()) >= 2
