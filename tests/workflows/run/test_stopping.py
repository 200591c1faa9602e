"""Each stopping rule on rounds made up by hand."""

import pytest

from fedseg.errors import ConfigurationError
from fedseg.tasks.segmentation.objective import Segmentation
from fedseg.workflows.run.stopping import StoppingRules

DICE = Segmentation.scores[0]


def rounds(*dice, epsilon=()):
    entries = [{"val_dice": value, "sites": {}} for value in dice]
    for entry, spent in zip(entries, epsilon, strict=False):
        entry["sites"] = {"a": {"epsilon": spent}, "b": {"epsilon": None}}
    return entries


def test_without_rules_nothing_stops():
    assert StoppingRules().reason(rounds(0.9, 0.1, 0.1), 1e6, DICE) is None


def test_target():
    rules = StoppingRules(target_dice=0.8)
    assert rules.reason(rounds(0.5, 0.79), 0, DICE) is None
    assert "0.8" in rules.reason(rounds(0.5, 0.8), 0, DICE)
    assert rules.reason([], 0, DICE) is None
    assert rules.reason(rounds(None, None), 0, DICE) is None


def test_patience_counts_rounds_since_the_best_one():
    rules = StoppingRules(patience=2)
    assert rules.reason(rounds(0.5, 0.7, 0.6), 0, DICE) is None
    assert "2 rounds brought no model better than 0.7000" in rules.reason(rounds(0.5, 0.7, 0.6, 0.7), 0, DICE)
    assert rules.reason(rounds(0.5, 0.7, 0.6, 0.71), 0, DICE) is None


def test_time():
    assert StoppingRules(max_hours=2).reason(rounds(0.5), 1.99, DICE) is None
    assert "2 were allowed" in StoppingRules(max_hours=2).reason(rounds(0.5), 2.0, DICE)


def test_privacy_stops_before_the_budget_could_be_exceeded():
    rules = StoppingRules(max_epsilon=3.0)
    # 1.0 and then 0.5 a round: 1.5 + 1.0 (the costliest round) = 2.5; 2.0 + 1.0 = 3.0; 2.5 + 1.0 > 3.
    assert rules.reason(rounds(0.5, 0.5, epsilon=(1.0, 1.5)), 0, DICE) is None
    assert rules.reason(rounds(0.5, 0.5, 0.5, epsilon=(1.0, 1.5, 2.0)), 0, DICE) is None
    assert "a has spent epsilon 2.5" in rules.reason(rounds(*[0.5] * 4, epsilon=(1.0, 1.5, 2.0, 2.5)), 0, DICE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_dice", 0),
        ("target_dice", 1.1),
        ("target_dice", "high"),
        ("patience", 0),
        ("patience", 1.5),
        ("max_hours", 0),
        ("max_hours", float("inf")),
        ("max_epsilon", -1),
    ],
)
def test_wrong_arguments_are_refused(name, value):
    with pytest.raises(ConfigurationError, match=f"workflow.{name}"):
        StoppingRules(**{name: value})
