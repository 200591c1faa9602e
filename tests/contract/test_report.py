"""Reports: fixed fields with their ranges, and fields that the components of a job declare."""

import math
from typing import ClassVar

import pytest

from fedseg.contract.report import (
    META_KEY,
    UNPROTECTED,
    ReportField,
    SiteReport,
    declared_fields,
    job_fields,
    parse_report,
    task_fields,
    unprotected,
)
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.tasks.objective import Score
from fedseg.tasks.segmentation.objective import Segmentation
from fedseg.tasks.task import parse_task
from tiny import TASK

DICE = ReportField("mean Dice of the personal model", 0, 1)
TOLD = ReportField("rounds since the site's last visit", 0, whole=True, under_guarantee=True)
REPORT = SiteReport(
    3, 2, 0.5, 0.6, {"mean": 0.1}, 2, 4.0, 3.0, 0.4, 0.3, 1.5, 0.1, {"personal_dice": 0.7, "lag_rounds": 1}, 1
)


def changed(**values):
    return {META_KEY: {**REPORT.to_meta()[META_KEY], **values}}


def test_a_report_comes_back_as_it_was():
    assert parse_report(REPORT.to_meta(), {"personal_dice": DICE, "lag_rounds": TOLD}) == REPORT
    assert parse_report(REPORT.to_meta()) == REPORT


@pytest.mark.parametrize(
    ("declared", "value", "said"),
    [
        (DICE, 0.0, None),
        (DICE, 1, None),
        (DICE, -0.01, "is negative"),
        (DICE, 1.01, "is above 1"),
        (DICE, math.nan, "not a finite number"),
        (DICE, "0.5", "not a finite number"),
        (DICE, True, "not a finite number"),
        (DICE, None, "not a finite number"),
        (ReportField("x"), math.inf, "not a finite number"),
        (ReportField("x"), 10**400, "beyond reason"),
        (ReportField("x"), -1e11, None),
        (ReportField("x", lowest=2), 1, "is below 2"),
        (TOLD, 3, None),
        (TOLD, 3.0, "is not a count"),
        (TOLD, True, "is not a count"),
        (TOLD, -1, "is not a count"),
    ],
)
def test_a_declared_number_is_held_to_its_range(declared, value, said):
    def parse():
        return parse_report(changed(extras={"personal_number": value}), {"personal_number": declared})

    if said is None:
        assert parse().extras == {"personal_number": value}
    else:
        with pytest.raises(RefusalError, match=said) as caught:
            parse()
        assert caught.value.reason == "report"
        assert "personal_number" in str(caught.value)


def test_only_declared_names_come_in():
    with pytest.raises(RefusalError, match="'lag_rounds', which no component of the job declares"):
        parse_report(REPORT.to_meta(), {"personal_dice": DICE})
    for name in ("train_loss", "Loss_After", "x", "a_" * 50, "../../etc", 3):
        with pytest.raises(RefusalError, match="no component of the job declares"):
            parse_report(changed(extras={name: 0.5}))
    with pytest.raises(RefusalError, match="numbers by name"):
        parse_report(changed(extras=[0.5]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_steps": 1.0}, "num_steps is not a count"),
        ({"val_cases": None}, "val_cases is not a count"),
        ({"train_loss": math.inf}, "train_loss is not a finite number"),
        ({"seconds": None}, "seconds is not a finite number"),
        ({"val_scores": {"mean": 1.1}}, "val_scores is above 1"),
        ({"val_score_after": -0.1}, "val_scores is negative"),
        ({"largest": -1.0}, "largest is negative"),
        ({"num_samples": 0}, "no training cases"),
    ],
)
def test_a_fixed_number_is_held_to_its_range(change, said):
    with pytest.raises(RefusalError, match=said):
        parse_report(changed(**change), {"personal_dice": DICE, "lag_rounds": TOLD})


NUMBERS = [name for name in REPORT.to_meta()[META_KEY] if name not in ("val_scores", "extras")]
NONSENSE = [math.nan, math.inf, -math.inf, 1e300, 10**400, -(10**400), True, "1", [1], {"a": 1}, b"1", 1j, -1e300]


