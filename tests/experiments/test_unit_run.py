"""Arms against each other where they must be equal, and what a unit leaves."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedseg.data.datalist import SPLITS, read_datalist, write_datalist
from fedseg.errors import FedsegError
from fedseg.experiments.definition import Watts
from fedseg.experiments.experiment import load_experiment
from fedseg.experiments.trained import _run_costs, _run_curves
from fedseg.experiments.unit_run import _Meter, is_done, read_done, run_unit
from fedseg.networks.weights import apply_difference, get_weights
from fedseg.tasks.objective import objective_of
from fedseg.tasks.registry import BRATS
from fedseg.training.trainer import SiteTrainer
from tiny import PLAN, TASK
from tiny_experiment import ARMS, write_experiment, write_job

WATTS = Watts(cpu=20.0)


def run_all(folder, watts=WATTS, **more):
    """Run all units of an experiment; what they left, by name."""
    experiment = load_experiment(write_experiment(folder, **more), None, folder / "sites")
    for unit in experiment.units:
        run_unit(unit, folder / "out", watts)
    return experiment, {unit.name: read_done(folder / "out", unit.name) for unit in experiment.units}


def model(folder, name, file="global"):
    return load_file(folder / "out" / "units" / name / f"{file}.safetensors")


def assert_equal(one, other):
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.fixture(scope="module")
def lone(tmp_path_factory):
    """All arms with a single site."""
    folder = tmp_path_factory.mktemp("lone")
    return folder, *run_all(folder, sites=["alpha"])


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """All arms with three sites, and one with models of the sites."""
    folder = tmp_path_factory.mktemp("three")
    write_experiment(folder)
    ditto = {"job": str(write_job(folder / "ditto", "hippocampus_ditto"))}
    fedbn = {"job": str(write_job(folder / "fedbn", "brats_fedbn"))}
    return folder, *run_all(folder, arms={**ARMS, "ditto": ditto, "fedbn": fedbn})


def test_with_one_site_every_arm_is_its_own_training(lone):
    folder, experiment, _ = lone
    plan, datalist = experiment.units[0].job.plan, read_datalist(folder / "data" / "alpha")
    trainer = SiteTrainer(plan, "alpha", datalist)
    weights = get_weights(trainer.network)
    for number in range(2):
        weights = apply_difference(weights, trainer.train_round(weights, number, 2).update)
    for arm in ("central", "iil", "ciil", "fedavg"):
        assert_equal(model(folder, f"{arm}_seed3"), weights)
    assert_equal(model(folder, "local_seed3_alpha", "alpha"), weights)


def test_an_ensemble_of_one_is_its_model(lone):
    _, _, done = lone
    local, ensemble = done["local_seed3_alpha"].results, done["ensemble_seed3"].results
    assert [{**row, "site": "-"} for row in local] == ensemble
    assert ensemble


def test_an_ensemble_is_the_mean_of_probabilities(three):
    """Against a loop over voxels' probabilities, written out."""
    import torch

    from fedseg.training.inference import infer_logits
    from fedseg.training.prepare import prepare_case

    folder, experiment, done = three
    plan = experiment.units[0].job.plan
    case = read_datalist(folder / "data" / "beta").test[0]
    prepared = prepare_case(plan.task, case, training=False)
    total = 0
    for site in ("alpha", "beta", "gamma"):
        network = plan.build_network().eval()
        weights = model(folder, f"local_seed3_{site}", site)
        network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        logits = infer_logits(network, plan.task, prepared.image, plan.training.overlap, torch.device("cpu"))
        total = total + torch.sigmoid(logits)[0].double().numpy()
    masks = total / 3 > 0.5
    label = np.asarray(prepared.reference)
    whole, inner = label > 0, label == 1
    for region, truth, found in (("whole", whole, masks[1] | masks[0]), ("inner", inner, masks[0])):
        dice = 2 * (truth & found).sum() / (truth.sum() + found.sum())
        (row,) = [
            row
            for row in done["ensemble_seed3"].results
            if (row["evaluated_at"], row["region"], row["metric"]) == ("beta", region, "dice")
        ]
        assert row["value"] == pytest.approx(dice, abs=1e-9)


