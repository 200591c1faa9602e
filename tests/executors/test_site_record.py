"""A site's own record: what came, what left or why nothing did, and that nothing leaves without its line."""

import json
from functools import partial

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, make_reply
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from executors.test_training import Site
from fedseg.contract.protocol import BYTES_UP, MODEL_ID, MODEL_NAME, REASON, RUN_ID, SPLITS, START, TEXT
from fedseg.files.digest import folder_digest, model_digest
from fedseg.files.hash_chain import HashChain
from fedseg.messages.replies import refuse
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.provenance.reading import read_record
from fedseg.provenance.run_log import RecordError
from tiny import PLAN, make_sites

JOB = {"name": "tiny", "submitter_name": "ada@example.org", "submitter_org": "Example", "submitter_role": "lead"}


class Recording(Site):
    """A site through which tasks go as FLARE sends them: with its events before and after."""

    state = None

    def task(self, name, model, guard=None, filtered=True):
        """The result as it would leave; ``guard`` changes it after the filters, as a site's guard may."""
        context, executor = self.context, self.executor
        context.set_prop(FLContextKey.TASK_NAME, name, private=True, sticky=False)
        context.set_prop(FLContextKey.TASK_DATA, make_reply(ReturnCode.OK), private=True, sticky=False)
        executor.handle_event(EventType.BEFORE_TASK_DATA_FILTER, context)
        result = self.ask(name, model)
        if filtered:
            context.set_prop(FLContextKey.TASK_RESULT, result, private=True, sticky=False)
            executor.handle_event(EventType.AFTER_TASK_RESULT_FILTER, context)
        if guard is not None:
            guard(result)
        result.set_header(ReservedHeaderKey.TASK_ID, "task-1")
        executor.handle_event(EventType.BEFORE_SEND_TASK_RESULT, context)
        return result

    def message(self, weights=None, number=0, **meta):
        return FLModel(
            params_type=ParamsType.FULL,
            params=self.weights() if weights is None else weights,
            current_round=number,
            total_rounds=3,
            meta={RUN_ID: "run", START: "s1", **meta},
        )

    def question(self, digest=None):
        meta = {"fedseg_plan": digest or self.plan.digest, RUN_ID: "run"}
        return FLModel(metrics={"prepare": 1.0}, meta=meta)

    def lines(self, *kinds, path="run/record.jsonl"):
        record = read_record(self.state / path)
        return list(record.of_kind(*kinds)) if kinds else list(record.entries)


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEG_DATA", str(make_sites(tmp_path / "data", {"a": (3, 2)}, with_test=True)))
    monkeypatch.setenv("FEDSEG_STATE", str(tmp_path / "state"))
    found = Recording(tmp_path / "site", monkeypatch)
    found.state = tmp_path / "state" / "a"
    found.context.set_prop(FLContextKey.JOB_META, JOB, private=True)
    return found


def test_what_was_accepted_received_scored_and_sent(site):
    weights = site.weights()
    site.task("prepare", site.question())
    sent = site.task("train", site.message())
    score = DXO(DataKind.WEIGHTS, data=weights, meta={RUN_ID: "run", SPLITS: ["final"], MODEL_NAME: "last"})
    site.task("validate", score)
    assert [e["kind"] for e in site.lines()] == ["opened", "accepted", "sent", "received", "sent", "scored", "sent"]
    accepted = site.lines("accepted")[0]
    assert (accepted["job"], accepted["job_id"], accepted["plan"]) == ("tiny", "job-1", site.plan.digest)
    assert accepted["submitter"] == {"name": "ada@example.org", "organisation": "Example", "role": "lead"}
    assert accepted["cases"] == {"training": 3, "validation": 2, "test": 1}
    assert accepted["job_hash"] == folder_digest(site.folder / "app")
    received = site.lines("received")[0]
    assert (received["round"], received["start"], received["cases"]) == (0, "s1", 3)
    assert received["model"] == model_digest(weights)
    update = site.lines("sent")[1]
    assert (update["task"], update["round"], update["start"]) == ("train", 0, "s1")
    assert (update["content"], update["bytes"], update["epsilon"]) == ("WEIGHT_DIFF", sent.get_header(BYTES_UP), None)
    assert site.lines("scored")[0] | {"name": "last", "cases": {"test": 1}} == site.lines("scored")[0]


