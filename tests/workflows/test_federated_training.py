"""The loop's decisions, with answers handed to it directly; whole runs are in tests/e2e."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.widgets.info_collector import GroupInfoCollector, InfoCollector

from fedseg.aggregators.dos import DOS
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.fedcostwavg import FedCostWAvg
from fedseg.aggregators.fedpidavg import FedPIDAvg
from fedseg.aggregators.krum import Krum
from fedseg.aggregators.robust import GeometricMedian
from fedseg.aggregators.server_optimizers import FedAdam
from fedseg.aggregators.similarity import SimAgg
from fedseg.contract.protocol import TOTALS
from fedseg.contract.report import META_KEY, SiteReport
from fedseg.errors import AbortedError, ConfigurationError, FedsegError, RefusalError
from fedseg.tasks.objective import objective_of
from fedseg.tasks.task import parse_task
from fedseg.workflows.federated_training import FederatedTraining
from fedseg.workflows.run.checkpoint import CheckpointError
from fedseg.workflows.run.record import PROGRESS_FILE, RESULTS_FILE
from fedseg.workflows.run.scores import readable
from fedseg.workflows.selection import DropSlow, LargestSites, PoissonBySize, RandomSites
from scripted_sites import accepted, start, train
from tiny import TASK


def scripted(folder, script, **arguments):
    """A run with sites that answer as a script says."""
    workflow = FederatedTraining(**{"num_rounds": 3, "aggregator": FedAvg(), "run_id": "run", **arguments})
    return start(workflow, script, folder)


def update(model, value=0.5, dice=0.6, samples=2):
    report = SiteReport(samples, 1, 0.9, 0.8, {"inner": dice, "whole": dice, "mean": dice}, 2)
    arrays = {name: np.full_like(w, value) for name, w in model.params.items()}
    return FLModel(params_type=ParamsType.DIFF, params=arrays, meta=report.to_meta())


def good(task, site, model):
    return accepted() if task == "prepare" else update(model)


def test_all_good_sites_move_the_model_and_nothing_is_noted(tmp_path):
    loop = scripted(tmp_path, good)
    before = {name: value.copy() for name, value in loop.state.model.weights.items()}
    train(loop)
    assert loop.state.events == []
    for name, value in loop.state.model.weights.items():
        np.testing.assert_allclose(value, before[name] + 1.5, rtol=1e-5)


def test_a_site_that_refuses_is_named_and_not_asked_again(tmp_path):
    def script(task, site, model):
        if site == "b":
            return RefusalError("version", "Made for another version.")
        return good(task, site, model)

    loop = scripted(tmp_path, script)
    train(loop)
    assert sorted(loop.state.facts) == ["a", "c"]
    assert loop.state.events == [{"round": -1, "site": "b", "what": "version: Made for another version."}]
    assert all("b" not in targets for task, targets in loop.state.sites.tasks if task == "train")


@pytest.mark.parametrize("kind", ["nan", "shape", "unknown", "report", "full", "type", "error", "silence"])
def test_a_bad_answer_is_left_out_named_and_asked_again(tmp_path, kind):
    def script(task, site, model):
        if task == "prepare" or site != "b" or loop.state.number != 1:
            return good(task, site, model)
        if kind == "silence":
            return None
        if kind == "error":
            return RefusalError("failed", "FLARE reports EXECUTION_EXCEPTION")
        answer = update(model, value=1e6)
        first = next(iter(answer.params))
        if kind == "nan":
            answer.params[first] = answer.params[first] * np.nan
        elif kind == "shape":
            answer.params[first] = answer.params[first][None]
        elif kind == "unknown":
            answer.params["surprise"] = np.zeros(1, np.float32)
        elif kind == "type":
            answer.params[first] = np.full(answer.params[first].shape, "x")
        elif kind == "report":
            answer.meta = {}
        elif kind == "full":
            answer.params_type = ParamsType.FULL
        return answer

    loop = scripted(tmp_path, script, round_timeout=5)
    before = {name: value.copy() for name, value in loop.state.model.weights.items()}
    train(loop)
    assert [(e["round"], e["site"]) for e in loop.state.events] == [(1, "b")]
    assert [sorted(entry["sites"]) for entry in loop.state.rounds] == [["a", "b", "c"], ["a", "c"], ["a", "b", "c"]]
    assert sum(loop.state.rounds[1]["weights"].values()) == pytest.approx(1)
    for name, value in loop.state.model.weights.items():
        np.testing.assert_allclose(value, before[name] + 1.5, rtol=1e-5)


def test_a_full_disk_at_the_server_leaves_the_site_out_of_mean_and_summary_alike(tmp_path, monkeypatch):
    loop = scripted(tmp_path, good, keep_updates=True, num_rounds=1)
    keep = loop.state.record.update

    def update_record(number, name, arrays):
        if name == "b":
            raise OSError(28, "No space left on device")
        keep(number, name, arrays)

    monkeypatch.setattr(loop.state.record, "update", update_record)
    train(loop)
    assert sorted(loop.state.rounds[0]["weights"]) == sorted(loop.state.rounds[0]["sites"]) == ["a", "c"]
    assert "OSError" in loop.state.events[0]["what"]


def test_an_abort_ends_the_run_at_once(tmp_path):
    def script(task, site, model):
        if task == "train":
            loop.state.sites.aborted = True
            return None
        return good(task, site, model)

    loop = scripted(tmp_path, script)
    with pytest.raises(AbortedError, match="aborted"):
        train(loop)
    assert loop.state.events == []


def test_too_few_sites_end_the_job_with_their_reasons(tmp_path):
    def script(task, site, model):
        return RefusalError("data", f"No data at {site}.")

    with pytest.raises(FedsegError, match=r"0 site\(s\) accepted.*No data at a.*No data at c"):
        train(scripted(tmp_path, script))

    def later(task, site, model):
        return good(task, site, model) if task == "prepare" or site == "a" else None

    with pytest.raises(
        FedsegError, match=r"1 site\(s\) answered in round 1, but 2 must\. b: did not answer.*No round was finished\."
    ):
        train(scripted(tmp_path / "two", later, min_sites=2))

    def too_large(task, site, model):
        large = task == "train" and site != "a" and model.current_round == 1
        return RefusalError("policy", f"Too large for {site}.") if large else good(task, site, model)

    with pytest.raises(FedsegError, match=r"round 2, .*b: policy: Too large for b\.; c: .*The model after round 1"):
        train(scripted(tmp_path / "three", too_large, min_sites=2))


NONE = {"both": 0, "reference": 0, "prediction": 0}
SCORED = {"loss": 1.0, "cases": 2, "hd95": {}, "defined": {"inner": 2, "whole": 2}}
SCORED |= {"dice": {"inner": 0.4, "whole": 0.4, "mean": 0.4}, "empty": {"inner": NONE, "whole": NONE}}


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"loss": None}, True),
        ({"loss": float("nan")}, False),
        ({"loss": float("inf")}, False),
        ({"hd95": {"inner": float("nan"), "whole": 1.0}}, False),
        ({"dice": {"inner": float("nan"), "whole": 0.4, "mean": 0.4}}, False),
        ({"dice": {"inner": 0.4, "whole": 0.4}}, False),
        ({"personal": SCORED}, True),
        ({"personal": {**SCORED, "loss": float("inf")}}, False),
        ({"personal": {**SCORED, "cases": 3}}, False),
        ({"personal": {**SCORED, "dice": {"inner": 0.4, "whole": 0.4}}}, False),
        ({"personal": {}}, False),
        ({"personal": None}, False),
    ],
)
def test_scores_that_json_does_not_know_are_not_taken(change, good):
    part = {"split": "test", **SCORED, **change}
    assert readable({"final": part}, objective_of(parse_task(TASK))) is good


def test_the_best_model_is_the_one_with_the_best_validation_not_the_last(tmp_path):
    """Received Dice per round: 0.1 (initial), 0.8 (after round 0), 0.3 (after round 1); the last one scores 0.4."""
    received = {0: 0.1, 1: 0.8, 2: 0.3}

    def script(task, site, model):
        if task == "validate":
            part = {"split": "validation", "loss": 1.0, "cases": 2, "hd95": {}, "defined": {"inner": 2, "whole": 2}}
            none = {"both": 0, "reference": 0, "prediction": 0}
            part |= {"dice": {"inner": 0.4, "whole": 0.4, "mean": 0.4}, "empty": {"inner": none, "whole": none}}
            return FLModel(metrics={"final": part, "validation": part} if site != "c" else {"final": {"dice": 1}})
        return accepted() if task == "prepare" else update(model, dice=received[loop.state.number])

    loop = scripted(tmp_path, script)
    train(loop)
    loop.finish()
    results = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert results["best"]["round"] == 0
    assert results["final"]["mean_dice"] == pytest.approx(0.4)
    assert sorted(results["final"]["sites"]) == ["a", "b"], "scores that cannot be read are left out"
    assert {e["site"] for e in results["events"]} == {"c"}
    assert [task for task, _ in loop.state.sites.tasks].count("validate") == 2


def same(one, other):
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def seeded(task, site, model):
    """Updates that differ by site and round, and losses that a cost-weighted rule weighs by."""
    if task == "prepare":
        return accepted(training="abc".index(site) + 1)
    draw = np.random.default_rng([ord(site), model.current_round])
    cases = "abc".index(site) + 1
    report = SiteReport(cases, -(-cases // 2), float(draw.uniform(0.1, 1)), 0.8, {"mean": float(draw.uniform())}, 2)
    arrays = {name: draw.normal(0, 0.01, w.shape).astype(np.float32) for name, w in model.params.items()}
    return FLModel(params_type=ParamsType.DIFF, params=arrays, meta=report.to_meta())


RULES = {
    "FedCostWAvg": lambda: {"aggregator": FedCostWAvg()},
    "FedPIDAvg": lambda: {"aggregator": FedPIDAvg(), "selection": PoissonBySize()},
    "FedAdam": lambda: {"aggregator": FedAvg(), "server_optimizer": FedAdam()},
    "random sites": lambda: {"aggregator": FedAvg(), "selection": RandomSites(2)},
}


@pytest.mark.parametrize("build", RULES.values(), ids=RULES)
@pytest.mark.parametrize("stopped_after", [0, 2])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, build, stopped_after):
    whole = scripted(tmp_path / "whole", seeded, num_rounds=6, **build())
    train(whole)

    def dies(task, site, model):
        if task == "train" and model.current_round > stopped_after:
            raise AbortedError("stopped")
        return seeded(task, site, model)

    with pytest.raises(AbortedError):
        train(scripted(tmp_path / "stopped", dies, num_rounds=6, **build()))
    again = scripted(tmp_path / "stopped", seeded, num_rounds=6, resume=True, **build())
    train(again)
    same(again.state.model.weights, whole.state.model.weights)
    assert again.state.best_round == whole.state.best_round
    assert [entry["weights"] for entry in again.state.rounds] == [entry["weights"] for entry in whole.state.rounds]
    assert [entry["asked"] for entry in again.state.rounds] == [entry["asked"] for entry in whole.state.rounds]
    lineage = again.state.lineage
    assert len(set(lineage[: stopped_after + 1])) == 1
    assert lineage[-1] == again.state.start_id != lineage[0], "sites can tell the two starts apart"


def test_another_job_does_not_go_on_and_a_run_is_not_continued_by_accident(tmp_path):
    first = scripted(tmp_path, seeded, aggregator=FedCostWAvg())
    train(first)
    del first
    for arguments, said in (
        ({"aggregator": FedCostWAvg(0.25)}, "another rule"),
        ({"aggregator": FedCostWAvg(), "num_rounds": 4}, "another num_rounds"),
        ({"aggregator": FedCostWAvg(), "selection": RandomSites(1)}, "another selection"),
        ({"aggregator": FedCostWAvg(), "resume_round": 0}, "only after 2 and 3"),
    ):
        with pytest.raises(CheckpointError, match=said):
            scripted(tmp_path, seeded, resume=True, **arguments)
    with pytest.raises(CheckpointError, match=r"workflow.resume to true"):
        scripted(tmp_path, seeded, aggregator=FedCostWAvg())
    with pytest.raises(CheckpointError, match="no checkpoint of the run other"):
        scripted(tmp_path, seeded, run_id="other", resume=True)


def test_two_servers_do_not_work_on_one_run(tmp_path):
    first = scripted(tmp_path, good)
    with pytest.raises(CheckpointError, match="still going"):
        scripted(tmp_path, good)
    assert first.state.rounds == []


def test_patience_ends_the_run_and_says_so(tmp_path):
    received = [0.1, 0.6, 0.5, 0.4, 0.9]

    def script(task, site, model):
        return accepted() if task == "prepare" else update(model, dice=received[model.current_round])

    loop = scripted(tmp_path, script, num_rounds=5, patience=2)
    train(loop)
    assert len(loop.state.rounds) == 4
    assert loop.state.stopped == {"round": 3, "reason": "2 rounds brought no model better than 0.6000"}
    assert loop.state.best_round == 0


def test_a_round_asks_the_selected_sites_only_and_keeps_the_reasons(tmp_path):
    loop = scripted(tmp_path, seeded, selection=LargestSites(2))
    train(loop)
    assert {targets for task, targets in loop.state.sites.tasks if task == "train"} == {("b", "c")}
    for entry in loop.state.rounds:
        assert sorted(entry["weights"]) == ["b", "c"]
        assert entry["selection"]["a"] == "rank 3 by training cases, k = 2"


def test_the_best_model_is_judged_on_sites_that_scored_both(tmp_path):
    """a is hard (0.4), b and c are easy (0.8): without a the mean rises, but no model has become better."""

    def script(task, site, model):
        if task == "prepare":
            return accepted()
        if site == "a" and model.current_round == 2:
            return None
        return update(model, dice=(0.4 if site == "a" else 0.8) - 0.01 * model.current_round)

    loop = scripted(tmp_path, script, round_timeout=1)
    train(loop)
    assert loop.state.rounds[2]["val_dice"] > loop.state.rounds[1]["val_dice"]
    assert loop.state.best_round == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"training": "many"},
        {"training": 0},
        {"validation": -1},
        {"statistics": {"voxels": float("nan")}},
        {"test": None},
    ],
)
def test_a_site_whose_answer_to_prepare_cannot_be_read_is_named_and_left_out(tmp_path, changes):
    def script(task, site, model):
        return accepted(**changes) if (task, site) == ("prepare", "b") else good(task, site, model)

    loop = scripted(tmp_path, script)
    train(loop)
    assert sorted(loop.state.facts) == ["a", "c"]
    assert [(e["site"], e["round"]) for e in loop.state.events] == [("b", -1)]
    assert all(np.isfinite(value) for value in loop.state.totals.values())


def test_statistics_are_added_up_and_sent_to_every_site(tmp_path):
    seen = []

    def script(task, site, model):
        if task == "prepare":
            return accepted(statistics={"voxels": {"a": 1.0, "b": 10.0, "c": 100.0}[site]})
        seen.append(model.meta[TOTALS])
        return update(model)

    train(scripted(tmp_path, script, num_rounds=1))
    assert seen == [{"voxels": 111.0}] * 3


def test_what_sites_say_of_their_images_stands_in_the_results(tmp_path):
    def script(task, site, model):
        if task == "prepare" and site == "b":
            return accepted(phantoms=True)
        if task == "prepare" and site == "c":
            return accepted(phantoms=1.0)
        return good(task, site, model)

    train(loop := scripted(tmp_path, script, num_rounds=1))
    results = json.loads((loop.state.record.folder / "results.json").read_text())
    assert results["phantoms"] == ["b"], "c says something else than yes"
    assert set(results["cases"]) == {"a", "b", "c"}
    assert set(results["cases"]["a"]) == {"training", "validation", "test"}


def test_events_tell_whether_the_rounds_were_over(tmp_path):
    def script(task, site, model):
        return None if site == "b" and loop.state.number == 1 else good(task, site, model)

    loop = scripted(tmp_path, script, num_rounds=2)
    loop.state.note("b", "before")
    train(loop)
    loop.state.note("b", "after")
    assert [(e["round"], e.get("stage")) for e in loop.state.events] == [(-1, None), (1, None), (-1, "evaluation")]


def test_an_update_that_would_overflow_is_refused_by_name(tmp_path):
    def script(task, site, model):
        return good(task, site, model) if task == "prepare" or site != "b" else update(model, value=3.4e38)

    loop = scripted(tmp_path, script)
    train(loop)
    assert {e["site"] for e in loop.state.events} == {"b"}
    assert all(np.isfinite(value).all() for value in loop.state.model.weights.values())


@pytest.mark.parametrize(
    "lie",
    [{"num_samples": 10**9}, {"num_steps": 10**9}, {"val_cases": 10**9}, {"train_loss": -9e11}, {"val_loss": 9e11}],
)
def test_numbers_that_the_server_can_know_are_not_believed(tmp_path, lie):
    def script(task, site, model):
        answer = good(task, site, model)
        if task == "train" and site == "b":
            answer.meta[META_KEY] = {**answer.meta[META_KEY], **lie}
        return answer

    loop = scripted(tmp_path, script)
    train(loop)
    assert {e["site"] for e in loop.state.events} == {"b"}
    assert next(iter(lie)) in loop.state.events[0]["what"]
    assert all(sorted(entry["weights"]) == ["a", "c"] for entry in loop.state.rounds)


@pytest.mark.parametrize("rule", [FedAvg, DOS, GeometricMedian, SimAgg, Krum])
def test_a_value_that_only_a_wider_type_can_hold_ends_no_round(tmp_path, rule):
    def script(task, site, model):
        answer = good(task, site, model)
        if task == "train" and site == "b":
            answer.params = {name: np.full(value.shape, 1e300) for name, value in answer.params.items()}
        return answer

    loop = scripted(tmp_path, script, aggregator=rule())
    train(loop)
    assert {e["site"] for e in loop.state.events} == {"b"}
    assert all(np.isfinite(value).all() for value in loop.state.model.weights.values())


def test_rounds_on_other_sites_are_not_compared(tmp_path):
    for rule in ({"patience": 2}, {"target_dice": 0.9}):
        with pytest.raises(ConfigurationError, match=r"needs .* which RandomSites withholds"):
            FederatedTraining(3, FedAvg(), selection=RandomSites(1), **rule)


def test_a_job_with_a_privacy_limit_takes_no_update_that_is_silent_about_it(tmp_path):
    with pytest.raises(FedsegError, match=r"0 site\(s\) answered"):
        train(scripted(tmp_path, good, max_epsilon=1.0))


def test_a_late_site_joins_in_the_round_after_its_answer(tmp_path):
    def script(task, site, model):
        if task == "prepare" and site == "c" and loop.state.number < 0:
            return None
        if task == "train" and model.current_round == 1 and site == "a":
            loop.state.sites.wait(lambda: False)
        return good(task, site, model)

    loop = scripted(tmp_path, script, num_rounds=4, round_timeout=1)
    train(loop)
    assert loop.state.sites.tasks.count(("prepare", ("c",))) == 1, "invited once"
    assert [sorted(entry["sites"]) for entry in loop.state.rounds] == [
        ["a", "b"],
        ["a", "b"],
        ["a", "b", "c"],
        ["a", "b", "c"],
    ]


def test_a_silent_site_counts_as_slow(tmp_path):
    def script(task, site, model):
        return None if task == "train" and site == "c" else good(task, site, model)

    loop = scripted(tmp_path, script, selection=DropSlow(), num_rounds=3, round_timeout=1)
    train(loop)
    assert loop.state.facts["c"].seconds > 0


def test_progress_is_a_line_for_every_event(tmp_path):
    train(scripted(tmp_path, good, num_rounds=1))
    kinds = [json.loads(line)["event"] for line in (tmp_path / PROGRESS_FILE).read_text().splitlines()]
    assert kinds == ["prepare", *["accepted"] * 3, "round", *["update"] * 3, "round_done"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_rounds": 0}, "num_rounds"),
        ({"num_rounds": 1.5}, "num_rounds"),
        ({"num_rounds": 1, "min_sites": 0}, "min_sites"),
        ({"num_rounds": 1, "round_timeout": -1}, "round_timeout"),
        ({"num_rounds": 1, "site_silence": -1}, "site_silence"),
        ({"num_rounds": 1, "site_silence": 1.5}, "site_silence"),
        ({"num_rounds": 1, "site_silence": None}, "site_silence"),
        ({"num_rounds": 1, "aggregator": "fedavg"}, "aggregator"),
    ],
)
def test_wrong_arguments_are_refused_when_the_component_is_built(arguments, named):
    with pytest.raises(ConfigurationError, match=named):
        FederatedTraining(**{"aggregator": FedAvg(), **arguments})


def test_an_absent_site_is_named_once_not_asked_and_asked_again_when_it_is_back(tmp_path):
    def script(task, site, model):
        if task == "prepare":
            return accepted()
        if site == "b" and loop.state.number == 1:
            loop.state.sites.presence.ended("b")
            loop.state.sites.presence.pass_time(["b"], 25)
            return None
        if site == "c" and loop.state.number == 2:
            loop.state.sites.presence.heard("b")
        return update(model)

    loop = scripted(tmp_path, script, num_rounds=4)
    train(loop)
    assert [targets for task, targets in loop.state.sites.tasks if task == "train"] == [
        ("a", "b", "c"), ("a", "b", "c"), ("a", "c"), ("a", "b", "c"),
    ]  # fmt: skip
    (number, lost), (later, back) = [(e["round"], e["what"]) for e in loop.state.events]
    assert (number, later) == (1, 3)
    assert lost.startswith("did not answer the task train: its FLARE client is not connected")
    assert back == "is heard of again, and is asked again"
    assert [sorted(entry["sites"]) for entry in loop.state.rounds] == [
        ["a", "b", "c"],
        ["a", "c"],
        ["a", "c"],
        ["a", "b", "c"],
    ]


def test_when_all_sites_are_absent_the_round_fails_at_once(tmp_path):
    def script(task, site, model):
        if task == "train":
            loop.state.sites.presence.ended(site)
            return None
        return good(task, site, model)

    loop = scripted(tmp_path, script)
    with pytest.raises(FedsegError, match=r"0 site\(s\) answered in round 1, but 1 must"):
        train(loop)


def stats(loop):
    """What FLARE's show_stats would tell of the workflow, beside what FLARE itself tells under the same name."""
    workflow, collector, context = FederatedTraining(1, FedAvg()), GroupInfoCollector(), FLContext()
    workflow.started = loop
    collector.add_info(workflow.name, {"tasks": {"train": ["a"]}})
    context.set_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR, collector, private=True, sticky=False)
    workflow.handle_event(InfoCollector.EVENT_TYPE_GET_STATS, context)
    assert collector.info[workflow.name].pop("tasks") == {"train": ["a"]}
    return json.loads(json.dumps(collector.info[workflow.name]))