def test_every_model_is_scored_at_every_site_with_every_metric(three):
    _, experiment, done = three
    kind = experiment.base.plan.objective
    sites = {"alpha", "beta", "gamma"}
    for name, each in done.items():
        owners = {"-"} if "local" not in name else {name.rpartition("_")[2]}
        # Ditto has personal models beside the shared one; with FedBN each site has its own normalisation only.
        owners = {"ditto_seed3": {"-", *sites}, "fedbn_seed3": sites}.get(name, owners)
        assert {row["site"] for row in each.results} == owners, name
        for owner in owners:
            rows = [row for row in each.results if row["site"] == owner]
            assert {row["evaluated_at"] for row in rows} == sites, name
            assert {row["metric"] for row in rows} == {score.name for score in kind.scores}
            assert {row["region"] for row in rows} == {*kind.outputs, "mean"}
            assert len(rows) == 3 * len(kind.scores) * (len(kind.outputs) + 1)


def test_a_mean_is_that_of_the_regions(three):
    _, _, done = three
    rows = [row for row in done["central_seed3"].results if row["metric"] == "dice" and row["case"] == "beta-3"]
    values = {row["region"]: row["value"] for row in rows}
    assert values["mean"] == pytest.approx((values["inner"] + values["whole"]) / 2, abs=1e-12)


def test_elsewhere_can_be_left_out(tmp_path):
    _, done = run_all(tmp_path, arms={"local": {"kind": "local", "elsewhere": False}}, sites=["alpha", "beta"])
    assert {row["evaluated_at"] for row in done["local_seed3_beta"].results} == {"beta"}


def test_costs_are_as_trained(three):
    folder, _, done = three
    # 4, 2 and 2 training cases in batches of 2.
    for arm in ("central", "iil", "ciil", "fedavg"):
        costs = done[f"{arm}_seed3"].costs
        assert (costs["rounds"], costs["steps"], costs["samples"]) == (2, 8, 16), arm
    size = sum(array.nbytes for array in model(folder, "ciil_seed3").values())
    assert done["ciil_seed3"].costs["bytes_sent"] == done["ciil_seed3"].costs["bytes_received"] == 6 * size
    assert done["local_seed3_alpha"].costs["bytes_sent"] == 0
    assert done["fedavg_seed3"].costs["bytes_sent"] > 6 * size
    files = [f for site in ("alpha", "beta", "gamma") for f in used(folder / "data" / site)]
    assert done["central_seed3"].costs["bytes_sent"] == sum(file.stat().st_size for file in files)


def test_epochs_that_a_selection_shortened_count_as_they_were():
    """Three passes a round: 10 cases of which each pass has 2, and all 4 of the other site; later all of both."""
    sites = {"a": (10, 2), "b": (4, None)}
    told = {"num_steps": 3, "val_dice": {"mean": 0.5}, "val_loss": 1.0, "train_loss": 1.0}
    shortened = {site: {**told, "num_samples": n, "epoch_cases": each} for site, (n, each) in sites.items()}
    whole = {site: {**part, "epoch_cases": None} for site, part in shortened.items()}
    rounds = [{"round": 0, "val_dice": 0.5, "sites": shortened}, {"round": 1, "val_dice": 0.5, "sites": whole}]
    summary = {"rounds": rounds, "cost": {"bytes_up": 1, "bytes_down": 1}, "final": {}}
    plan = SimpleNamespace(training=SimpleNamespace(local_epochs=3, patches_per_case=1), objective=objective_of(BRATS))
    unit = SimpleNamespace(job=SimpleNamespace(plan=plan))
    assert _run_costs(summary, unit)["samples"] == 3 * (2 + 4) + 3 * (10 + 4)
    assert {row["samples"] for row in _run_curves(summary, unit) if row["round"] == 1} == {18}


