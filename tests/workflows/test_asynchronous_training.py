"""FedAsync against a loop written out, its limits, and what a resumed run goes on with."""

import copy
import gc
from pathlib import Path

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.contract.report import SiteReport
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import apply_difference
from fedseg.provenance.audit import audit
from fedseg.simulation.in_process import InProcessFederation, simulate_in_process
from fedseg.simulation.run_folder import prepare_output
from fedseg.training.trainer import SiteTrainer
from fedseg.workflows.asynchronous_training import AsynchronousTraining
from fedseg.workflows.run.last_evaluation import beats_best
from fedseg.workflows.selection import LargestSites
from in_process_runs import tiny_job
from scripted_sites import accepted, start, train
from tiny import make_sites

JOBS = Path(__file__).parents[2] / "jobs"
CASES = {"a": 1, "b": 2, "c": 5}
VALUES = {"a": 1.0, "b": 2.0, "c": 4.0}


def update(message, site):
    cases = CASES[site]
    report = SiteReport(cases, (cases + 1) // 2, 0.9, 0.8, {"mean": 0.5}, 2)
    arrays = {name: np.full_like(weight, VALUES[site]) for name, weight in message.params.items()}
    return FLModel(params_type=ParamsType.DIFF, params=arrays, meta=report.to_meta())


def answer(task, site, message):
    return accepted(training=CASES[site]) if task == "prepare" else update(message, site)


def asynchronous(folder, script=answer, **arguments):
    return start(AsynchronousTraining(**{"num_rounds": 6, "run_id": "run", **arguments}), script, folder)


def first_value(weights):
    return float(np.ravel(next(iter(weights.values())))[0])


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({}, lambda t: (1 + t) ** -0.5),
        ({"exponent": 2}, lambda t: (1 + t) ** -2.0),
        ({"staleness": "constant"}, lambda t: 1.0),
        (
            {"staleness": "hinge", "hinge_after": 1, "hinge_slope": 3},
            lambda t: 1.0 if t <= 1 else 1 / (3 * (t - 1) + 1),
        ),
    ],
)
def test_each_update_is_mixed_in_as_a_loop_written_out(tmp_path, settings, factor):
    run = asynchronous(tmp_path, mixing=0.4, **settings)
    versions = [first_value(run.state.model.weights)]
    train(run)
    for number, entry in enumerate(run.state.rounds):
        ((site, staleness),) = entry["notes"]["staleness"].items()
        share = 0.4 * factor(staleness)
        trained = versions[number - staleness] + VALUES[site]
        versions.append((1 - share) * versions[number] + share * trained)
        assert entry["scales"] == {site: pytest.approx(share)}
        assert entry["weights"] == {site: 1.0}
    assert first_value(run.state.model.weights) == pytest.approx(versions[-1], rel=1e-5)
    # All three train the first version; the second and the third to answer are one and two versions late.
    assert [list(entry["notes"]["staleness"].items()) for entry in run.state.rounds[:3]] == [
        [("a", 0)], [("b", 1)], [("c", 2)]
    ]  # fmt: skip
    assert run.state.events == []


def test_a_site_that_never_answers_blocks_nobody(tmp_path):
    def script(task, site, message):
        return None if (task, site) == ("train", "b") else answer(task, site, message)

    run = train(asynchronous(tmp_path, script))
    assert [sorted(entry["sites"]) for entry in run.state.rounds] == [["a"], ["c"]] * 3
    assert all(entry["notes"]["in_flight"]["b"] == 0 for entry in run.state.rounds)


def test_an_update_beyond_the_cap_is_left_out_by_name(tmp_path):
    run = train(asynchronous(tmp_path, max_staleness=1))
    said = "update left out: it started from the model of round 1, 2 rounds ago; 1 are allowed"
    assert {"round": 2, "site": "c", "what": said} in run.state.events
    assert all(s <= 1 for entry in run.state.rounds for s in entry["notes"]["staleness"].values())