def test_who_asks_is_told_the_round_and_for_whom_the_server_waits(tmp_path):
    told = []

    def script(task, site, model):
        if site == "b" and task == "train" and loop.state.number == 1:
            loop.state.sites.presence.ended("c")
            loop.state.sites.presence.pass_time(["c"], 25)
        told.append((task, site, stats(loop)))
        return good(task, site, model)

    loop = scripted(tmp_path, script, num_rounds=2)
    train(loop)
    assert told[:2] == [
        ("prepare", "a", {"answered": [], "waiting": ["a", "b", "c"]}),
        ("prepare", "b", {"answered": ["a"], "waiting": ["b", "c"]}),
    ]
    assert told[3:8] == [
        ("train", "a", {"round": 0, "rounds": 2, "answered": [], "waiting": ["a", "b", "c"]}),
        ("train", "b", {"round": 0, "rounds": 2, "answered": ["a"], "waiting": ["b", "c"]}),
        ("train", "c", {"round": 0, "rounds": 2, "answered": ["a", "b"], "waiting": ["c"]}),
        ("train", "a", {"round": 1, "rounds": 2, "answered": [], "waiting": ["a", "b", "c"]}),
        ("train", "b", {"round": 1, "rounds": 2, "answered": ["a"], "waiting": ["b"]}),
    ]
    assert stats(loop) == {"answered": [], "waiting": []}


