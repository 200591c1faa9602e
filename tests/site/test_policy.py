"""A site's policy: what may stand in it, and what its rules say of a chain of filters."""

import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.contract.report import REPORT_FIELDS, UNPROTECTED, ReportField
from fedseg.contract.update import Stage
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.site.policy import ALWAYS, OPEN, Budget, SitePolicy, parse_policy
from fedseg.site.protection_rules import check_epsilon, check_protection, clipping_norm, planned_fraction

EVERY_RULE = {
    "tasks": ["brats"],
    "jobs": ["brats_*"],
    "min_patients": 7,
    "evaluate_only": True,
    "min_cases": 20,
    "min_scored_cases": 5,
    "max_fraction": 0.1,
    "require_clip": True,
    "max_clip_norm": 1,
    "min_noise_multiplier": 0.5,
    "epsilon_budget": {"*": {"epsilon": 8, "delta": 1e-5}},
    "allow_large_epsilon": True,
    "require_encryption": True,
    "min_sites": 3,
    "scalars": ["train_loss"],
    "scores": False,
    "events": True,
    "statistics": True,
    "max_statistics": 2,
    "features": True,
    "peers": True,
    "submit_model": True,
    "submit_personal_model": True,
    "give_personal_model": True,
    "max_bytes": 1000,
}
CLIP = {"filter": "NormClip", "stage": Stage.CLIP, "norm": 2.0}
NOISE = {"filter": "GaussianNoise", "stage": Stage.NOISE, "clip": 1.5, "noise_multiplier": 0.8}
SHARE = {"filter": "ShareFraction", "stage": Stage.SPARSIFY, "fraction": 0.1, "clip": 0.001}
UNSENT = {**SHARE, "error_feedback": True}
ENCRYPT = {"filter": "EncryptUpdate", "stage": Stage.ENCRYPT}


def test_every_rule_is_read():
    policy = parse_policy({"_comment": "of the site", **EVERY_RULE})
    assert {f.name for f in fields(SitePolicy)} == set(EVERY_RULE), "a new rule belongs in these tests"
    for name in EVERY_RULE:
        assert getattr(policy, name) != getattr(SitePolicy(), name), name
    assert policy.budget("brats") == Budget(8, 1e-5)


def test_an_empty_policy_limits_less_than_any_rule_but_lets_no_event_or_model_out():
    policy = parse_policy({})
    check_protection(policy, [], 1.0, False, "brats")
    for name in ("events", "statistics", "features", "submit_model", "submit_personal_model"):
        assert (getattr(policy, name), getattr(OPEN, name)) == (False, True), name


def test_a_personal_model_is_given_away_by_a_policy_alone():
    assert (parse_policy({}).give_personal_model, OPEN.give_personal_model) == (False, False)


