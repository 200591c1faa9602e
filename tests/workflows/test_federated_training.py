"""The loop's decisions, with answers handed to it directly; whole runs are in tests/e2e."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import make_reply
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
from fedseg.contract.plan import parse_plan
from fedseg.contract.protocol import REASON, TEXT, TOTALS
from fedseg.contract.report import META_KEY, SiteReport
from fedseg.errors import AbortedError, ConfigurationError, FedsegError
from fedseg.workflows.federated_training import FederatedTraining
from fedseg.workflows.run.checkpoint import CheckpointError
from fedseg.workflows.run.record import PROGRESS_FILE, RESULTS_FILE, RunRecord
from fedseg.workflows.run.scores import readable
from fedseg.workflows.selection import DropSlow, LargestSites, PoissonBySize, RandomSites
from tiny import PLAN


class Scripted(FederatedTraining):
    """The loop with sites that answer as a script says: a function of (task, site, model)."""

    def __init__(self, folder, script, **arguments):
        super().__init__(**{"num_rounds": 3, "aggregator": FedAvg(), "run_id": "run", **arguments})
        self.script, self.asked = script, []
        self.record = RunRecord(folder)
        self.open(parse_plan(PLAN), folder / "state")
        self.engine = SimpleNamespace(get_clients=lambda: [SimpleNamespace(name=s) for s in "abc"])
        self.abort_signal = SimpleNamespace(triggered=False)
        self._bytes = dict.fromkeys("abc", (0, 0))

    def set_fl_context(self, data):
        pass

    def warning(self, *text):
        pass

    def _prepare_task(self, data, task_name, timeout, callback):
        return SimpleNamespace(model=data, name=task_name, callback=callback)

    def broadcast_and_wait(self, task, targets, **options):
        self.asked.append((task.name, tuple(targets)))
        for site in targets:
            answer = self.script(task.name, site, task.model)
            if answer is None:
                continue
            if isinstance(answer, FLModel):
                self._heard.add(site)
                answer.meta = {**(answer.meta or {}), "client_name": site}
                task.callback(answer)
            else:
                self._accept_train_result(site, answer, None)

    def run_rounds(self):
        self._prepare()
        self._run_rounds()


def update(model, value=0.5, dice=0.6, samples=2):
    report = SiteReport(samples, 1, 0.9, 0.8, {"inner": dice, "whole": dice, "mean": dice}, 2)
    arrays = {name: np.full_like(w, value) for name, w in model.params.items()}
    return FLModel(params_type=ParamsType.DIFF, params=arrays, meta=report.to_meta())


def accepted(**changes):
    return FLModel(metrics={"training": 2, "validation": 2, "test": 0, **changes})


def good(task, site, model):
    return accepted() if task == "prepare" else update(model)


def test_all_good_sites_move_the_model_and_nothing_is_noted(tmp_path):
    loop = Scripted(tmp_path, good)
    before = {name: value.copy() for name, value in loop.model.weights.items()}
    loop.run_rounds()
    assert loop.events == []
    for name, value in loop.model.weights.items():
        np.testing.assert_allclose(value, before[name] + 1.5, rtol=1e-5)


def test_a_site_that_refuses_is_named_and_not_asked_again(tmp_path):
    def script(task, site, model):
        if site == "b":
            return make_reply(ReturnCode.BAD_REQUEST_DATA, {REASON: "version", TEXT: "Made for another version."})
        return good(task, site, model)

    loop = Scripted(tmp_path, script)
    loop.run_rounds()
    assert sorted(loop.sites) == ["a", "c"]
    assert loop.events == [{"round": -1, "site": "b", "what": "version: Made for another version."}]
    assert all("b" not in targets for task, targets in loop.asked if task == "train")


@pytest.mark.parametrize("kind", ["nan", "shape", "unknown", "report", "full", "type", "error", "silence"])
def test_a_bad_answer_is_left_out_named_and_asked_again(tmp_path, kind):
    def script(task, site, model):
        if task == "prepare" or site != "b" or loop._round != 1:
            return good(task, site, model)
        if kind == "silence":
            return None
        if kind == "error":
            return make_reply(ReturnCode.EXECUTION_EXCEPTION)
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

    loop = Scripted(tmp_path, script, round_timeout=5)
    before = {name: value.copy() for name, value in loop.model.weights.items()}
    loop.run_rounds()
    assert [(e["round"], e["site"]) for e in loop.events] == [(1, "b")]
    assert [sorted(entry["sites"]) for entry in loop.rounds] == [["a", "b", "c"], ["a", "c"], ["a", "b", "c"]]
    assert sum(loop.rounds[1]["weights"].values()) == pytest.approx(1)
    for name, value in loop.model.weights.items():
        np.testing.assert_allclose(value, before[name] + 1.5, rtol=1e-5)


def test_a_full_disk_at_the_server_leaves_the_site_out_of_mean_and_summary_alike(tmp_path, monkeypatch):
    loop = Scripted(tmp_path, good, keep_updates=True, num_rounds=1)
    keep = loop.record.update

    def update_record(number, name, arrays):
        if name == "b":
            raise OSError(28, "No space left on device")
        keep(number, name, arrays)

    monkeypatch.setattr(loop.record, "update", update_record)
    loop.run_rounds()
    assert sorted(loop.rounds[0]["weights"]) == sorted(loop.rounds[0]["sites"]) == ["a", "c"]
    assert "OSError" in loop.events[0]["what"]


def test_an_abort_ends_the_run_at_once(tmp_path):
    def script(task, site, model):
        if task == "train":
            loop.abort_signal.triggered = True
            return None
        return good(task, site, model)

    loop = Scripted(tmp_path, script)
    with pytest.raises(AbortedError, match="aborted"):
        loop.run_rounds()
    assert loop.events == []


def test_too_few_sites_end_the_job_with_their_reasons(tmp_path):
    def script(task, site, model):
        return make_reply(ReturnCode.BAD_REQUEST_DATA, {REASON: "data", TEXT: f"No data at {site}."})

    with pytest.raises(FedsegError, match=r"0 site\(s\) accepted.*No data at a.*No data at c"):
        Scripted(tmp_path, script).run_rounds()

    def later(task, site, model):
        return good(task, site, model) if task == "prepare" or site == "a" else None

    with pytest.raises(FedsegError, match=r"1 site\(s\) answered in round 0, but 2 must"):
        Scripted(tmp_path / "two", later, min_sites=2).run_rounds()


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"loss": None}, True),
        ({"loss": float("nan")}, False),
        ({"loss": float("inf")}, False),
        ({"hd95": {"inner": float("nan"), "whole": 1.0}}, False),
        ({"dice": {"inner": float("nan"), "whole": 0.4, "mean": 0.4}}, False),
    ],
)
def test_scores_that_json_does_not_know_are_not_taken(change, good):
    none = {"both": 0, "reference": 0, "prediction": 0}
    part = {"split": "test", "loss": 1.0, "cases": 2, "hd95": {}, "defined": {"inner": 2, "whole": 2}}
    part |= {"dice": {"inner": 0.4, "whole": 0.4, "mean": 0.4}, "empty": {"inner": none, "whole": none}, **change}
    assert readable({"final": part}) is good


def test_the_best_model_is_the_one_with_the_best_validation_not_the_last(tmp_path):
    """Received Dice per round: 0.1 (initial), 0.8 (after round 0), 0.3 (after round 1); the last one scores 0.4."""
    received = {0: 0.1, 1: 0.8, 2: 0.3}

    def script(task, site, model):
        if task == "validate":
            part = {"split": "validation", "loss": 1.0, "cases": 2, "hd95": {}, "defined": {"inner": 2, "whole": 2}}
            none = {"both": 0, "reference": 0, "prediction": 0}
            part |= {"dice": {"inner": 0.4, "whole": 0.4, "mean": 0.4}, "empty": {"inner": none, "whole": none}}
            return FLModel(metrics={"final": part, "validation": part} if site != "c" else {"final": {"dice": 1}})
        return accepted() if task == "prepare" else update(model, dice=received[loop._round])

    loop = Scripted(tmp_path, script)
    loop.run_rounds()
    loop._finish()
    results = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert results["best"]["round"] == 0
    assert results["final"]["mean_dice"] == pytest.approx(0.4)
    assert sorted(results["final"]["sites"]) == ["a", "b"], "scores that cannot be read are left out"
    assert {e["site"] for e in results["events"]} == {"c"}
    assert [task for task, _ in loop.asked].count("validate") == 2


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
    whole = Scripted(tmp_path / "whole", seeded, num_rounds=6, **build())
    whole.run_rounds()

    def dies(task, site, model):
        if task == "train" and model.current_round > stopped_after:
            raise AbortedError("stopped")
        return seeded(task, site, model)

    with pytest.raises(AbortedError):
        Scripted(tmp_path / "stopped", dies, num_rounds=6, **build()).run_rounds()
    again = Scripted(tmp_path / "stopped", seeded, num_rounds=6, resume=True, **build())
    again.run_rounds()
    same(again.model.weights, whole.model.weights)
    assert again.best_round == whole.best_round
    assert [entry["weights"] for entry in again.rounds] == [entry["weights"] for entry in whole.rounds]
    assert [entry["asked"] for entry in again.rounds] == [entry["asked"] for entry in whole.rounds]
    assert len(set(again.lineage[: stopped_after + 1])) == 1
    assert again.lineage[-1] == again.start_id != again.lineage[0], "sites can tell the two starts apart"


def test_another_job_does_not_go_on_and_a_run_is_not_continued_by_accident(tmp_path):
    first = Scripted(tmp_path, seeded, aggregator=FedCostWAvg())
    first.run_rounds()
    del first
    for arguments, said in (
        ({"aggregator": FedCostWAvg(0.25)}, "another rule"),
        ({"aggregator": FedCostWAvg(), "num_rounds": 4}, "another num_rounds"),
        ({"aggregator": FedCostWAvg(), "selection": RandomSites(1)}, "another selection"),
        ({"aggregator": FedCostWAvg(), "resume_round": 0}, r"only after \[1, 2\]"),
    ):
        with pytest.raises(CheckpointError, match=said):
            Scripted(tmp_path, seeded, resume=True, **arguments)
    with pytest.raises(CheckpointError, match=r"workflow.resume to true"):
        Scripted(tmp_path, seeded, aggregator=FedCostWAvg())
    with pytest.raises(CheckpointError, match="no checkpoint of the run other"):
        Scripted(tmp_path, seeded, run_id="other", resume=True)


def test_two_servers_do_not_work_on_one_run(tmp_path):
    first = Scripted(tmp_path, good)
    with pytest.raises(CheckpointError, match="still going"):
        Scripted(tmp_path, good)
    assert first.rounds == []


def test_patience_ends_the_run_and_says_so(tmp_path):
    received = [0.1, 0.6, 0.5, 0.4, 0.9]

    def script(task, site, model):
        return accepted() if task == "prepare" else update(model, dice=received[model.current_round])

    loop = Scripted(tmp_path, script, num_rounds=5, patience=2)
    loop.run_rounds()
    assert len(loop.rounds) == 4
    assert loop.stopped == {"round": 3, "reason": "2 rounds brought no model better than 0.6000"}
    assert loop.best_round == 0


def test_a_round_asks_the_selected_sites_only_and_keeps_the_reasons(tmp_path):
    loop = Scripted(tmp_path, seeded, selection=LargestSites(2))
    loop.run_rounds()
    assert {targets for task, targets in loop.asked if task == "train"} == {("b", "c")}
    for entry in loop.rounds:
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

    loop = Scripted(tmp_path, script, round_timeout=1)
    loop.run_rounds()
    assert loop.rounds[2]["val_dice"] > loop.rounds[1]["val_dice"]
    assert loop.best_round == 0


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

    loop = Scripted(tmp_path, script)
    loop.run_rounds()
    assert sorted(loop.sites) == ["a", "c"]
    assert [(e["site"], e["round"]) for e in loop.events] == [("b", -1)]
    assert all(np.isfinite(value) for value in loop.totals.values())


def test_statistics_are_added_up_and_sent_to_every_site(tmp_path):
    seen = []

    def script(task, site, model):
        if task == "prepare":
            return accepted(statistics={"voxels": {"a": 1.0, "b": 10.0, "c": 100.0}[site]})
        seen.append(model.meta[TOTALS])
        return update(model)

    Scripted(tmp_path, script, num_rounds=1).run_rounds()
    assert seen == [{"voxels": 111.0}] * 3


def test_an_update_that_would_overflow_is_refused_by_name(tmp_path):
    def script(task, site, model):
        return good(task, site, model) if task == "prepare" or site != "b" else update(model, value=3.4e38)

    loop = Scripted(tmp_path, script)
    loop.run_rounds()
    assert {e["site"] for e in loop.events} == {"b"}
    assert all(np.isfinite(value).all() for value in loop.model.weights.values())


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

    loop = Scripted(tmp_path, script)
    loop.run_rounds()
    assert {e["site"] for e in loop.events} == {"b"}
    assert next(iter(lie)) in loop.events[0]["what"]
    assert all(sorted(entry["weights"]) == ["a", "c"] for entry in loop.rounds)


@pytest.mark.parametrize("rule", [FedAvg, DOS, GeometricMedian, SimAgg, Krum])
def test_a_value_that_only_a_wider_type_can_hold_ends_no_round(tmp_path, rule):
    def script(task, site, model):
        answer = good(task, site, model)
        if task == "train" and site == "b":
            answer.params = {name: np.full(value.shape, 1e300) for name, value in answer.params.items()}
        return answer

    loop = Scripted(tmp_path, script, aggregator=rule())
    loop.run_rounds()
    assert {e["site"] for e in loop.events} == {"b"}
    assert all(np.isfinite(value).all() for value in loop.model.weights.values())


def test_rounds_on_other_sites_are_not_compared(tmp_path):
    for rule in ({"patience": 2}, {"target_dice": 0.9}):
        with pytest.raises(ConfigurationError, match="null with a selection"):
            FederatedTraining(3, FedAvg(), selection=RandomSites(1), **rule)


def test_a_job_with_a_privacy_limit_takes_no_update_that_is_silent_about_it(tmp_path):
    with pytest.raises(FedsegError, match=r"0 site\(s\) answered"):
        Scripted(tmp_path, good, max_epsilon=1.0).run_rounds()


def test_a_late_site_joins_in_the_round_after_its_answer(tmp_path):
    invited = []

    class Late(Scripted):
        def invite(self, model, site, take):
            invited.append((site, take))

    def script(task, site, model):
        if (task, site) == ("prepare", "c"):
            return None
        if task == "train" and model.current_round == 1 and site == "a":
            name, take = invited[0]
            answer = accepted()
            answer.meta = {"client_name": name}
            assert take(answer)
        return good(task, site, model)

    loop = Late(tmp_path, script, num_rounds=4, round_timeout=1)
    loop.run_rounds()
    assert [site for site, _ in invited] == ["c"], "invited once"
    assert [sorted(entry["sites"]) for entry in loop.rounds] == [
        ["a", "b"],
        ["a", "b"],
        ["a", "b", "c"],
        ["a", "b", "c"],
    ]


def test_a_silent_site_counts_as_slow(tmp_path):
    def script(task, site, model):
        return None if task == "train" and site == "c" else good(task, site, model)

    loop = Scripted(tmp_path, script, selection=DropSlow(), num_rounds=3, round_timeout=1)
    loop.run_rounds()
    assert loop.sites["c"].seconds > 0


def test_progress_is_a_line_for_every_event(tmp_path):
    Scripted(tmp_path, good, num_rounds=1).run_rounds()
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
        if site == "b" and loop._round == 1:
            loop.presence.ended("b")
            loop.presence.pass_time(["b"], 25)
            return None
        if site == "c" and loop._round == 2:
            loop.presence.heard("b")
        return update(model)

    loop = Scripted(tmp_path, script, num_rounds=4)
    loop.run_rounds()
    assert [targets for task, targets in loop.asked if task == "train"] == [
        ("a", "b", "c"), ("a", "b", "c"), ("a", "c"), ("a", "b", "c"),
    ]  # fmt: skip
    (number, lost), (later, back) = [(e["round"], e["what"]) for e in loop.events]
    assert (number, later) == (1, 3)
    assert lost.startswith("did not answer the task train: its FLARE client is not connected")
    assert back == "is heard of again, and is asked again"
    assert [sorted(entry["sites"]) for entry in loop.rounds] == [
        ["a", "b", "c"],
        ["a", "c"],
        ["a", "c"],
        ["a", "b", "c"],
    ]


def test_when_all_sites_are_absent_the_round_fails_at_once(tmp_path):
    def script(task, site, model):
        if task == "train":
            loop.presence.ended(site)
            return None
        return good(task, site, model)

    loop = Scripted(tmp_path, script)
    with pytest.raises(FedsegError, match=r"0 site\(s\) answered in round 0, but 1 must"):
        loop.run_rounds()


def stats(loop):
    """What FLARE's show_stats would tell of the workflow, beside what FLARE itself tells under the same name."""
    collector, context = GroupInfoCollector(), FLContext()
    collector.add_info(loop.name, {"tasks": {"train": ["a"]}})
    context.set_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR, collector, private=True, sticky=False)
    loop.handle_event(InfoCollector.EVENT_TYPE_GET_STATS, context)
    assert collector.info[loop.name].pop("tasks") == {"train": ["a"]}
    return json.loads(json.dumps(collector.info[loop.name]))


def test_who_asks_is_told_the_round_and_for_whom_the_server_waits(tmp_path):
    told = []

    def script(task, site, model):
        if site == "b" and task == "train" and loop._round == 1:
            loop.presence.ended("c")
            loop.presence.pass_time(["c"], 25)
        told.append((task, site, stats(loop)))
        return good(task, site, model)

    loop = Scripted(tmp_path, script, num_rounds=2)
    loop.run_rounds()
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
    loop, collector, context = Scripted(tmp_path, good), GroupInfoCollector(), FLContext()
    loop.handle_event(InfoCollector.EVENT_TYPE_GET_STATS, context)
    context.set_prop(InfoCollector.CTX_KEY_STATS_COLLECTOR, collector, private=True, sticky=False)
    loop.handle_event("_start_run", context)
    assert collector.info == {}
