"""Summaries against numbers by hand."""

import statistics
from types import SimpleNamespace

import numpy as np
import pytest

from fedseg.experiments.summary import compare_with_reference, results_frame, summarise, table_rows
from fedseg.experiments.with_it import by_site
from fedseg.tasks.objective import objective_of
from fedseg.tasks.registry import resolve_task
from tiny import TASK

KIND = objective_of(resolve_task(TASK))
FOLDS = [SimpleNamespace(name="-", left_out=""), SimpleNamespace(name="loso-b", left_out="b")]


def row(arm, site, place, case, value, seed=0, fold="-", metric="dice", patient=None):
    return {
        "experiment": "x", "arm": arm, "seed": seed, "fold": fold, "site": site, "evaluated_at": place, "case": case,
        "patient": patient or case, "region": "mean", "metric": metric, "value": value, "empty": "",
    }  # fmt: skip


def lines(rows, external=()):
    definition = definition_of(external)
    return summarise(definition, KIND, results_frame(definition, FOLDS, rows))


def definition_of(external=(), reference="fedavg"):
    arms = ("fedavg", "local", "ciil")
    return SimpleNamespace(name="x", arms=arms, external=dict.fromkeys(external, "path"), reference=reference)


def test_macro_pooled_worst_and_spread_by_hand():
    rows = [row("fedavg", "-", "a", f"a{i}", v) for i, v in enumerate((0.8, 0.9, 1.0))]
    rows += [row("fedavg", "-", "b", "b0", 0.5)]
    (found,) = lines(rows)
    assert found["macro"] == pytest.approx((0.9 + 0.5) / 2)
    assert found["pooled"] == pytest.approx(3.2 / 4)
    assert (found["worst_site"], found["worst"]) == ("b", 0.5)
    assert found["spread"] == pytest.approx(0.2)
    assert (found["sites"], found["cases"], found["patients"], found["seeds"]) == (2, 4, 4, 1)
    assert found["seed_deviation"] is None


def test_the_worst_distance_is_the_largest():
    rows = [row("fedavg", "-", "a", "a0", 2.0, metric="hd95"), row("fedavg", "-", "b", "b0", 9.0, metric="hd95")]
    (found,) = lines(rows)
    assert found["worst_site"] == "b"


def test_the_worst_of_a_signed_error_is_the_farthest_from_zero():
    rows = [row("fedavg", "-", place, f"{place}0", v, metric="volume_error") for place, v in (("a", 0.2), ("b", -0.5))]
    (found,) = lines(rows)
    assert (found["worst_site"], found["worst"]) == ("b", -0.5)


def test_a_case_counts_once_however_many_seeds_there_are():
    rows = [row("fedavg", "-", "a", "a0", v, seed=seed) for seed, v in enumerate((0.6, 0.8, 0.7))]
    rows += [row("fedavg", "-", "a", "a1", v, seed=seed) for seed, v in enumerate((0.2, 0.2, 0.2))]
    (found,) = lines(rows)
    assert found["cases"] == 2
    assert found["pooled"] == pytest.approx(0.45)
    assert found["seed_deviation"] == pytest.approx(statistics.stdev([0.4, 0.5, 0.45]))


def test_cases_that_a_convention_leaves_out_do_not_count():
    (found,) = lines([row("fedavg", "-", "a", "a0", 0.5), row("fedavg", "-", "a", "a1", None)])
    assert found["cases"] == 1


def test_two_cases_of_one_patient_are_two_cases_and_one_patient():
    rows = [row("fedavg", "-", "a", name, 0.5, patient="p") for name in ("a0", "a1")]
    (found,) = lines([*rows, row("fedavg", "-", "b", "b0", 0.5, patient="p")])
    # The same name at two sites is two people.
    assert (found["cases"], found["patients"]) == (3, 2)


def test_where_a_model_is_tested_makes_rows_of_their_own():
    rows = [
        row("local", "a", "a", "a0", 0.9),
        row("local", "a", "b", "b0", 0.4),
        row("local", "b", "b", "b0", 0.8),
        row("local", "b", "a", "a0", 0.2),
        row("local", "a", "c", "c0", 0.1),
        row("local", "b", "c", "c0", 0.3),
        row("local", "a", "b", "b9", 0.35, fold="loso-b"),
        row("fedavg", "-", "a", "a0", 0.7),
    ]
    found = {(line["arm"], line["model"], line["scope"]): line for line in lines(rows, external=("c",))}
    assert list(found) == [
        ("fedavg", "shared", "home"), ("local", "own", "home"), ("local", "own", "elsewhere"),
        ("local", "own", "left_out"), ("local", "own", "external"),
    ]  # fmt: skip
    assert found["local", "own", "home"]["macro"] == pytest.approx(0.85)
    assert found["local", "own", "elsewhere"]["macro"] == pytest.approx(0.3)
    assert found["local", "own", "left_out"]["macro"] == pytest.approx(0.35)
    # Of a case that several models met, their mean.
    assert found["local", "own", "external"]["macro"] == pytest.approx(0.2)
    assert found["local", "own", "external"]["cases"] == 1


