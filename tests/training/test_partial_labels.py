"""Sites that have drawn some of the regions: their batches, their rounds, their scores, and what they refuse."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist, write_datalist
from fedseg.errors import DataError, RefusalError
from fedseg.executors.admission import admit_data
from fedseg.jobs.job import read_job
from fedseg.simulation.in_process import InProcessFederation
from fedseg.site.profile import SiteProfile
from fedseg.tasks.objective import objective_of
from fedseg.tasks.segmentation.partial_loss import split_targets
from fedseg.training.cache import CaseCache
from fedseg.training.methods.class_weights import ClassWeights
from fedseg.training.trainer import SiteTrainer
from tiny import PLAN, TASK, make_sites

JOB = Path(__file__).parents[2] / "jobs" / "hippocampus_fedavg"
EXCLUSIVE = {**TASK, "regions": {"inner": ["inner"], "outer": ["outer"]}}
OVERLAPPING = pytest.mark.parametrize("task", [TASK, EXCLUSIVE], ids=["overlapping", "exclusive"])


def job(task):
    found = read_job(JOB)
    found.check()
    found.set("task", task)
    found.set("network", PLAN["network"])
    found.set("workflow.num_rounds", 2)
    return found


def trained(task, lists):
    federation = InProcessFederation(job(task), lists)
    federation.run()
    assert federation.events == []
    return federation


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = make_sites(tmp_path_factory.mktemp("partial"), {"alpha": (3, 2), "beta": (2, 1)})
    return {path.name: read_datalist(path) for path in sorted(folder.iterdir())}


def with_one(found, names):
    """The list, in whose first training and first validation case only these regions are drawn."""
    first, *rest = found.training
    one, *more = found.validation
    return replace(found, training=(replace(first, drawn=names), *rest), validation=(replace(one, drawn=names), *more))


@OVERLAPPING
def test_a_job_in_which_all_is_drawn_is_the_plain_job_to_the_bit(task, data):
    names = list(task["regions"])
    plain, said = (trained(task, lists) for lists in (data, {s: d.with_drawn(names) for s, d in data.items()}))
    assert all(np.array_equal(said.model.weights[n], value) for n, value in plain.model.weights.items())
    for one, other in zip(plain.rounds, said.rounds, strict=True):
        assert {s: one["sites"][s]["val_dice"] for s in data} == {s: other["sites"][s]["val_dice"] for s in data}


@OVERLAPPING
def test_a_site_that_drew_one_region_sends_no_score_of_the_other(task, data):
    region, other = task["regions"]
    lists = {**data, "beta": data["beta"].with_drawn([region])}
    federation = trained(task, lists)
    for entry in federation.rounds:
        scores = entry["sites"]["beta"]["val_dice"]
        assert scores[other] is None
        assert scores["mean"] == scores[region] is not None
        assert None not in entry["sites"]["alpha"]["val_dice"].values()


@OVERLAPPING
def test_batches_say_case_by_case_what_is_drawn(task, data):
    names = list(task["regions"])[:1]
    trainer = SiteTrainer(parse_plan({**PLAN, "task": task}), "alpha", with_one(data["alpha"], tuple(names)))
    found = list(trainer.batches(0, 0))
    rows = [row for batch in found if "drawn" in batch for row in batch["drawn"].tolist()]
    assert rows.count([True, False]) == 1
    partial = next(batch for batch in found if "drawn" in batch)
    targets = trainer.objective.targets(partial)
    classes, undrawn = split_targets(targets, 2)
    assert torch.equal(classes, partial["classes"].long())
    assert undrawn.tolist() == (~partial["drawn"]).tolist()
    whole = [batch for batch in found if "drawn" not in batch]
    assert all(trainer.objective.targets(batch) is batch["classes"] for batch in whole)


def test_voxels_of_an_undrawn_class_are_background_in_training_and_in_scores(data):
    cases = CaseCache(parse_plan({**PLAN, "task": EXCLUSIVE}).task, data["alpha"].with_drawn(["outer"]).training, True)
    assert cases[0].drawn == (False, True)
    assert set(torch.unique(cases[0].classes).tolist()) == {0, 2}


def test_a_prepared_case_on_disk_remembers_what_is_drawn(data, tmp_path):
    task = parse_plan(PLAN).task
    for names, drawn in ((["whole"], (False, True)), (["inner"], (True, False)), (None, None)):
        cases = CaseCache(task, data["alpha"].with_drawn(names).training, True, tmp_path)
        assert (cases[0].drawn, cases[0].drawn, cases.reads) == (drawn, drawn, 1)


@OVERLAPPING
def test_a_region_that_nobody_drew_is_in_no_mean_and_no_count(task, data):
    region, other = task["regions"]
    plan = parse_plan({**PLAN, "task": task})
    trainer = SiteTrainer(plan, "alpha", with_one(data["alpha"], (region,)))
    weights = {name: value.numpy().copy() for name, value in plan.build_network().state_dict().items()}
    scored = trainer.validate(weights, distances=True)
    assert scored[0].score.dice[other] is None
    assert scored[0].score.hd95[other] is None
    assert other not in scored[0].score.empty | scored[0].score.volumes | scored[0].score.lesions
    kind = objective_of(plan.task)
    summary = kind.summarise([case.score for case in scored])
    assert summary["defined"] == {region: 2, other: 1}
    assert summary["dice"][other] == scored[1].score.dice[other]
    assert sum(summary["empty"][other].values()) <= 1
    assert kind.fault(summary) == ""
    alone = kind.summarise([scored[0].score])
    assert (alone["dice"][other], alone["defined"][other]) == (None, 0)
    assert alone["dice"]["mean"] == alone["dice"][region]
    assert kind.pool([alone, summary])["defined"] == {region: 3, other: 1}
    plain = SiteTrainer(plan, "alpha", data["alpha"]).validate(weights, distances=True)
    assert plain[0].score.dice[region] == scored[0].score.dice[region]


def test_unknown_names_end_the_reading_of_a_case(data):
    cases = CaseCache(parse_plan(PLAN).task, data["alpha"].with_drawn(["liver"]).training, True)
    with pytest.raises(DataError, match="drawn names 'liver'"):
        cases[0]


def profile(folder, found, drawn=None):
    write_datalist(found, folder / "datalist.json")
    return SiteProfile({"*": folder / "datalist.json"}, folder, folder, drawn={"*": tuple(drawn)} if drawn else {})


def test_a_site_refuses_a_job_that_needs_every_region(data, tmp_path):
    plan = parse_plan({**PLAN, "task": EXCLUSIVE})
    partial, whole = profile(tmp_path, data["alpha"], ["inner"]), replace(profile(tmp_path, data["alpha"]), drawn={})
    assert {case.drawn for case in admit_data(plan, partial).training} == {("inner",)}
    with pytest.raises(RefusalError, match="ClassWeights needs cases in which every region is drawn"):
        admit_data(plan, partial, [ClassWeights()])
    admit_data(plan, whole, [ClassWeights()])


def test_a_site_refuses_names_that_the_task_does_not_have(data, tmp_path):
    with pytest.raises(RefusalError, match="1 error"):
        admit_data(parse_plan(PLAN), profile(tmp_path, data["alpha"], ["liver"]))


def test_split_training_needs_every_region(data, tmp_path):
    plan = parse_plan(json.loads(json.dumps({**PLAN, "task": EXCLUSIVE})))
    split = replace(plan, split=object())
    with pytest.raises(RefusalError, match="Split training needs cases in which every region is drawn"):
        admit_data(split, profile(tmp_path, data["alpha"], ["inner"]))
