"""What hospitals would have without a federation, in numbers that can be computed by hand."""

import nibabel as nib
import numpy as np
import pytest

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import Case, Datalist, read_datalist, write_datalist
from fedseg.errors import ConfigurationError
from fedseg.evaluation import comparison
from fedseg.evaluation.comparison import SiteScores, compare
from fedseg.evaluation.comparison_tests import NO_ALTERNATIVE, NO_FEDERATED, add_tests
from fedseg.evaluation.paired_tests import sign_flip_p, wilcoxon_p
from fedseg.networks.weights import apply_difference, get_weights
from fedseg.tasks.segmentation.objective import Segmentation
from fedseg.training.trainer import SiteTrainer
from tiny import PLAN, make_sites

PLAN_OBJECT = parse_plan(PLAN)


def scores(inner, whole):
    known = [value for value in (inner, whole) if value is not None]
    return SiteScores({"dice": {"inner": inner, "whole": whole, "mean": sum(known) / len(known) if known else None}})


# ------------------------------------------------------------------ each site alone

# Trained at -> scored at. By hand: b's model finds nothing to score for `whole` at a; c's none at all at b.
MATRIX = {
    "a": {"a": scores(0.8, 0.6), "b": scores(0.4, 0.2), "c": scores(0.2, 0.0)},
    "b": {"a": scores(0.5, None), "b": scores(0.6, 0.9), "c": scores(0.3, 0.5)},
    "c": {"a": scores(0.1, 0.3), "b": scores(None, None), "c": scores(1.0, 0.4)},
}


@pytest.fixture
def matrix(monkeypatch):
    """The matrix in the place of three trainings; `test_a_sites_own_model...` trains."""
    monkeypatch.setattr(comparison, "train_alone", lambda plan, data, sites, num_rounds, initial: MATRIX)


def test_own_models_at_home_and_elsewhere(matrix, tmp_path):
    found = compare(["local"], PLAN_OBJECT, tmp_path, list(MATRIX), 3)
    home, away = found["comparison"]
    assert (home["name"], away["name"]) == ("own model at home", "own model elsewhere")
    assert home["regions"] == away["regions"] == ["inner", "whole"]
    assert {site: part["dice"] for site, part in home["sites"].items()} == {
        "a": {"inner": 0.8, "whole": 0.6, "mean": pytest.approx(0.7)},
        "b": {"inner": 0.6, "whole": 0.9, "mean": pytest.approx(0.75)},
        "c": {"inner": 1.0, "whole": 0.4, "mean": pytest.approx(0.7)},
    }
    assert home["mean_dice"] == pytest.approx((0.7 + 0.75 + 0.7) / 3)
    # Each region's mean over the other sites that have one; `mean` is that of their means.
    assert {site: part["dice"] for site, part in away["sites"].items()} == {
        "a": {"inner": pytest.approx(0.3), "whole": pytest.approx(0.1), "mean": pytest.approx((0.3 + 0.1) / 2)},
        "b": {"inner": pytest.approx(0.4), "whole": 0.5, "mean": pytest.approx((0.5 + 0.4) / 2)},
        "c": {"inner": 0.1, "whole": 0.3, "mean": pytest.approx(0.2)},
    }
    assert away["mean_dice"] == pytest.approx((0.2 + 0.45 + 0.2) / 3)


def test_the_whole_matrix_of_mean_dice(matrix, tmp_path):
    found = compare(["local"], PLAN_OBJECT, tmp_path, list(MATRIX), 3)["cross_site"]
    assert found == {
        "a": {"a": pytest.approx(0.7), "b": pytest.approx(0.3), "c": pytest.approx(0.1)},
        "b": {"a": 0.5, "b": pytest.approx(0.75), "c": pytest.approx(0.4)},
        "c": {"a": pytest.approx(0.2), "b": None, "c": pytest.approx(0.7)},
    }