def test_nothing_done_is_an_empty_summary():
    assert lines([]) == []


def test_the_terminal_shows_the_primary_score():
    rows = lines([row("fedavg", "-", "a", "a0", 0.5), row("fedavg", "-", "a", "a0", 3.0, metric="hd95")])
    summary = {"primary": "dice", "rows": rows}
    assert [line["metric"] for line in table_rows(summary, "mean")] == ["dice"]


def test_intervals_hold_their_means_and_are_those_of_the_bootstrap():
    from fedseg.evaluation.intervals import bootstrap_mean

    generator = np.random.default_rng(0)
    values = generator.uniform(0.5, 0.9, 12)
    rows = [row("fedavg", "-", "abcd"[i // 3], f"c{i:02}", float(v)) for i, v in enumerate(values)]
    (found,) = lines(rows)
    expected = bootstrap_mean(values.tolist())
    assert (found["pooled_low"], found["pooled_high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    expected = bootstrap_mean(values.tolist(), [*"aaabbbcccddd"], over="groups")
    assert (found["macro_low"], found["macro_high"]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    (few,) = lines(rows[:9])
    assert (few["macro_low"], few["macro_high"]) == (None, None)
    assert few["pooled_low"] < few["pooled"] < few["pooled_high"]


def test_arms_are_compared_with_the_reference_patient_by_patient():
    values = {"fedavg": (0.7, 0.8, 0.9), "local": (0.6, 0.6, 0.6), "ciil": (0.7, 0.8, 0.9)}
    rows = [
        row(arm, "a" if arm == "local" else "-", "a", f"a{i}", value)
        for arm, several in values.items()
        for i, value in enumerate(several)
    ]
    frame = results_frame(definition_of(), FOLDS, rows)
    found = {line["arm"]: line for line in compare_with_reference(definition_of(), KIND, frame)}
    assert set(found) == {"local", "ciil"}
    assert found["local"]["difference"] == pytest.approx(-0.2)
    assert found["local"]["patients"] == 3
    # Of 8 ways to choose the signs, the two with equal signs are as extreme.
    assert found["local"]["p"] == pytest.approx(0.25)
    assert found["local"]["p_holm"] == pytest.approx(0.5)
    assert (found["ciil"]["difference"], found["ciil"]["p"]) == (0.0, 1.0)
    turned = compare_with_reference(definition_of(reference="local"), KIND, frame)
    assert {line["arm"]: round(line["difference"], 6) for line in turned} == {"fedavg": 0.2, "ciil": 0.2}


def test_a_site_that_is_left_out_stands_beside_itself_in_the_training():
    values = {"a0": (0.5, 0.7), "b0": (0.6, 0.8), "b1": (0.4, 0.5)}
    rows = [row("fedavg", "-", case[0], case, with_it) for case, (_, with_it) in values.items()]
    rows += [row("fedavg", "-", case[0], case, v, fold=f"loso-{case[0]}") for case, (v, _) in values.items()]
    # At a site that trains in a fold that leaves another one out, a model is neither without the site nor of all.
    rows += [row("fedavg", "-", "a", "a0", 0.1, fold="loso-b"), row("fedavg", "-", "b", "b7", 0.9)]
    folds = [*FOLDS, SimpleNamespace(name="loso-a", left_out="a")]
    definition = definition_of()
    frame = results_frame(definition, folds, rows)
    home, apart = summarise(definition, KIND, frame)
    assert (home["scope"], home["macro"], home["with_it"]) == ("home", pytest.approx((0.7 + 2.2 / 3) / 2), None)
    assert apart["macro"] == pytest.approx((0.5 + 0.5) / 2)
    # b7 was not tested without b.
    assert apart["with_it"] == pytest.approx((0.7 + 0.65) / 2)
    assert apart["gain"] == pytest.approx((0.2 + 0.2 + 0.1) / 3)
    assert apart["gain_low"] <= apart["gain"] <= apart["gain_high"]
    told = by_site(frame, {"dice": KIND.primary}, {"dice": 100})
    assert [(line["site"], line["patients"]) for line in told] == [("a", 1), ("b", 2)]
    assert [line["without"] for line in told] == pytest.approx([0.5, 0.5])
    assert [line["with_it"] for line in told] == pytest.approx([0.7, 0.65])
    assert [line["gain"] for line in told] == pytest.approx([0.2, 0.15])


def test_a_site_that_never_trains_has_nothing_beside_it():
    definition = definition_of()
    rows = [row("fedavg", "-", "b", "b0", 0.5, fold="loso-b"), row("local", "a", "b", "b0", 0.5, fold="loso-b")]
    found = summarise(definition, KIND, results_frame(definition, FOLDS[1:], rows))
    assert [line["with_it"] for line in found] == [None, None]