def test_shared_arrays_of_a_method_are_no_part_of_the_model(site):
    weights = site.weights()
    site.task("train", site.message({**weights, "shared:control": np.ones(3, np.float32)}))
    assert site.lines("received")[0]["model"] == model_digest(weights)


def test_the_servers_word_for_a_model_counts_only_where_it_came_encrypted(site, monkeypatch):
    weights = site.weights()
    site.task("train", site.message(**{MODEL_ID: "as the server likes"}))
    assert site.lines("received")[0]["model"] == model_digest(weights)
    monkeypatch.setattr("fedseg.executors.training.encrypts", lambda fl_ctx: True)
    site.task("train", site.message(number=1, **{MODEL_ID: "id-1"}))
    line = site.lines("received")[1]
    assert (line["model"], line["weights"]) == ("id-1", model_digest(weights))


def test_no_line_names_a_patient_or_a_file(site, tmp_path):
    site.task("prepare", site.question())
    site.task("train", site.message())
    next((tmp_path / "data" / "a" / "images").glob("*_image.nii.gz")).unlink()
    site.executor.session.trainer = None
    site.task("prepare", site.question())
    text = (site.state / "run" / "record.jsonl").read_text()
    for name in (str(tmp_path), "nii", "a-0", "a-1", "a-2"):
        assert name not in text


def test_a_refused_job_that_has_no_run_here_stands_beside_the_runs(site, tmp_path):
    site.task("prepare", site.question("0" * 64))
    line = site.lines("refused", path="_refused.jsonl")[0]
    assert (line["task"], line["reason"]) == ("prepare", "plan")
    assert "plan differs" in line["text"]
    assert (line["job"], line["job_id"], line["job_hash"]) == ("tiny", "job-1", folder_digest(site.folder / "app"))
    assert line["submitter"]["name"] == "ada@example.org", "who wanted it"
    assert not (site.state / "run").exists(), "no folder is made for it"
    assert site.task("prepare", site.question()).get_return_code() == ReturnCode.OK


def test_another_version_is_noted_too(tmp_path, monkeypatch, site):
    other = Recording(tmp_path / "other", monkeypatch, {**PLAN, "fedseg_version": "0.0.9"})
    other.state = site.state
    other.task("prepare", other.question())
    assert other.lines("refused", path="_refused.jsonl")[0]["reason"] == "version"


def test_a_site_without_a_profile_refuses_without_a_record(site, monkeypatch):
    monkeypatch.delenv("FEDSEG_DATA")
    reply = site.task("prepare", site.question())
    assert reply.get_header(REASON) == "data"
    assert not site.state.exists()


def test_a_round_that_is_refused_stands_in_the_run(site):
    weights = site.weights()
    del weights[next(iter(weights))]
    site.task("prepare", site.question())
    site.task("train", site.message(weights, 1))
    line = site.lines("refused")[0]
    assert (line["task"], line["round"], line["reason"]) == ("train", 1, "weights")
    assert "job" not in line, "which job it was stands in the line that accepted it"
    assert len(site.lines("sent")) == 1


def test_what_the_guard_kept_back_was_not_sent(site):
    site.task("train", site.message(), guard=lambda result: refuse(result, "guard", "Kept back."))
    assert site.lines("sent") == []
    assert (site.lines("refused")[0]["reason"], site.lines("refused")[0]["text"]) == ("guard", "Kept back.")


def test_a_result_that_a_filter_lost_was_not_sent(site):
    """FLARE answers an error of a filter by itself and asks nobody after it."""
    site.task("train", site.message(), filtered=False)
    assert site.lines("sent") == []
    assert site.lines("refused")[0]["reason"] == "filter"


