"""What leaves a site, seen from the other end: every message that a real simulated server receives.

Three runs. In ``watched`` sites have policies, and therefore the guard; one has none of its own. In ``guaranteed`` no
site has a policy, and the job has a guarantee: what it holds back, the executor holds back by itself. In ``allowed``
the sites' allow-list has been opened for a class of FLARE that sends log messages on, and only the policy and the
guard are left.
"""

import json
import os
from math import prod
from pathlib import Path

import pytest
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.logging.constants import Channels
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer

from fedseg.contract.plan import parse_plan
from fedseg.contract.protocol import BYTES_DOWN, BYTES_UP, REASON, TEXT
from fedseg.contract.report import META_KEY, UNPROTECTED
from fedseg.contract.shapes import update_shapes
from fedseg.jobs import allowed_components as component_policy
from fedseg.jobs.job import read_job
from fedseg.simulation.run_folder import prepare_output
from fedseg.simulation.simulator import simulate
from fedseg.tasks.segmentation.objective import Segmentation
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
TAP, ASK = "wiretap.WireTap", "wiretap.AskForModels"
LOGS = "nvflare.app_common.logging.job_log_streamer.JobLogStreamer"
CONVERTER = "nvflare.app_common.widgets.convert_to_fed_event.ConvertToFedEvent"
NOISE = {"path": "fedseg.filters.noise.GaussianNoise", "args": {"clip": 1.0, "noise_multiplier": 5.0}}
# (channel, topic) of FLARE's messages from a site's job process to the server; docs/explanation/channels.md says what
# each of them carries.
INVENTORY = {
    ("server_command", "get_task"),
    ("server_command", "submit_update"),
    ("aux_communication", "__sync_runner__"),
    ("aux_communication", "__task_check__"),
    ("aux_communication", "__job_heartbeat__"),
    ("aux_communication", "fed.event"),
    ("return_only", "aux_communication:fedseg.split"),
    ("download_service__", "download_service__download"),
    ("return_only", "download_service__:download_service__download"),
    ("sm__STREAM", "sm__ACK"),
    ("cellnet.channel", "bye"),
}
FLARES = ["rc", "content_type", "cookie_jar", "task_name", "task_id", "workflow", "audit_event_id", "msg_root_id"]
HEADERS = {f"__{name}__" for name in (*FLARES, "peer_ctx", "peer_props")} | {"start_round", "current_round"}
HEADERS |= {REASON, TEXT, BYTES_UP, BYTES_DOWN}
PUBLIC = {"__run_num__", "__identity_name__", "__fqsn__", "__is_leaf__", "__client_name__", "__current_job_id__"}


def run(folder, job_name, sites, policies, change, allowed=(LOGS,)):
    """Simulate two rounds of a job, and return the messages that came and the log of all processes."""
    make_sites(folder / "data", dict.fromkeys(sites, (2, 1)))
    for site, policy in policies.items():
        (folder / "data" / site / "policy.json").write_text(json.dumps(policy))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(component_policy, "FLARE_CLASSES", (*component_policy.FLARE_CLASSES, TAP, ASK, *allowed))
        patch.setattr("fedseg.simulation.simulator.PATIENCE", 20.0)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        job = read_job(ROOT / "jobs" / job_name)
        for key in ("task", "network", "training"):
            job.set(key, PLAN[key])
        job.set("workflow.num_rounds", 2)
        job.check()
        job.server.setdefault("components", []).append(
            {"id": "tap", "path": TAP, "args": {"file": str(folder / "wire.jsonl")}}
        )
        job.server["workflows"].append({"id": "ask", "path": ASK, "args": {}})
        change(job)
        prepare_output(folder / "run", False)
        simulate(job, folder / "data", folder / "run", list(sites), lambda event: None)
    messages = [json.loads(line) for line in (folder / "wire.jsonl").read_text("utf-8").splitlines()]
    return [m for m in messages if m["site"] in sites], (folder / "run" / "simulator.log").read_text("utf-8"), folder


def ask_for_log_events(job):
    """The job asks FLARE to send what it logs, too."""
    arguments = {"events_to_convert": ["_error_log_available"]}
    job.client.setdefault("components", []).append({"id": "converter", "path": CONVERTER, "args": arguments})


def add_noise_and_log_streaming(job):
    ask_for_log_events(job)
    job.client["task_result_filters"] = [{"tasks": ["train"], "direction": "out", "filters": [NOISE]}]
    job.client.setdefault("components", []).append({"id": "logs", "path": LOGS, "args": {}})


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    sites = ("open", "quiet", "limited")
    # The arrays alone may leave, so that the site takes part; with the message around them they are too large.
    size = 4 * sum(prod(shape) for shape in update_shapes(parse_plan(PLAN)).values())
    policies = {"quiet": {"scores": False, "scalars": []}, "limited": {"events": True, "max_bytes": size}}
    return run(folder, "hippocampus_fedavg", sites, policies, lambda job: None)