def test_other_events_add_nothing_and_a_missing_collector_harms_nothing(tmp_path):
    loop, collector, context = FederatedTraining(3, FedAvg()), GroupInfoCollector(), FLContext()
    loop.started = scripted(tmp_path, good)
    loop.handle_event(InfoCollector.EVENT_TYPE_GET_STATS, context)
    context.set_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR, collector, private=True, sticky=False)
    loop.handle_event("_start_run", context)
    assert collector.info == {}


def test_a_server_starts_no_job_whose_parts_at_the_sites_cannot_serve_its_rule(tmp_path):
    """The coordinator's check is asked again at the server, which reads the classes and builds none of them."""
    config = tmp_path / "app" / "config"
    config.mkdir(parents=True)
    workspace = SimpleNamespace(get_app_config_dir=lambda job: str(config))
    fl_ctx = SimpleNamespace(
        get_engine=lambda: SimpleNamespace(get_workspace=lambda: workspace), get_job_id=lambda: "job"
    )
    chain = [{"path": "fedseg.filters.noise.LaplaceNoise", "args": {"clip": "never built"}}]
    (config / "config_fed_client.json").write_text(json.dumps({"task_result_filters": [{"filters": chain}]}))
    with pytest.raises(ConfigurationError, match=r"FedCostWAvg needs .*, which LaplaceNoise withholds\."):
        FederatedTraining(2, FedCostWAvg()).load(None, None, fl_ctx)
