"""Arrays beside the model in a whole run: before the first round, in every round, and in banks; and who owns what."""

import re

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.control_variates import ControlVariates
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.mean_amplitude import MeanAmplitude
from fedseg.aggregators.shared_state import SharedArray, SharedState
from fedseg.contract.plan import parse_plan
from fedseg.contract.report import SiteReport
from fedseg.errors import AbortedError, ConfigurationError, DataError, FedsegError, RefusalError
from fedseg.networks.parts.amplitude import SPECTRUM
from fedseg.provenance.reading import named_models, read_record, server_starts
from fedseg.provenance.run_log import RECORD_FILE, SERVER_SIDE, RunLog
from fedseg.workflows.federated_training import FederatedTraining
from fedseg.workflows.run.weighted_model import WeightedModel
from scripted_sites import accepted, start, train
from tiny import PLAN
from toy_parts import NAMES, declare

HARMONISED = parse_plan({**PLAN, "network": {**PLAN["network"], "parts": [{"name": "amplitude", "mode": "window"}]}})
AMPLITUDE = "shared:amplitude/spectrum"
SILENCE = object()


def update(arrays, **report):
    scores = {"train_loss": 0.9, "val_loss": 0.8, "val_scores": {"mean": 0.5}, "val_cases": 2, "num_steps": 1}
    meta = SiteReport(**{"num_samples": 2, **scores, **report}).to_meta()
    return FLModel(params_type=ParamsType.DIFF, params=arrays, meta=meta)


def shared(arrays):
    return update(arrays, num_steps=0, train_loss=None, val_loss=None, val_scores={})


def trained(message, kept=(SPECTRUM,), **extras):
    """An update of 0.5 everywhere but in the arrays that are kept."""
    weights = {n: v for n, v in message.params.items() if n not in kept and not n.startswith("shared:")}
    return update({**{n: np.full_like(v, 0.5) for n, v in weights.items()}, **extras})


def harmonised(folder, script=None, **arguments):
    def answer(task, site, message):
        if script is not None and (own := script(task, site, message)) is not None:
            return None if own is SILENCE else own
        if task == "prepare":
            return accepted()
        if task == "share":
            return shared({AMPLITUDE: np.full((1, 1, 3, 3, 3), ord(site) - ord("a") + 1, np.float32)})
        return trained(message)

    rule = {"num_rounds": 2, "aggregator": FedAvg(), "shared_arrays": MeanAmplitude(), "run_id": "run"}
    return start(FederatedTraining(**{**rule, **arguments}), answer, folder, HARMONISED)


def test_the_mean_of_all_sites_stands_in_the_model_of_round_0_and_stays(tmp_path):
    seen = []

    def watch(task, site, message):
        if task == "train":
            seen.append((site, float(message.params[SPECTRUM].max()), [n for n in message.params if "extra" in n]))

    run = train(harmonised(tmp_path, watch))
    assert run.state.events == []
    assert [task for task, _ in run.state.sites.tasks][:3] == ["prepare", "share", "train"]
    assert seen == [(site, 2.0, []) for _ in range(2) for site in "abc"]
    np.testing.assert_array_equal(run.state.model.weights[SPECTRUM], np.full((1, 1, 3, 3, 3), 2, np.float32))


def test_the_record_names_the_model_that_round_0_sends(tmp_path):
    run = train(harmonised(tmp_path))
    record = read_record(run.state.checkpoints.folder / RECORD_FILE)
    (line,) = record.of_kind("shared")
    assert line["sites"] == ["a", "b", "c"]
    (first,) = server_starts(record)
    assert first.sent(0) == line["model"] != first.facts["model"]
    assert line["model"] in named_models(record)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda: RefusalError("policy", "rule statistics"), "policy: rule statistics"),
        (lambda: SILENCE, "did not answer the task share"),
        (lambda: shared({AMPLITUDE: np.zeros((1, 1, 2, 2, 2), np.float32)}), "left out: .*shape"),
        (lambda: shared({AMPLITUDE: np.full((1, 1, 3, 3, 3), np.nan, np.float32)}), "left out: .*not finite"),
        (lambda: shared({"shared:other": np.zeros(2, np.float32)}), "left out: .*missing"),
        (lambda: shared({"model.0": np.zeros(2, np.float32)}), "left out: .*arrays of the network before"),
        (lambda: FLModel(metrics={"x": 1.0}), "left out: .*report"),
    ],
)
def test_a_site_without_good_arrays_is_named_and_the_mean_is_of_the_others(tmp_path, answer, said):
    run = train(harmonised(tmp_path, lambda task, site, _: answer() if (task, site) == ("share", "c") else None))
    (event,) = run.state.events
    assert (event["round"], event["site"]) == (-1, "c")
    assert re.search(said, event["what"])
    assert pytest.approx(1.5) == run.state.model.weights[SPECTRUM].max()


def test_with_too_few_sites_the_run_ends_with_a_sentence(tmp_path):
    def refuse(task, site, message):
        return RefusalError("policy", "rule statistics") if task == "share" and site != "a" else None

    with pytest.raises(FedsegError, match=r"1 site\(s\) sent arrays before the first round, but 2 must"):
        train(harmonised(tmp_path, refuse, min_sites=2))


