"""The benchmarks of labels: all forms of the sites have the same cases, and tables tell the share of full."""

import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import hippocampus_arms  # noqa: E402
import missing_sequences  # noqa: E402
import mixed_labels  # noqa: E402
import partial_labels  # noqa: E402

from fedseg.data.datalist import SPLITS, Case  # noqa: E402
from fedseg.data.undrawn_labels import PartialLabels  # noqa: E402
from fedseg.data.weak_labels import EVERYWHERE, WeakLabels  # noqa: E402


@pytest.fixture
def source(tmp_path, monkeypatch):
    label = np.zeros((6, 6, 6), np.uint8)
    label[1:3, 1:3, 1:3], label[4, 4, 4] = 1, 2
    for part in ("image", "label"):
        nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / f"{part}.nii.gz")
    case = Case((tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz", "")
    cases = tuple(replace(case, patient=f"p{number}") for number in range(40))
    monkeypatch.setattr(hippocampus_arms, "read_source", lambda path, task: cases)
    return tmp_path


def test_every_form_of_labels_has_the_same_cases_in_the_same_splits(source):
    partial, weak = PartialLabels(("anterior",), ("site-4",)), WeakLabels({EVERYWHERE: "boxes"}, 0.9)
    full = hippocampus_arms.make_sites(source, None, source / "full")
    for changed in ({"partial": partial}, {"weak": weak}):
        sites = hippocampus_arms.make_sites(source, None, source / next(iter(changed)), **changed)
        for site in full:
            for split in SPLITS:
                patients = [[case.patient for case in lists[site].split(split)] for lists in (full, sites)]
                assert patients[0] == patients[1]
            assert [case.label for case in sites[site].test] == [case.label for case in full[site].test]


def test_sites_that_an_interrupted_call_left_are_made_anew(source):
    folder = source / "sites"
    first = hippocampus_arms.make_sites(source, None, folder)
    (folder / "complete").unlink()
    (folder / "site-4" / "datalist.json").write_text("{}")
    assert hippocampus_arms.make_sites(source, None, folder) == first


def asked(monkeypatch, out, *more):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--data", "data", "--out", str(out), *more])
    return hippocampus_arms.arguments("What.", partial_labels.ARMS, small=24)


@pytest.mark.parametrize(
    ("former", "later", "said"),
    [
        (["--small"], [], "patients 24, now None; rounds 2, now None"),
        ([], ["--small"], "patients None, now 24; rounds None, now 2"),
        ([], ["--coarse"], "coarse False, now True"),
        (["--set", "training.batch_size=2"], [], "set ['training.batch_size=2'], now []"),
    ],
)
def test_kept_runs_of_other_settings_are_refused(monkeypatch, tmp_path, capsys, former, later, said):
    asked(monkeypatch, tmp_path, *former)
    written = (tmp_path / "settings.json").read_text()
    assert asked(monkeypatch, tmp_path, *former, "--seeds", "0", "--arms", "full").seeds == [0]
    with pytest.raises(SystemExit):
        asked(monkeypatch, tmp_path, *later)
    assert f"holds runs of other settings ({said}): take another --out." in capsys.readouterr().err
    assert (tmp_path / "settings.json").read_text() == written


def test_kept_runs_of_unknown_settings_are_refused(monkeypatch, tmp_path, capsys):
    hippocampus_arms.keep(hippocampus_arms.kept(tmp_path, "full", 0), {})
    with pytest.raises(SystemExit):
        asked(monkeypatch, tmp_path)
    assert "no settings.json that says how they were made" in capsys.readouterr().err


def run(arm, seed, posterior, **site):
    entry = {"num_steps": 3, "num_samples": 6, **site}
    dice = {name: {"anterior": 0.5, "posterior": value, "mean": value} for name, value in posterior.items()}
    rounds = [{"sites": dict.fromkeys(hippocampus_arms.SITES, entry)}]
    return {"arm": arm, "seed": seed, "rounds": rounds, "dice": dice}


def at(others, last):
    return dict(zip(hippocampus_arms.SITES, (others, others, others, last), strict=True))


def test_the_share_of_partial_labels_is_that_of_the_means_at_the_site():
    """0.6 and 0.8 with full labels, 0.7 and 0.5 with the marginal loss: 1.2 / 1.4."""
    runs = [run("full", 0, at(0.9, 0.6)), run("full", 1, at(0.9, 0.8))]
    runs += [run("marginal", 1, at(0.8, 0.5)), run("marginal", 0, at(0.6, 0.7))]
    lines = partial_labels.table(runs)
    assert lines[2] == (
        "| full | 0.5000 (0.5000 to 0.5000) | 0.7000 (0.6000 to 0.8000) | 1.000 | 0.9000 (0.9000 to 0.9000) |"
    )
    assert lines[3] == (
        "| marginal | 0.5000 (0.5000 to 0.5000) | 0.6000 (0.5000 to 0.7000) | 0.857 | 0.7000 (0.6000 to 0.8000) |"
    )


def test_arms_with_other_steps_are_not_compared():
    with pytest.raises(RuntimeError, match="differ in their steps"):
        partial_labels.table([run("full", 0, at(1, 1)), run("marginal", 0, at(1, 1), num_steps=4)])


def test_the_table_of_mixed_labels_counts_the_cases_that_taught():
    lines = mixed_labels.table([run("full", 0, at(0.8, 0.8)), run("fedmix", 0, at(0.6, 0.6), taught_cases=5)])
    assert lines[2:4] == [
        "| full | 0.5000 | 0.8000 | 0.8000 | 1.000 | 24 |",
        "| fedmix | 0.5000 | 0.6000 | 0.6000 | 0.750 | 20 |",
    ]


def test_missing_sequences_are_judged_at_the_same_seeds():
    """Complete: 0.7 and 0.8 at the others, a spread of 0.1, and 0.6 and 0.4 at the last site."""

    def at_sites(arm, seed, others, last):
        return {"arm": arm, "seed": seed, "dice": {"site-1": others - 0.1, "site-2": others + 0.1, "site-3": last}}

    runs = [at_sites("complete", 0, 0.7, 0.6), at_sites("complete", 1, 0.8, 0.4)]
    runs += [at_sites("without t1", 0, 0.62, 0.58), at_sites("without t2", 1, 0.68, 0.36)]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in missing_sequences.table(runs).splitlines()]
    assert cells[3] == ["without t1", "1", "0.6200", "yes", "0.5800", "0.967", "yes"]
    assert cells[4] == ["without t2", "1", "0.6800", "no", "0.3600", "0.900", "no"]
    assert "| one seed |" in missing_sequences.table([runs[0], runs[2]])