def test_a_resumed_run_is_the_one_that_was_not_stopped(tmp_path):
    """The versions that sites were training when the server was killed are there again."""
    through = train(asynchronous(tmp_path / "through"))

    class Killed(Exception):
        pass

    def dying(task, site, message):
        if task == "train" and message.current_round == 1:
            raise Killed
        return answer(task, site, message)

    run = asynchronous(tmp_path / "run", dying)
    with pytest.raises(Killed):
        train(run)
    finished = len(run.state.rounds)
    assert finished
    del run
    gc.collect()
    again = train(asynchronous(tmp_path / "run", resume=True))
    assert len(again.state.rounds) == 6
    for entry, expected in zip(again.state.rounds[:finished], through.state.rounds, strict=False):
        assert entry["notes"]["staleness"] == expected["notes"]["staleness"]
    versions = [0.0]
    for number, entry in enumerate(again.state.rounds):
        ((site, staleness),) = entry["notes"]["staleness"].items()
        share = 0.6 * (1 + staleness) ** -0.5
        versions.append((1 - share) * versions[number] + share * (versions[number - staleness] + VALUES[site]))
    begun = first_value(asynchronous(tmp_path / "new").state.model.weights)
    assert first_value(again.state.model.weights) - begun == pytest.approx(versions[-1], rel=1e-4)


def test_no_round_is_known_as_the_best_since_each_is_scored_at_one_site(tmp_path):
    run = train(asynchronous(tmp_path))
    assert [len(entry["sites"]) for entry in run.state.rounds] == [1] * 6
    assert run.state.best_round is None
    assert not (tmp_path / "best.safetensors").exists()
    scored = dict.fromkeys(CASES, (0.9, 2))
    assert not beats_best(run.state, scored), "nor the last one"


def test_only_the_sites_that_are_selected_train(tmp_path):
    run = train(asynchronous(tmp_path, selection=LargestSites(1)))
    assert [sorted(entry["sites"]) for entry in run.state.rounds] == [["c"]] * 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"aggregator": object()}, r"workflow\.aggregator is 'given', but must be left out in asynchronous"),
        ({"server_optimizer": object()}, r"workflow\.server_optimizer"),
        ({"shared_arrays": object()}, r"workflow\.shared_arrays"),
        ({"mixing": 0}, r"workflow\.mixing is 0"),
        ({"mixing": 1.5}, r"workflow\.mixing is 1\.5"),
        ({"patience": 2}, r"workflow\.patience"),
    ],
)
def test_what_has_no_meaning_here_is_refused_by_name(arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        AsynchronousTraining(2, **arguments)


# ---------------------------------------------------------------------- real training, in one process

SITES = {"alpha": (4, 1), "beta": (2, 1), "gamma": (3, 1)}


def test_one_site_that_is_mixed_in_whole_is_its_own_training(tmp_path):
    lists = {"alpha": read_datalist(make_sites(tmp_path, SITES) / "alpha")}
    job = tiny_job(JOBS / "hippocampus_fedasync", 3)
    job.set("workflow.mixing", 1)
    federation = InProcessFederation(job, lists)
    weights = copy.deepcopy(federation.model.weights)
    federation.run()
    assert federation.events == []
    trainer = SiteTrainer(federation.plan, "alpha", lists["alpha"])
    for number in range(3):
        weights = apply_difference(weights, trainer.train_round(weights, number, 3).update)
    for name, value in weights.items():
        np.testing.assert_array_equal(federation.model.weights[name], value)


def test_the_records_of_server_and_sites_agree(tmp_path):
    data, out = make_sites(tmp_path / "data", SITES), tmp_path / "run"
    prepare_output(out, False)
    result = simulate_in_process(
        tiny_job(JOBS / "hippocampus_fedasync", 5), data, out, sorted(SITES), lambda event: None
    )
    assert result.results["events"] == []
    assert [finding.text for finding in audit([out]) if not finding.good] == []