@pytest.fixture(scope="module")
def guaranteed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guaranteed")
    return run(folder, "hippocampus_fedavg", ("one", "two"), {}, add_noise_and_log_streaming, allowed=(LOGS, CONVERTER))


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Split training with private labels; one site has a policy that lets features out, one has none."""
    folder, policies = tmp_path_factory.mktemp("split"), {"watched": {"features": True}}

    def keep_labels(job):
        job.set("training", {**PLAN["training"], "batch_dice": False})
        job.set("split.labels", "private")

    return run(folder, "hippocampus_splitavg", ("free", "watched"), policies, keep_labels)


@pytest.fixture(scope="module")
def allowed(tmp_path_factory):
    folder, policies = tmp_path_factory.mktemp("allowed"), {"strict": {"events": True}}
    return run(folder, "hippocampus_fedavg", ("open", "strict"), policies, ask_for_log_events, allowed=(CONVERTER,))


def results(recorded, site, task):
    """Decoded results of a task; a message is decoded twice, as a frame and as what it carries."""
    found = [m["payload"] for m in recorded[0] if m["site"] == site and m["topic"] == "submit_update"]
    decoded = [p for p in found if isinstance(p, dict)]
    return [p for p in decoded if p["__headers__"].get("__task_name__") == task]


def events(recorded, site):
    found = [m["payload"] for m in recorded[0] if m["site"] == site and m["topic"] == "fed.event"]
    return [p["__headers__"]["_event_type"] for p in found if isinstance(p, dict)]


@pytest.fixture(params=["watched", "guaranteed", "split"])
def either(request):
    return request.getfixturevalue(request.param)


def test_no_message_comes_by_a_way_that_is_not_in_the_inventory(either):
    ways = {(m["channel"], m["topic"]) for m in either[0]}
    assert ways <= INVENTORY
    assert ("server_command", "submit_update") in ways
    page = (ROOT / "docs" / "explanation" / "channels.md").read_text("utf-8")
    assert [topic for _, topic in INVENTORY if f"`{topic.split(':')[-1]}`" not in page] == []


def test_no_message_names_a_path_or_a_patient(either):
    messages, log, folder = either
    everything = json.dumps(messages)
    assert str(folder) in log, "the folder is what the sites log"
    assert str(folder) not in everything
    assert ".nii" not in everything
    for site in {m["site"] for m in messages}:
        assert f"{site}-0" not in everything, "the first patient of the site"


def test_headers_and_public_context_are_known_ones(either):
    answers = [m["payload"] for m in either[0] if m["topic"] == "submit_update" and isinstance(m["payload"], dict)]
    assert answers
    for answer in answers:
        assert set(answer["__headers__"]) <= HEADERS
        assert set(answer["__headers__"]["__peer_ctx__"]) == PUBLIC
    for message in either[0]:
        if message["topic"] in ("__sync_runner__", "__task_check__") and isinstance(message["payload"], dict):
            assert set(message["payload"]) == {"__headers__"}, "no content"


def test_the_answer_to_prepare_is_counts(either):
    for site in {m["site"] for m in either[0]}:
        (answer,) = results(either, site, "prepare")
        assert answer["DXO"]["data"] == {"training": 2, "validation": 1, "test": 0}
        assert answer["DXO"]["meta"] == {}


def test_a_site_without_a_policy_tells_its_report_and_its_scores(watched):
    first, second = results(watched, "open", "train")
    for answer in (first, second):
        assert set(answer) == {"__headers__", "DXO"}
        assert set(answer["DXO"]["meta"]) == {META_KEY, "NUM_STEPS_CURRENT_ROUND"}
        assert answer["DXO"]["meta"][META_KEY]["train_loss"] > 0
    (scores,) = results(watched, "open", "validate")
    final = scores["DXO"]["data"]["final"]
    names = {score.name for score in Segmentation.scores}
    assert set(final) == {"split", "cases", "loss", "defined", "scored", "empty", "intervals"} | names
    assert not any(isinstance(value, list) for value in final.values()), "no single cases"
    bounds = [each for part in final["intervals"].values() for each in part.values()]
    assert bounds
    assert not any(bounds), "an interval over one case would be that case"
    assert set(events(watched, "open")) == {"fed.analytix_log_stats"}


def test_scalars_and_scores_that_a_policy_withholds_do_not_arrive(watched):
    for answer in results(watched, "quiet", "train"):
        report = answer["DXO"]["meta"][META_KEY]
        told = {name for name, value in report.items() if value not in (None, {}, 0.0)}
        assert told == {"num_samples", "num_steps", "val_cases"}
    (scores,) = results(watched, "quiet", "validate")
    assert scores["DXO"]["data"] == {"final": {"split": "validation", "cases": 1, "withheld": True}}


def test_curves_leave_only_where_the_policy_lets_them(watched):
    assert events(watched, "quiet") == []
    assert set(events(watched, "limited")) == {"fed.analytix_log_stats"}


def test_what_the_guard_stops_arrives_as_an_empty_error(watched):
    for answer in results(watched, "limited", "train"):
        assert set(answer) == {"__headers__"}
        assert answer["__headers__"]["__rc__"] == "TASK_RESULT_FILTER_ERROR"
        assert answer["__headers__"][REASON] == "policy"
        assert "rule max_bytes" in answer["__headers__"][TEXT]


def test_the_allow_list_keeps_out_a_job_that_would_send_flares_own_log_messages(tmp_path):
    """Asked as FLARE asks before it builds a component."""
    for folder in ("startup", "local"):
        (tmp_path / folder).mkdir()
    (tmp_path / "local" / "resources.json").write_text(json.dumps(component_policy.site_resources()))
    workspace, authorizer = Workspace(str(tmp_path)), ComponentPathAuthorizer()
    for path in component_policy.allowed_classes():
        authorizer.authorize_component_config({"path": path}, workspace=workspace)
    with pytest.raises(UnsafeComponentError, match=r"ConvertToFedEvent.* is not in allow_list"):
        authorizer.authorize_component_config({"path": CONVERTER}, workspace=workspace)


def test_a_policy_refuses_the_class_even_where_the_allow_list_has_been_opened(allowed):
    (answer,) = results(allowed, "strict", "prepare")
    assert "rule components: the job brings ConvertToFedEvent" in answer["__headers__"][TEXT]
    assert results(allowed, "strict", "train") == []


def test_with_the_allow_list_opened_the_guard_stops_flares_own_log_messages(allowed, guaranteed):
    """The tap makes FLARE log one error at each site."""
    assert set(events(allowed, "open")) == {"fed.analytix_log_stats"}
    assert events(allowed, "strict") == []
    assert "fed._error_log_available" in events(guaranteed, "one"), "where there is no guard they leave"


def test_in_a_job_with_a_guarantee_nothing_leaves_that_it_does_not_cover(guaranteed):
    for site in ("one", "two"):
        assert "fed.analytix_log_stats" not in events(guaranteed, site)
        for answer in results(guaranteed, site, "train"):
            report = answer["DXO"]["meta"][META_KEY]
            told = {name for name, value in report.items() if value not in (None, {}, 0.0)}
            assert told == set(UNPROTECTED) - {"fresh_state"}, "whose 0 says that nothing was lost"
        (scores,) = results(guaranteed, site, "validate")
        assert scores["DXO"]["data"]["final"] == {"split": "validation", "cases": 1, "withheld": True}
        (model,) = results(guaranteed, site, "submit_model")
        assert set(model) == {"__headers__"}
        assert model["__headers__"][REASON] == "privacy"


def test_a_sites_own_model_leaves_only_if_nothing_forbids_it(watched):
    (model,) = results(watched, "open", "submit_model")
    assert model["DXO"]["kind"] == "WEIGHTS"
    (model,) = results(watched, "quiet", "submit_model")
    assert set(model) == {"__headers__"}
    assert "rule submit_model" in model["__headers__"][TEXT]


def test_in_split_training_features_and_gradients_leave_and_no_label(split):
    for site in ("free", "watched"):
        sent = [m["payload"] for m in split[0] if m["site"] == site and isinstance(m["payload"], dict)]
        calls = [payload["fedseg_split"] for payload in sent if "fedseg_split" in payload]
        assert {kind for call in calls for kind in call["arrays"]} == {"features", "at_predictions"}
        arrays = [value for call in calls for group in call["arrays"].values() for value in group.values()]
        assert {kind for kind, _, _ in arrays} == {"float16", "float64"}, "values, and a scale for each tensor"
        assert {tuple(shape) for kind, shape, _ in arrays if kind == "float64"} == {()}
        answers = [results(split, site, "train"), results(split, site, "submit_model")]
        assert all("data" not in answer.get("DXO", {}) or not answer["DXO"]["data"] for answer in answers[0])
    assert results(split, "free", "submit_model")[0]["DXO"]["kind"] == "WEIGHTS"
    assert "rule submit_model" in results(split, "watched", "submit_model")[0]["__headers__"][TEXT]


def test_no_log_is_streamed_even_if_a_job_asks_for_it(guaranteed):
    messages, log, _ = guaranteed
    assert "JobLogStreamer disabled" in log
    assert Channels.LOG_STREAMING_CHANNEL not in {m["channel"] for m in messages}
