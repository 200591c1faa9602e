"""Units: how long each arm trains, and what makes a finished unit another one."""

import copy

import pytest

from fedseg.contract.plan import parse_plan
from fedseg.errors import FedsegError
from fedseg.experiments.arms import Arm
from fedseg.experiments.cost_plan import Speed, unit_cost
from fedseg.experiments.experiment import describe, load_experiment
from fedseg.experiments.units import planned
from fedseg.files.digest import model_digest
from fedseg.jobs.job import read_job
from fedseg.models.model_file import write_model
from fedseg.networks.weights import get_weights
from tiny import PLAN, make_sites
from tiny_experiment import JOBS, SITES, write_experiment


def units(folder, **more):
    experiment = load_experiment(write_experiment(folder, **more), None, folder / "sites")
    return {unit.name: unit for unit in experiment.units}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    write_experiment(folder)
    return folder


def test_there_is_a_unit_for_each_arm_seed_fold_and_lone_site(folder):
    found = units(folder, seeds=[3, 4], arms={"local": {"kind": "local"}, "both": {"kind": "ensemble", "of": "local"}})
    names = [f"local_seed{seed}_{site}" for seed in (3, 4) for site in SITES]
    assert list(found) == [*names, "both_seed3", "both_seed4"]
    assert found["both_seed4"].needs == tuple(f"local_seed4_{site}" for site in SITES)
    assert {unit.job.plan.seed for name, unit in found.items() if "seed4" in name} == {4}


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        # alpha has 4 training cases, beta and gamma 2; batches of 2: 2 + 1 + 1 steps and 8 samples in a round.
        ({"rounds": 3}, {"central": 3, "local_alpha": 3, "local_beta": 3, "ciil": 3, "fedavg": 3}),
        ({"samples": 40}, {"central": 5, "local_alpha": 10, "local_beta": 20, "ciil": 5, "fedavg": 5}),
        ({"steps": 12}, {"central": 3, "local_alpha": 6, "local_beta": 12, "ciil": 3, "fedavg": 3}),
        ({"samples": 1}, {"central": 1, "local_alpha": 1, "local_beta": 1, "ciil": 1, "fedavg": 1}),
    ],
)
def test_a_budget_gives_every_arm_its_rounds(folder, budget, expected):
    found = units(folder, budget=budget)
    for name, rounds in expected.items():
        arm, _, site = name.partition("_")
        unit = found[f"{arm}_seed3_{site}" if site else f"{arm}_seed3"]
        assert (unit.rounds, unit.job.workflow["num_rounds"]) == (rounds, rounds), name


def test_pooled_training_has_as_many_samples_or_as_many_steps(folder):
    arms = {"samples": {"kind": "central"}, "steps": {"kind": "central", "equal": "steps"}}
    # With batches of 3 the sites make 2 + 1 + 1 steps in a round, and the pool of 8 cases makes 3.
    found = units(folder, arms=arms, budget={"rounds": 6}, set={"training.batch_size": 3})
    assert planned(found["samples_seed3"]) == {"rounds": 6, "steps": 18, "samples": 48}
    assert planned(found["steps_seed3"]) == {"rounds": 8, "steps": 24, "samples": 64}


def test_without_a_budget_the_jobs_rounds_count(folder):
    found = units(folder, budget={"rounds": 15})
    definition = write_experiment(folder)
    text = definition.read_text("utf-8").replace("budget:\n  rounds: 2\n", "")
    definition.write_text(text, "utf-8")
    experiment = load_experiment(definition, None, folder / "sites")
    assert {unit.name: unit.rounds for unit in experiment.units} == {n: u.rounds for n, u in found.items()}


def test_a_cost_is_counted_by_hand(folder):
    found = units(folder, budget={"rounds": 3})
    speed = Speed(step=2.0, case=0.5)
    local = unit_cost(found["local_seed3_alpha"], speed)
    # 2 steps in each of 3 rounds; its validation case in each round, and three test cases at the end.
    assert (local.steps, local.samples, local.bytes, local.scored) == (6, 12, 0, 6)
    assert local.seconds == 6 * 2.0 + 6 * 0.5
    fedavg = unit_cost(found["fedavg_seed3"], speed)
    # Three validation cases in each round and twice at the end, for the last and the best model.
    assert (fedavg.steps, fedavg.samples, fedavg.scored) == (12, 24, 3 * 3 + 3 + 6)
    weights = sum(p.numel() for p in found["fedavg_seed3"].job.plan.build_network().parameters())
    assert fedavg.bytes == 2 * 3 * 3 * 4 * weights
    assert unit_cost(found["ensemble_seed3"], speed).scored == 9


def test_settings_of_an_arm_win_over_those_of_the_experiment(folder):
    arms = {
        "a": {"job": "job"},
        "b": {"job": "job", "set": {"training.learning_rate": 0.5, "aggregator.weight_by": "uniform"}},
    }
    found = units(folder, arms=arms, set={"training.learning_rate": 1e-3})
    assert found["a_seed3"].job.plan.training.learning_rate == 1e-3
    assert found["b_seed3"].job.plan.training.learning_rate == 0.5
    assert found["b_seed3"].job.workflow["aggregator"]["args"] == {"weight_by": "uniform"}