def test_a_resumed_run_does_not_ask_again_and_ends_with_the_same_bits(tmp_path):
    whole = train(harmonised(tmp_path / "whole"))

    def dies(task, site, message):
        if task == "train" and message.current_round == 1:
            raise AbortedError("stopped")

    with pytest.raises(AbortedError):
        train(harmonised(tmp_path / "stopped", dies))
    resumed = train(harmonised(tmp_path / "stopped", resume=True))
    assert "share" not in [task for task, _ in resumed.state.sites.tasks]
    for name, value in whole.state.model.weights.items():
        np.testing.assert_array_equal(resumed.state.model.weights[name], value)


class Prototypes(SharedState):
    """Two numbers of each site for all others, with every update."""

    prefix = "prototypes/"

    def declare(self, plan, weights):
        return {"mean": SharedArray((2,), "bank")}


def test_each_site_receives_the_bank_of_the_others(tmp_path):
    received = {}

    def script(task, site, message):
        if task != "train":
            return accepted()
        received.setdefault(site, []).append(message.params["shared:prototypes/mean"].tolist())
        number = float(ord(site) - ord("a"))
        return trained(message, **{"shared:prototypes/mean": np.array([number, 7], np.float32)})

    workflow = FederatedTraining(num_rounds=2, aggregator=FedAvg(), shared_arrays=Prototypes(), run_id="run")
    run = train(start(workflow, script, tmp_path))
    assert run.state.events == []
    assert received == {
        "a": [[], [[1, 7], [2, 7]]],
        "b": [[], [[0, 7], [2, 7]]],
        "c": [[], [[0, 7], [1, 7]]],
    }


@pytest.mark.parametrize("arguments", [{"private": True}, {"sites": ["a"]}, {"from_round": 2}])
def test_arrays_that_a_site_does_not_share_do_not_count(tmp_path, monkeypatch, arguments):
    """One that sends them all the same is left out of the round; the array keeps its value."""
    plan = parse_plan(declare(monkeypatch, **arguments))

    def script(task, site, message):
        if task == "prepare":
            return accepted()
        return trained(message, kept=() if site == "b" else NAMES)

    run = train(start(FederatedTraining(num_rounds=1, aggregator=FedAvg(), run_id="run"), script, tmp_path, plan))
    (event,) = run.state.events
    assert event["site"] == "b"
    assert f"holds {NAMES[0]}, which this site does not share in this round" in event["what"]
    before = plan.build_network().state_dict()
    for name in NAMES:
        np.testing.assert_array_equal(run.state.model.weights[name], before[name].numpy())


def test_a_grouped_array_is_the_mean_of_its_group_only(tmp_path, monkeypatch):
    plan = parse_plan(declare(monkeypatch, sites=["a", "b"]))

    def script(task, site, message):
        if task == "prepare":
            return accepted()
        arrays = trained(message, kept=NAMES).params
        own = {"a": 1.0, "b": 3.0}.get(site)
        grouped = {} if own is None else {n: np.full_like(message.params[n], own) for n in NAMES}
        return update({**arrays, **grouped})

    run = train(start(FederatedTraining(num_rounds=1, aggregator=FedAvg(), run_id="run"), script, tmp_path, plan))
    assert run.state.events == []
    for name, value in plan.build_network().state_dict().items():
        moved = run.state.model.weights[name] - value.numpy()
        np.testing.assert_allclose(moved, 2.0 if name in NAMES else 0.5, rtol=1e-5)


@pytest.mark.parametrize(("place", "start_id"), [(0, "s"), (2, "s"), (1, "other")])
def test_the_line_of_it_stands_after_the_start_and_before_round_0(tmp_path, place, start_id):
    """A record whose lines were moved, or that names another start, is not one of a run."""
    lines = [
        ("start", {"start": "s", "round": -1, "model": "m0"}),
        ("round", {"start": "s", "round": 0, "model": "m2", "sites": {}, "left_out": {}}),
    ]
    lines.insert(place, ("shared", {"start": start_id, "round": -1, "model": "m1", "sites": ["a"]}))
    log = RunLog(tmp_path / RECORD_FILE, SERVER_SIDE, "server", "run")
    for kind, details in lines:
        log.append(kind, **details)
    with pytest.raises(DataError, match="tells of round 0, which does not follow the line before it"):
        server_starts(read_record(tmp_path / RECORD_FILE))


@pytest.mark.parametrize("arguments", [{"private": True}, {"sites": ["a"]}, {"from_round": 1}])
def test_arrays_that_come_with_updates_are_refused_beside_arrays_that_a_site_keeps(monkeypatch, arguments):
    """SCAFFOLD's control variates would tell how private arrays change, and drift where a site does not train."""
    plan = parse_plan(declare(monkeypatch, **arguments))
    with pytest.raises(ConfigurationError, match=r"network\.parts is \['affine'\].* with ControlVariates"):
        WeightedModel(FedAvg(), shared_arrays=ControlVariates()).check_plan(plan)