def test_one_hospital_alone_has_no_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(comparison, "train_alone", lambda *arguments: {"a": {"a": scores(None, 0.5)}})
    (entry,) = compare(["local"], PLAN_OBJECT, tmp_path, ["a"], 1)["comparison"]
    assert entry["sites"]["a"]["dice"] == {"inner": None, "whole": 0.5, "mean": 0.5}
    assert entry["mean_dice"] == 0.5


def test_where_nothing_can_be_scored_there_is_no_mean(monkeypatch, tmp_path):
    monkeypatch.setattr(comparison, "train_alone", lambda *arguments: {"a": {"a": scores(None, None)}})
    (entry,) = compare(["local"], PLAN_OBJECT, tmp_path, ["a"], 1)["comparison"]
    assert entry["mean_dice"] is None


def test_a_sites_own_model_is_trained_as_long_and_scored_at_every_site(tmp_path):
    """Against a loop that is written out here."""
    data = make_sites(tmp_path, {"alpha": (2, 1), "beta": (2, 1)})
    row = comparison._train_one((PLAN_OBJECT.to_dict(), str(data), "alpha", ["alpha", "beta"], 2, None))
    trainer = SiteTrainer(PLAN_OBJECT, "alpha", read_datalist(data / "alpha"))
    weights = get_weights(trainer.network)
    for number in range(2):
        weights = apply_difference(weights, trainer.train_round(weights, number, 2).update)
    for site in ("alpha", "beta"):
        judge = SiteTrainer(PLAN_OBJECT, site, read_datalist(data / site))
        scored = judge.validate(weights, "validation")
        assert row[site].summary == Segmentation.summarise([case.score for case in scored])
        found = [(case["evaluated_at"], case["patient"], case["output"], case["value"]) for case in row[site].cases]
        expected = [(site, c.patient, r, c.score.dice[r]) for c in scored for r in PLAN_OBJECT.objective.outputs]
        assert found == expected
    assert row["alpha"].summary != row["beta"].summary


# ------------------------------------------------------------------ paired tests


def rows(values, site="s"):
    """Patient -> output -> the values of its cases."""
    return [
        {"evaluated_at": site, "patient": patient, "output": output, "value": value}
        for patient, outputs in values.items()
        for output, found in outputs.items()
        for value in found
    ]


def test_alternatives_are_tested_on_the_patients_and_outputs_that_both_have():
    """By hand: p has two cases, q none of `whole`, r is the alternative's alone; the threshold knows `whole` only."""
    federated = {
        "p": {"inner": [0.8, 0.6], "whole": [0.9, 0.9]}, "q": {"inner": [0.5], "whole": [None]},
        "t": {"inner": [0.6], "whole": [0.4]},
    }  # fmt: skip
    own = {
        "p": {"inner": [0.6, 0.6], "whole": [0.8, 0.6]}, "q": {"inner": [0.2], "whole": [0.3]},
        "r": {"inner": [0.1], "whole": [0.1]}, "t": {"inner": [0.4], "whole": [0.4]},
    }  # fmt: skip
    threshold = {"p": {"whole": [0.5, 0.7]}, "t": {"whole": [0.5]}}
    entries = [{"name": "own"}, {"name": "threshold"}]
    add_tests(entries, {"own": rows(own), "threshold": rows(threshold)}, rows(federated))
    own_differences = np.array([(0.7 + 0.9) / 2 - (0.6 + 0.7) / 2, 0.5 - 0.25, 0.5 - 0.4])
    other = np.array([0.9 - 0.6, 0.4 - 0.5])
    for entry, differences in zip(entries, (own_differences, other), strict=True):
        test = entry["test"]
        assert test["difference"] == pytest.approx(differences.mean())
        assert test["patients"] == len(differences)
        assert test["p"] == sign_flip_p(differences)
        assert test["p_wilcoxon"] == wilcoxon_p(differences)
        assert test["low"] <= test["difference"] <= test["high"]
    # Holm: the smaller of two p-values counts twice.
    assert [entry["test"]["p"] for entry in entries] == [0.25, 1.0]
    assert [entry["test"]["p_holm"] for entry in entries] == [0.5, 1.0]