def test_any_job_trains_the_experiments_task_and_network(folder):
    (unit,) = units(folder, arms={"scaffold": {"job": str(JOBS / "brats_scaffold")}}).values()
    assert unit.job.plan.task.name == "tiny"
    assert unit.job.plan.network == load_experiment(folder / "tiny.yaml", None, folder / "sites").base.plan.network


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"a": {"job": "nowhere"}}, "arms.a: "),
        ({"a": {"job": "job", "set": {"training.epochs": 3}}}, "arms.a: training.epochs is not known"),
        ({"a": {"job": "job", "set": {"aggregator.weight": 3}}}, "arms.a: "),
        ({"a": {"kind": "local", "set": {"x.y": 3}}}, "arms.a: --set x.y"),
        ({"a": {"kind": "ciil", "order": ["alpha", "beta"]}}, "arms.a.order is ['alpha', 'beta'], but must be a list"),
    ],
)
def test_an_arm_that_cannot_run_is_refused_by_its_name(folder, arms, said):
    with pytest.raises(FedsegError) as found:
        units(folder, arms=arms)
    assert str(found.value).startswith(said)


def test_an_arm_does_not_choose_its_model_on_the_cases_that_test_it(tmp_path):
    make_sites(tmp_path / "data", SITES, with_test=False)
    arms = {"iil": {"kind": "iil", "patience": 2}}
    with pytest.raises(FedsegError, match=r"arms\.iil\.patience is 2, but must be left out.* cases of alpha"):
        units(tmp_path, arms=arms)
    assert units(tmp_path, arms={"iil": {"kind": "iil"}})


def test_statistics_that_no_site_could_tell_are_refused_before_anything_is_trained(folder):
    """The largest site has 4 training patients and 1 for validation."""
    with pytest.raises(FedsegError, match="statistics is 6, but must be at most 5"):
        units(folder, statistics=6)
    assert units(folder, statistics=5)


def test_a_digest_changes_with_what_decides_about_results_and_with_nothing_else(folder, tmp_path):
    base = {name: unit.digest for name, unit in units(folder).items()}
    assert {name: unit.digest for name, unit in units(folder, description="x", watts={"cpu": 9}).items()} == base
    more = {name: unit.digest for name, unit in units(folder, seeds=[3, 5]).items()}
    assert {name: digest for name, digest in more.items() if "seed3" in name} == base
    changed = {name: unit.digest for name, unit in units(folder, set={"training.learning_rate": 0.1}).items()}
    assert all(changed[name] != base[name] for name in base)


def test_a_digest_changes_with_the_content_of_an_image(tmp_path):
    before = {name: unit.digest for name, unit in units(tmp_path).items()}
    label = sorted((tmp_path / "data" / "beta" / "images").glob("*_image.nii.gz"))[0]
    label.write_bytes(sorted((tmp_path / "data" / "alpha" / "images").glob("*_image.nii.gz"))[0].read_bytes())
    after = {name: unit.digest for name, unit in units(tmp_path).items()}
    assert before["local_seed3_beta"] != after["local_seed3_beta"]
    # A case that is trained on at beta is no test, so alpha's model is the same.
    assert before["local_seed3_alpha"] == after["local_seed3_alpha"]


@pytest.mark.parametrize(
    ("order", "expected"),
    [("name", "abc"), ("largest_first", "bca"), ("smallest_first", "acb"), (("c", "a", "x", "b"), "cab")],
)
def test_the_order_of_visits(order, expected):
    assert "".join(Arm("x", "iil", {}, order=order).visited({"c": 3, "b": 9, "a": 1}, seed=0)) == expected


def test_a_random_order_follows_from_the_seed():
    arm, sizes = Arm("x", "iil", {}, order="random"), dict.fromkeys("abcdefgh", 1)
    orders = [arm.visited(sizes, seed) for seed in range(3)]
    assert all(sorted(order) == sorted(sizes) for order in orders)
    assert orders[0] == arm.visited(copy.copy(sizes), 0)
    assert len({tuple(order) for order in orders}) == 3


def test_what_an_arm_started_from_is_recorded(tmp_path):
    file = write_experiment(tmp_path, arms={"central": {"kind": "central"}, "tuned": {"job": "tuned"}})
    plan = parse_plan(PLAN)
    weights = get_weights(plan.build_network())
    job = read_job(tmp_path / "job")
    job.initial = write_model(tmp_path / "before.safetensors", plan, weights, 4)
    job.write(tmp_path / "tuned")
    arms = describe(load_experiment(file, None, tmp_path / "sites"), {}, tmp_path)["arms"]
    assert "initial" not in arms["central"]
    told = {"digest": model_digest(weights), "method": plan.method, "seed": plan.seed, "round": 4}
    assert arms["tuned"]["initial"] == told