def full_disk(monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedseg.files.hash_chain.os.write", full)


def test_without_a_line_in_the_record_nothing_is_trained(site, monkeypatch, tmp_path):
    site.task("prepare", site.question())
    full_disk(monkeypatch)
    reply = site.task("train", site.message())
    assert reply.get_header(REASON) == "state"
    assert "cannot be written (No space left on device)" in reply.get_header(TEXT)
    assert str(tmp_path) not in reply.get_header(TEXT)
    assert not list(site.state.rglob("round-*.pt"))


def test_without_a_line_in_the_record_nothing_leaves(site, monkeypatch):
    site.task("prepare", site.question())

    def failing(*arguments, **details):
        raise RecordError("The record cannot be written.")

    guard = partial(monkeypatch.setattr, "fedseg.executors.site_record.RunLog.append", failing)
    reply = site.task("train", site.message(), guard=lambda result: guard())
    assert reply.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert reply.get_header(REASON) == "state"
    assert set(reply) == {ReservedHeaderKey.HEADERS}
    assert reply.get_header(ReservedHeaderKey.TASK_ID) == "task-1", "FLARE still finds the task"
    with pytest.raises(ValueError, match="DXO"):
        from_shareable(reply)


def test_without_a_line_in_the_ledger_nothing_leaves(site, monkeypatch, tmp_path):
    """A plain update has no epsilon; that it left is entered all the same, and before it leaves."""
    site.task("prepare", site.question())
    reply = site.task("train", site.message(), guard=lambda result: full_disk(monkeypatch))
    assert (reply.get_header(REASON), set(reply)) == ("privacy", {ReservedHeaderKey.HEADERS})
    assert "privacy ledger cannot be read or written" in reply.get_header(TEXT)
    assert str(tmp_path) not in reply.get_header(TEXT)


def test_what_leaves_without_a_guarantee_is_entered_in_the_ledger(site):
    """And what does not leave is not: a refused job, a refused round, an acceptance, withheld scores."""
    ledger = Ledger(site.state / "ledger", simulated=True)
    site.task("prepare", site.question("another plan"))
    site.task("prepare", site.question())
    site.task("train", site.message({}))
    site.task("train", site.message(), guard=lambda result: refuse(result, "guard", "no"))
    assert [entry["what"] for entry in ledger.history(guaranteed=False)] == ["curves"], "they leave before the result"
    site.task("train", site.message(number=1))
    scored = FLModel(params_type=ParamsType.FULL, params=site.weights(), meta={RUN_ID: "run", SPLITS: ["test"]})
    site.task("validate", scored)
    told = ledger.history(guaranteed=False)
    assert [(entry["what"], entry["round"], entry["run_id"]) for entry in told] == [
        *(("curves", 0, "run"), ("curves", 1, "run"), ("update", 1, "run"), ("scores", -1, "run")),
    ]
    assert [entry["patient_count"] for entry in told] == [5, 5, 5, 1], "scores of the test split alone"
    assert ledger.history() == []


def test_an_unexpected_error_lets_nothing_out_either(site, monkeypatch):
    def explode(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr("fedseg.executors.site_record._content", explode)
    reply = site.task("train", site.message())
    assert reply.get_header(REASON) == "state"
    assert "ZeroDivisionError" in reply.get_header(TEXT)


def test_a_changed_record_lets_nothing_out(site):
    site.task("prepare", site.question())
    path = site.state / "run" / "record.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"training":3', b'"training":2'))
    reply = site.task("train", site.message())
    assert reply.get_header(REASON) == "state"
    assert "Line 2 was changed" in reply.get_header(TEXT)


def test_the_epsilon_that_was_reported_stands_there(site):
    def add(result):
        result["DXO"]["meta"]["fedseg_report"]["epsilon"] = 1.5
        result["DXO"]["meta"]["fedseg_privacy"] = [{"filter": "DPSGD", "noise_multiplier": 2.0}]

    site.task("train", site.message(), guard=add)
    line = site.lines("sent")[0]
    assert (line["epsilon"], line["privacy"][0]["filter"]) == (1.5, "DPSGD")


def test_the_record_is_a_hash_chain_like_the_ledger(site):
    site.task("prepare", site.question())
    assert len(HashChain(site.state / "run" / "record.jsonl").read()) == 3
    head = json.loads((site.state / "run" / "record.jsonl.head").read_text())
    assert head["count"] == 3