@pytest.mark.parametrize("name", [*NUMBERS, "val_scores.mean", "extras.personal_dice", "extras.lag_rounds"])
@pytest.mark.parametrize("value", NONSENSE, ids=repr)
def test_nonsense_in_any_number_is_refused(name, value):
    """By a refusal: another exception would not leave this one site out, but end the round."""
    field, _, inner = name.partition(".")
    whole = {**REPORT.to_meta()[META_KEY][field], inner: value} if inner else value
    with pytest.raises(RefusalError):
        parse_report(changed(**{field: whole}), {"personal_dice": DICE, "lag_rounds": TOLD})


@pytest.mark.parametrize("content", [None, [], "x", 3, {}, {"more": 1}, {1: 2}])
def test_what_is_no_report_is_refused(content):
    with pytest.raises(RefusalError, match="no report, or one of another version"):
        parse_report({META_KEY: content})


def test_what_is_withheld_may_be_absent():
    hidden = {"train_loss": None, "val_loss": None, "val_scores": {"mean": None}, "epsilon": None, "extras": {}}
    assert parse_report(changed(**hidden)).train_loss is None


def test_a_guarantee_cuts_off_what_is_not_declared_for_it():
    declared = {"personal_dice": DICE, "lag_rounds": TOLD}
    assert unprotected(declared) == {*UNPROTECTED, "lag_rounds"}
    left = REPORT.only(unprotected(declared))
    assert left == SiteReport(3, 2, None, None, {}, 2, epsilon=1.5, extras={"lag_rounds": 1}, fresh_state=1)
    assert left.told() == {*UNPROTECTED, "lag_rounds"}


class Depth(Segmentation):
    """A kind of task whose score may be negative."""

    scores = (Score("gain", "Gain", "dB", lowest=-50, highest=80),)


def test_scores_are_held_to_the_range_and_the_outputs_of_the_kind_of_task():
    personal = {"personal_score": ReportField("score of the site's own model"), "lag_rounds": TOLD}
    for kind, good, bad in ((Segmentation, 0.5, 1.5), (Depth, -40.0, 81.0)):
        declared = task_fields(kind(parse_task(TASK)), personal)
        sent = {"val_scores": {"inner": good, "mean": good}, "val_score_after": good}
        told = {"personal_score": good, "lag_rounds": 9}
        assert parse_report(changed(**sent, extras=told), declared).extras == told
        for wrong in (
            {"val_scores": {"inner": bad}},
            {"val_score_after": bad},
            {"extras": {"personal_score": bad}},
        ):
            with pytest.raises(RefusalError, match="is above"):
                parse_report(changed(**{**sent, "extras": told, **wrong}), declared)
    for name in ("outer", "/data/patient-7", ""):
        with pytest.raises(RefusalError, match="hold a name that the task does not have") as caught:
            parse_report(changed(val_scores={"mean": 0.5, name: 0.5}, extras={}), declared)
        assert "patient" not in str(caught.value)


class One:
    reports: ClassVar = {"personal_dice": DICE}


class Two:
    reports: ClassVar = {"personal_dice": ReportField("something else", 0, 1)}


class Three:
    reports: ClassVar = {"seconds": ReportField("the same name as a fixed field")}


def test_declarations_are_collected_and_must_agree():
    assert declared_fields([One(), One, object()]) == {"personal_dice": DICE}
    with pytest.raises(ConfigurationError, match="declared alike"):
        declared_fields([One, Two])
    with pytest.raises(ConfigurationError, match="no fixed field"):
        declared_fields([Three])


def test_the_fields_of_a_job_follow_from_its_components():
    ditto = {"id": "ditto", "path": "fedseg.training.methods.ditto.Ditto", "args": {}}
    foreign = {"id": "x", "path": "no_such_package.Class", "args": {"inner": {"path": "antigravity.Class"}}}
    assert set(job_fields({"components": [ditto, foreign]})) == {"personal_score"}
    assert job_fields({"components": []}) == {}
