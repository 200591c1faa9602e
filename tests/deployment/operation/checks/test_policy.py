"""What a site allows, and what is spent of its privacy budgets."""

import json
import shutil
from pathlib import Path

from checked_site import check, edit, found, spend
from fedseg.deployment.kits.installed_kit import read_kit
from fedseg.deployment.operation.checks.policy import check_classes, policy_sentences
from fedseg.deployment.operation.checks.result import CheckOptions, Colour
from fedseg.jobs.allowed_components import SERVER_RECEIVERS, site_resources
from fedseg.site.policy import parse_policy


def test_shell_commands_and_no_policy_are_remarks(kit, server):
    shell = {"lead": {"byoc": "none", "shell_commands": "any"}}
    edit(kit / "local" / "authorization.json", lambda c: {"permissions": shell})
    edit(kit / "local" / "fedseg.json", lambda c: {k: v for k, v in c.items() if k != "policy"})
    page = check(kit)
    assert found(page) == {}
    assert page.verdict == "YELLOW: alpha is ready. To look at: files, rights, policy."
    yellow = found(page, Colour.YELLOW)
    assert "lets lead run commands on this machine" in yellow["rights"]
    assert "states no limits" in yellow["policy"]


def test_what_is_spent_of_a_budget_is_said(kit, server):
    spent = spend(kit, 1).spent(1e-5, dataset="tiny").epsilon
    texts = {r.check: r.found for r in check(kit).results}
    assert texts["privacy budget: tiny"] == (
        f"Epsilon {spent:.3g} of 8 is spent, at delta 1e-05, in 1 guaranteed releases. 0 releases on these patients "
        "had no guarantee, and are not in it."
    )
    edit(
        kit / "local" / "fedseg.json",
        lambda c: {**c, "policy": {"epsilon_budget": {"tiny": {"epsilon": spent, "delta": 1e-5}}}},
    )
    assert "No job with a guarantee is taken any more" in found(check(kit), Colour.YELLOW)["privacy budget: tiny"]


def test_a_policy_is_told_in_plain_sentences():
    rules = {
        "tasks": ["brats"],
        "jobs": ["brats_*"],
        "min_cases": 20,
        "max_fraction": 0.1,
        "max_clip_norm": 1.5,
        "min_noise_multiplier": 2.0,
        "require_encryption": True,
        "max_bytes": 5_000_000,
        "scores": False,
        "events": True,
    }
    assert policy_sentences(parse_policy(rules)) == [
        "Takes jobs that segment brats and called brats_*.",
        "Takes part with 20 training cases at least.",
        "An update holds 10.0% of the model's parameters at most.",
        "Updates are clipped to the norm 1.5 at most.",
        "Updates bear noise of 2 clipping norms at least.",
        "Updates are encrypted.",
        "No result is larger than 5 MB.",
        "What the sum of the sites' updates tells of a patient has no bound.",
        "A report of each round tells: num_samples, num_steps, train_loss, val_loss, val_scores, val_cases, seconds, "
        "seconds_training, val_loss_after, val_score_after, epsilon, largest, fresh_state, incomplete_samples, what a "
        "method declares. In a job with a guarantee: counts of patients and epsilon, and whether a state was lost "
        "(fresh_state).",
        "Beside updates and reports may leave: curves during training.",
        "Never leave: images, labels, names of patients, summaries of scores, statistics of the data, activations of "
        "images, the site's own model.",
    ]
    assert policy_sentences(parse_policy({"require_clip": True}))[:3] == [
        "Takes every job.",
        "Updates are clipped.",
        "Else updates leave as they are: no bound on what they tell of a patient.",
    ]
    plain = policy_sentences(parse_policy({"scalars": ["train_loss", "personal_dice"]}))
    assert plain[1:3] == [
        "Updates leave as they are: no bound on what they tell of a patient.",
        "A report of each round tells: num_samples, num_steps, train_loss, val_cases, epsilon, fresh_state, "
        "personal_score. In a job with a guarantee: counts of patients and epsilon, and whether a state was lost "
        "(fresh_state).",
    ]
    given = policy_sentences(parse_policy({"give_personal_model": True, "scores": False}))
    assert "may leave: its personal model for good, also to sites that were never there." in given[-2]
    budget = {"epsilon_budget": {"*": {"epsilon": 8.0, "delta": 1e-5}}}
    assert policy_sentences(parse_policy(budget))[1] == "Updates leave with noise alone, within the privacy budget."