def test_the_same_patient_name_at_two_sites_is_two_patients():
    federated = rows({"p": {"whole": [0.8]}}, "a") + rows({"p": {"whole": [0.4]}}, "b")
    other = rows({"p": {"whole": [0.7]}}, "a") + rows({"p": {"whole": [0.1]}}, "b")
    entries = [{"name": "own"}]
    add_tests(entries, {"own": other}, federated)
    assert (entries[0]["test"]["patients"], entries[0]["test"]["difference"]) == (2, pytest.approx(0.2))


def test_where_single_cases_are_missing_the_reason_stands_there():
    some = rows({"p": {"whole": [0.8]}})
    entries = [{"name": "own"}, {"name": "none"}]
    add_tests(entries, {"own": some}, some)
    assert (entries[0]["test"]["difference"], entries[1]["untested"]) == (0, NO_ALTERNATIVE)
    add_tests(entries := [{"name": "own"}], {"own": some}, [])
    assert entries == [{"name": "own", "untested": NO_FEDERATED}]


# ------------------------------------------------------------------ one threshold


def write_threshold_case(folder, name, target):
    """4 voxels of value 1, 4 of 2 and 8 of 3, the rest zero; the first ``target`` of the eight are the region.

    Mean 2.25 and deviation sqrt(0.6875) over the non-zero voxels, so that their z-scores are -1.508, -0.302 and 0.905.
    """
    folder.mkdir(parents=True, exist_ok=True)
    image, label = np.zeros(64, np.float32), np.zeros(64, np.uint8)
    image[:4], image[4:8], image[8:16] = 1, 2, 3
    label[8 : 8 + target] = 2  # outer, which is in `whole` only
    paths = folder / f"{name}_image.nii.gz", folder / f"{name}.nii.gz"
    for path, values in zip(paths, (image, label), strict=True):
        nib.save(nib.Nifti1Image(values.reshape(4, 4, 4), np.eye(4)), path)
    return Case(paths[:1], paths[1], name)


def test_the_best_threshold_is_found_on_training_cases_and_scored_on_the_others(tmp_path):
    """From -0.3 to 0.9 the eight voxels of value 3 lie above: Dice 1 with all eight, 8 / 12 with four of them.

    Below, twelve lie above, and Dice is 16 / 20 and 8 / 16; so -0.3 is the first of the best.
    """
    for site, training, final in (("a", [8], [8]), ("b", [4], [8, 4])):
        folder = tmp_path / site
        cases = [write_threshold_case(folder, f"{site}{i}", target) for i, target in enumerate((*training, *final))]
        write_datalist(Datalist(tuple(cases[:1]), tuple(cases[1:]), (), task="tiny"), folder / "datalist.json")
    federated = rows({"a1": {"inner": [0.0], "whole": [0.5]}}, "a")
    federated += rows({"b1": {"whole": [1.0]}, "b2": {"whole": [0.5]}}, "b")
    found = compare(["threshold"], PLAN_OBJECT, tmp_path, ["a", "b"], 1, federated=federated)
    assert set(found) == {"comparison"}
    (entry,) = found["comparison"]
    assert entry["name"] == "a threshold"
    assert entry["description"].startswith("a above -0.3 standard deviations, the best threshold for whole on all")
    assert entry["regions"] == ["whole"]
    dice = {site: part["dice"]["whole"] for site, part in entry["sites"].items()}
    assert dice == {"a": pytest.approx(1), "b": pytest.approx((1 + 8 / 12) / 2)}
    assert entry["mean_dice"] == pytest.approx((1 + 5 / 6) / 2)
    assert entry["test"]["patients"] == 3
    assert entry["test"]["difference"] == pytest.approx((0.5 - 1 + 1 - 1 + 0.5 - 8 / 12) / 3)


def test_an_unknown_kind_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="central"):
        compare(["central"], PLAN_OBJECT, tmp_path, ["a"], 1)
