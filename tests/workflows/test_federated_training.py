"""The loop's decisions, with answers handed to it directly; whole runs are in tests/e2e."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import make_reply
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.fedavg import FedAvg
from fedseg.errors import AbortedError, ConfigurationError, FedsegError
from fedseg.executors.protocol import REASON, TEXT
from fedseg.training.plan import parse_plan
from fedseg.training.site_report import SiteReport
from fedseg.workflows.federated_training import FederatedTraining
from fedseg.workflows.record import PROGRESS_FILE, RESULTS_FILE, RunRecord
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
        return self.best


def update(model, value=0.5, dice=0.6, samples=2):
    report = SiteReport(samples, 1, 0.9, 0.8, {"inner": dice, "whole": dice, "mean": dice}, 2)
    arrays = {name: np.full_like(w, value) for name, w in model.params.items()}
    return FLModel(params_type=ParamsType.DIFF, params=arrays, meta=report.to_meta())


def good(task, site, model):
    return FLModel(metrics={"training": 2}) if task == "prepare" else update(model)


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
        Scripted(tmp_path, later, min_sites=2).run_rounds()


def test_the_best_model_is_the_one_with_the_best_validation_not_the_last(tmp_path):
    """Received Dice per round: 0.1 (initial), 0.8 (after round 0), 0.3 (after round 1); the last one scores 0.4."""
    received = {0: 0.1, 1: 0.8, 2: 0.3}

    def script(task, site, model):
        if task == "validate":
            part = {"split": "validation", "loss": 1.0, "cases": 2, "hd95": {}, "defined": {"inner": 2, "whole": 2}}
            none = {"both": 0, "reference": 0, "prediction": 0}
            part |= {"dice": {"inner": 0.4, "whole": 0.4, "mean": 0.4}, "empty": {"inner": none, "whole": none}}
            return FLModel(metrics={"final": part, "validation": part} if site != "c" else {"final": {"dice": 1}})
        return good(task, site, model) if task == "prepare" else update(model, dice=received[loop._round])

    loop = Scripted(tmp_path, script)
    loop.run_rounds()
    loop._finish()
    results = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert results["best"]["round"] == 0
    assert results["final"]["mean_dice"] == pytest.approx(0.4)
    assert sorted(results["final"]["sites"]) == ["a", "b"], "scores that cannot be read are left out"
    assert {e["site"] for e in results["events"]} == {"c"}
    assert [task for task, _ in loop.asked].count("validate") == 2


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
        ({"num_rounds": 1, "aggregator": "fedavg"}, "aggregator"),
    ],
)
def test_wrong_arguments_are_refused_when_the_component_is_built(arguments, named):
    with pytest.raises(ConfigurationError, match=named):
        FederatedTraining(**{"aggregator": FedAvg(), **arguments})