def test_the_policy_of_a_site_that_scores_only_says_so():
    assert policy_sentences(parse_policy({"evaluate_only": True, "min_scored_cases": 10, "tasks": ["brats"]})) == [
        "Takes jobs that segment brats.",
        "Scores models and never trains.",
        "May leave: means of scores over its cases with the numbers of these, if they are 10 at least, of as many "
        "patients.",
        "Never leave: images, labels, names of patients, scores of single cases, updates, models of this site.",
    ]
    limited = policy_sentences(parse_policy({"min_scored_cases": 10, "submit_model": True}))
    assert "Scores of fewer than 10 cases or patients are withheld." in limited
    assert limited[-1].endswith(", its personal model.")


def test_a_site_that_scores_only_needs_no_training_case(kit, server):
    folder = Path(json.loads((kit / "local" / "fedseg.json").read_text())["datasets"]["tiny"])
    edit(kit / "local" / "fedseg.json", lambda c: {**c, "policy": {"evaluate_only": True, "min_cases": 99}})
    edit(folder / "datalist.json", lambda c: {**c, "test": c["training"], "training": [], "validation": []})
    page = check(kit)
    assert found(page) == {}
    assert "least cases: tiny" not in found(page, Colour.YELLOW)
    edit(folder / "datalist.json", lambda c: {**c, "training": c["test"], "test": []})
    assert "no-cases" in found(check(kit))["data: tiny"]


def test_a_rule_that_refuses_every_job_and_a_missing_budget_are_remarks(kit, server):
    edit(kit / "local" / "fedseg.json", lambda c: {**c, "policy": {"min_cases": 20}})
    yellow = found(check(kit), Colour.YELLOW)
    assert "None is stated: nothing bounds" in yellow["privacy budget"]
    assert "min_cases is 20, but tiny has" in yellow["least cases: tiny"]
    assert "every job on it will be refused" in yellow["least cases: tiny"]
    folder = Path(json.loads((kit / "local" / "fedseg.json").read_text())["datasets"]["tiny"])
    content = json.loads((folder / "datalist.json").read_text())
    for case in content["training"]:
        case["patient"] = "p"
    own, cases = kit.parent / "one-patient.json", len(content["training"])
    own.write_text(json.dumps({"training": content["training"]}))
    edit(kit / "local" / "fedseg.json", lambda c: {**c, "datasets": {"tiny": str(own)}, "policy": {"min_cases": cases}})
    said = f"min_cases is {cases}, but tiny has 1 patient(s) with {cases} training case(s): every job with a guarantee"
    assert said in found(check(kit), Colour.YELLOW)["least cases: tiny"]


def test_the_list_of_classes_is_the_packages(kit):
    assert (
        json.loads((kit / "local" / "resources.json").read_text())["class_allow_list"]
        == (site_resources()["class_allow_list"])
    )


def test_a_receiver_in_the_list_of_a_server_is_a_remark_and_at_a_site_an_error(kit, federation, tmp_path):
    server_kit = shutil.copytree(federation / "kits" / "localhost", tmp_path / "server")
    results = {}
    for folder in (kit, server_kit):
        edit(
            folder / "local" / "resources.json",
            lambda c: {**c, "class_allow_list": [*c["class_allow_list"], SERVER_RECEIVERS[0]]},
        )
        (results[folder],) = (r for r in check_classes(read_kit(folder), CheckOptions()) if r.check == "classes")
    assert results[kit].colour == Colour.RED
    assert "more than fedseg's components" in results[kit].found
    assert results[server_kit].colour == Colour.YELLOW
    assert "MLflowReceiver" in results[server_kit].found