def used(site):
    datalist = read_datalist(site)
    return [file for split in ("training", "validation") for case in datalist.split(split) for file in case.files]


def test_energy_is_the_measured_seconds_at_the_stated_power(three, tmp_path):
    _, _, done = three
    for each in done.values():
        if "gpu_seconds" not in each.costs:
            assert each.costs["kwh"] == pytest.approx(each.costs["cpu_seconds"] * 20.0 / 3.6e6)
        assert each.costs["peak_memory_mib"] > 50
    _, unstated = run_all(tmp_path, watts=Watts(), arms={"central": {"kind": "central"}})
    assert all("kwh" not in each.costs for each in unstated.values())


@pytest.mark.parametrize("gpu", [False, True])
def test_energy_needs_the_power_of_every_part_that_worked(monkeypatch, gpu):
    """Against sums by hand: two seconds of a processor at 20 W, and three of the clock of a GPU at 300 W."""
    clock = SimpleNamespace(wall=10.0, busy=1.0)
    monkeypatch.setattr("fedseg.experiments.unit_run.torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("fedseg.experiments.unit_run.time.monotonic", lambda: clock.wall)
    monkeypatch.setattr("fedseg.experiments.unit_run.time.process_time", lambda: clock.busy)
    watch = SimpleNamespace(stop=lambda: None, peak_total=100.0)
    monkeypatch.setattr("fedseg.experiments.unit_run.MemoryWatch", lambda *_, **__: watch)
    meter = _Meter()
    clock.wall, clock.busy = 13.0, 3.0
    meter.stop()
    both, cpu_only, gpu_only, none = (
        meter.costs(Watts(cpu=cpu, gpu=card))
        for cpu, card in ((20.0, 300.0), (20.0, None), (None, 300.0), (None, None))
    )
    assert (both["cpu_seconds"], both["wall_seconds"]) == (2.0, 3.0)
    assert both.get("gpu_seconds") == (3.0 if gpu else None)
    assert both["kwh"] == pytest.approx((40 + 900 * gpu) / 3.6e6)
    assert ("kwh" in cpu_only) is not gpu
    assert "kwh" not in gpu_only | none


def test_curves_count_the_samples_that_lie_behind(three):
    _, _, done = three
    fedavg = [row for row in done["fedavg_seed3"].curves if row["site"] == "-" and row["metric"] == "dice"]
    assert [(row["round"], row["samples"]) for row in fedavg] == [(0, 0), (1, 8)]
    ciil = [row for row in done["ciil_seed3"].curves if row["metric"] == "dice"]
    assert [(row["site"], row["round"], row["samples"]) for row in ciil] == [
        ("alpha", 0, 0), ("beta", 0, 4), ("gamma", 0, 6), ("alpha", 1, 8), ("beta", 1, 12), ("gamma", 1, 14),
    ]  # fmt: skip
    assert done["ciil_seed3"].order == ["alpha", "beta", "gamma"]


def test_a_finished_unit_is_not_done_again_and_a_damaged_one_is(three):
    folder, experiment, _ = three
    unit = experiment.units[0]
    record = folder / "out" / "units" / unit.name / "unit.json"
    before = record.stat().st_mtime_ns
    run_unit(unit, folder / "out", WATTS)
    assert record.stat().st_mtime_ns == before
    before_damage = read_done(folder / "out", unit.name)
    record.write_text(record.read_text("utf-8")[:100], "utf-8")
    assert not is_done(folder / "out", unit)
    run_unit(unit, folder / "out", WATTS)
    assert read_done(folder / "out", unit.name).results == before_damage.results


def test_a_unit_that_fails_leaves_no_folder_and_its_log(tmp_path):
    experiment = load_experiment(write_experiment(tmp_path, arms={"fedavg": {"job": "job"}}), None, tmp_path / "sites")
    for label in (tmp_path / "data" / "beta" / "images").glob("beta-?.nii.gz"):
        label.write_bytes(b"no image")
    for label in (tmp_path / "data" / "alpha" / "images").glob("alpha-?.nii.gz"):
        label.write_bytes(b"no image")
    for label in (tmp_path / "data" / "gamma" / "images").glob("gamma-?.nii.gz"):
        label.write_bytes(b"no image")
    (unit,) = experiment.units
    with pytest.raises(FedsegError, match=r"simulator\.log"):
        run_unit(unit, tmp_path / "out", WATTS)
    assert not is_done(tmp_path / "out", unit)
    assert not (tmp_path / "out" / "units" / unit.name).exists()
    assert (tmp_path / "out" / "work" / unit.name / "run" / "simulator.log").is_file()


# ------------------------------------------------------------------ branches by modality

CT_MR = {**TASK, "channels": ["ct", "mr"], "optional_channels": ["ct", "mr"], "sampling": {}}
START = "parts.modality_norm."


def of_two_modalities(folder, sites, arms):
    """An experiment of which alpha has CT alone and beta MR alone, whose network has branches."""
    definition = {
        "sites": ["alpha", "beta"],
        "arms": arms,
        "set": {"task": CT_MR, "network": {**PLAN["network"], "parts": [{"name": "modality_norm", "sites": sites}]}},
    }
    write_experiment(folder, **definition)
    for site, lacking in (("alpha", 1), ("beta", 0)):
        place = folder / "data" / site
        found = read_datalist(place)
        parts = {s: tuple(replace(case, missing=(lacking,)) for case in found.split(s)) for s in SPLITS}
        write_datalist(replace(found, **parts), place / "datalist.json")
    return definition


def test_pooled_training_trains_the_branches_of_all_modalities_and_a_site_alone_its_own(tmp_path):
    definition = of_two_modalities(
        tmp_path, [["alpha"], ["beta"]], {"central": {"kind": "central"}, "local": {"kind": "local"}}
    )
    experiment, done = run_all(tmp_path, **definition)
    begun = get_weights(experiment.units[0].job.plan.build_network())
    branches = [name for name in begun if name.startswith(START)]
    first = [
        name.replace(".weight", "") + ".weight" for name in begun if ".adn.N.weight" in name and name not in branches
    ]
    assert branches
    assert first

    def moved(weights, names):
        return {bool(np.any(weights[name] != begun[name])) for name in names}

    central = model(tmp_path, "central_seed3")
    assert (moved(central, branches), moved(central, first)) == ({True}, {True})
    for site, expected in (("alpha", False), ("beta", True)):
        own = model(tmp_path, f"local_seed3_{site}", site)
        assert (moved(own, branches), moved(own, first)) == ({expected}, {not expected})
    assert {row["evaluated_at"] for row in done["central_seed3"].results} == {"alpha", "beta"}


@pytest.mark.parametrize("arm", [{"job": "job"}, {"kind": "ciil"}, {"kind": "iil"}])
def test_a_site_of_no_group_is_refused_before_anything_is_trained(tmp_path, arm):
    definition = of_two_modalities(tmp_path, [["alpha"], ["mr-*"]], {"central": {"kind": "central"}, "one": arm})
    if "job" in arm:
        definition["arms"]["one"]["set"] = {"network.parts": copy.deepcopy(definition["set"]["network"]["parts"])}
    with pytest.raises(
        FedsegError, match=r"arms.one: network.parts is .*beta trains, and is in none of them\. Name it"
    ):
        load_experiment(write_experiment(tmp_path, **definition), None, tmp_path / "sites")
    definition["arms"] = {"central": {"kind": "central"}, "local": {"kind": "local"}}
    assert len(load_experiment(write_experiment(tmp_path, **definition), None, tmp_path / "sites").units) == 3