@pytest.mark.parametrize(
    ("rule", "value", "said"),
    [
        ("fraction", 0.1, "is not known: the rules are"),
        ("tasks", "brats", "a list of names"),
        ("tasks", [], "at least one"),
        ("jobs", [1], "a list of names"),
        ("min_cases", 0, "a whole number, at least 1"),
        ("min_cases", True, "a whole number"),
        ("min_cases", 2.5, "a whole number"),
        ("max_fraction", 0, "above 0, at most 1"),
        ("max_fraction", 1.1, "above 0, at most 1"),
        ("max_fraction", math.nan, "above 0, at most 1"),
        ("require_clip", "yes", "true or false"),
        ("max_clip_norm", -1, "a number above 0"),
        ("max_clip_norm", math.inf, "a number above 0"),
        ("min_noise_multiplier", "1", "a number above 0"),
        ("epsilon_budget", {}, "an object of data sets"),
        ("epsilon_budget", {"brats": {"epsilon": 1}}, "epsilon and delta"),
        ("epsilon_budget", {"brats": {"epsilon": 1, "delta": 1}}, "below 1"),
        ("epsilon_budget", {"brats": {"epsilon": 0, "delta": 1e-5}}, "above 0"),
        ("allow_large_epsilon", 1, "true or false"),
        ("require_encryption", None, "true or false"),
        ("scalars", ["loss"], "a list of"),
        ("scores", "no", "true or false"),
        ("events", 0, "true or false"),
        ("statistics", 1, "true or false"),
        ("features", [], "true or false"),
        ("submit_model", "x", "true or false"),
        ("submit_personal_model", None, "true or false"),
        ("give_personal_model", 1, "true or false"),
        ("evaluate_only", "yes", "true or false"),
        ("min_scored_cases", 0, "a whole number, at least 1"),
        ("max_bytes", 1e6, "a whole number"),
    ],
)
def test_a_wrong_value_is_named(rule, value, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        parse_policy({rule: value}, "here")
    assert f"here.{rule}" in str(caught.value)


def test_a_policy_is_an_object():
    with pytest.raises(ConfigurationError, match="policy is \\[\\]"):
        parse_policy([])


def test_a_data_set_has_its_own_budget_before_that_of_all():
    entries = {"brats": {"epsilon": 2, "delta": 1e-6}, "*": {"epsilon": 8, "delta": 1e-5}}
    policy = parse_policy({"epsilon_budget": entries})
    assert policy.budget("brats") == Budget(2, 1e-6)
    assert policy.budget("pancreas") == Budget(8, 1e-5)
    assert parse_policy({"epsilon_budget": {"brats": entries["brats"]}}).budget("pancreas") is None


def test_what_a_report_may_tell():
    assert SitePolicy().report_fields(False) == set(REPORT_FIELDS)
    assert SitePolicy().report_fields(True) == set(UNPROTECTED)
    declared = {"personal_score": ReportField("x", 0, 1), "lag_rounds": ReportField("x", under_guarantee=True)}
    assert SitePolicy().report_fields(False, declared) == {*REPORT_FIELDS, *declared}
    assert SitePolicy().report_fields(True, declared) == {*UNPROTECTED, "lag_rounds"}
    assert parse_policy({"scalars": ["personal_dice"]}).report_fields(False, declared) == {"personal_score"} | ALWAYS
    former = parse_policy({"scalars": ["val_dice", "val_dice_after"]})
    assert former.scalars == {"val_scores", "val_score_after"}
    named = parse_policy({"scalars": ["train_loss"]})
    assert named.report_fields(True) == named.report_fields(False) == {"train_loss"} | ALWAYS
    assert [SitePolicy(scores=s).scores_leave(g) for s in (None, True, False) for g in (False, True)] == [
        *(True, False),
        *(True, True),
        *(False, False),
    ]


@pytest.mark.parametrize(
    ("rule", "allows", "breaks", "asked"),
    [
        ({"max_fraction": 0.1}, ([SHARE], 0.1), ([], 1.0), "sends 1 of the model's parameters"),
        ({"require_clip": True}, ([CLIP], 1.0), ([SHARE], 0.1), "does not clip"),
        ({"max_clip_norm": 2}, ([CLIP], 1.0), ([{**CLIP, "norm": 2.1}], 1.0), "clips to the norm 2.1"),
        ({"max_clip_norm": 1.5}, ([CLIP, NOISE], 1.0), ([CLIP], 1.0), "clips to the norm 2"),
        ({"min_noise_multiplier": 0.8}, ([NOISE], 1.0), ([CLIP], 1.0), "the multiplier 0;"),
        ({"require_clip": True}, ([CLIP, SHARE], 1.0), ([CLIP, UNSENT], 1.0), "adds what was not sent earlier"),
        ({"max_clip_norm": 2}, ([UNSENT, CLIP], 1.0), ([CLIP, UNSENT], 1.0), "adds what was not sent earlier"),
        ({"max_clip_norm": 2}, ([CLIP, SHARE], 1.0), ([CLIP, UNSENT, {**CLIP, "norm": 3.0}], 1.0), "the norm 3;"),
        ({"require_encryption": True}, ([ENCRYPT], 1.0), ([NOISE], 1.0), "does not encrypt"),
    ],
)
def test_each_rule_over_the_filters_lets_through_what_it_allows_and_names_itself_otherwise(rule, allows, breaks, asked):
    policy = parse_policy(rule)
    check_protection(policy, *allows, False, "brats")
    with pytest.raises(RefusalError, match=f"rule {next(iter(rule))}: the job .*{asked}") as caught:
        check_protection(policy, *breaks, False, "brats")
    assert caught.value.reason == "policy"


def test_a_budget_is_kept_only_by_jobs_that_count():
    policy = parse_policy({"epsilon_budget": {"brats": {"epsilon": 8, "delta": 1e-5}}})
    check_protection(policy, [NOISE], 1.0, True, "brats")
    with pytest.raises(RefusalError, match="rule epsilon_budget: the job computes no epsilon"):
        check_protection(policy, [], 1.0, False, "brats")
    for guaranteed in (False, True):
        with pytest.raises(RefusalError, match="rule epsilon_budget: the job names the data set 'other'"):
            check_protection(policy, [NOISE], 1.0, guaranteed, "other")
    check_epsilon(policy, 8.0, "brats")
    with pytest.raises(RefusalError, match="rule epsilon_budget: the job spends more"):
        check_epsilon(policy, 8.001, "brats")


def test_an_epsilon_that_protects_nobody_is_refused_unless_the_site_wants_it():
    check_epsilon(SitePolicy(), None, "brats")
    check_epsilon(SitePolicy(), 50.0, "brats")
    check_epsilon(SitePolicy(allow_large_epsilon=True), 8e6, "brats")
    with pytest.raises(RefusalError, match=r"rule allow_large_epsilon: the job spends an epsilon of 50\.1"):
        check_epsilon(SitePolicy(), 50.1, "brats")


def test_only_norms_of_the_whole_update_count_as_clipping():
    assert clipping_norm(CLIP) == 2.0
    assert clipping_norm(NOISE) == 1.5
    assert clipping_norm(SHARE) is None, "a bound of single coordinates"
    vector = {"filter": "SparseVector", "stage": Stage.NOISE, "clip": 0.1, "epsilon_query": 1.0, "fraction": 0.2}
    assert clipping_norm(vector) is None
    assert clipping_norm({**NOISE, "norm": "gradient of a patient"}) is None
    assert clipping_norm({**NOISE, "norm": "L1"}) == 1.5, "no vector is longer in L2 than in L1"


@given(st.lists(st.floats(1e-6, 1.0), max_size=4))
def test_fractions_multiply_and_never_grow(shares):
    steps = [{"filter": "x", "stage": Stage.SPARSIFY, "fraction": f} for f in shares]
    assert planned_fraction(steps) == pytest.approx(math.prod(shares))
    assert planned_fraction([*steps, {"filter": "y", "stage": Stage.QUANTISE, "fraction": 0.5}]) == planned_fraction(
        steps
    )
