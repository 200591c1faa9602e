"""Buffered training over sites that answer as a script says, and in one process; whole runs are in tests/e2e."""

import copy
import gc
from pathlib import Path

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.control_variates import ControlVariates
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.robust import CoordinateMedian, GeometricMedian
from fedseg.aggregators.staleness import Staleness
from fedseg.contract.plan import parse_plan
from fedseg.contract.report import META_KEY, SiteReport
from fedseg.contract.round_settings import META_KEY as ROUND_SETTINGS
from fedseg.contract.round_settings import RoundSettings
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.jobs.job import read_job
from fedseg.provenance.audit import audit
from fedseg.provenance.reading import read_record
from fedseg.simulation.in_process import InProcessFederation, simulate_in_process
from fedseg.simulation.run_folder import prepare_output, prepare_resume
from fedseg.workflows.buffered_training import Buffered, BufferedTraining, BufferSettings, DiscountedModel
from fedseg.workflows.run.arrivals import Arrivals
from fedseg.workflows.run.record import RunRecord
from fedseg.workflows.run.run_model import RunPlace
from fedseg.workflows.run.settings import RunSettings
from fedseg.workflows.run.training_run import TrainingRun
from fedseg.workflows.selection import AllSites, DropSlow, LargestSites, PoissonBySize, SitesBySize
from scripted_sites import ScriptedSites, accepted, start, train
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
CASES = {"a": 1, "b": 2, "c": 5}


def update(message, value=1.0, samples=2, dice=0.5):
    report = SiteReport(samples, (samples + 1) // 2, 0.9, 0.8, {"mean": dice}, 2)
    arrays = {name: np.full_like(weight, value) for name, weight in message.params.items()}
    return FLModel(params_type=ParamsType.DIFF, params=arrays, meta=report.to_meta())


def answer(task, site, message):
    return accepted(training=CASES[site]) if task == "prepare" else update(message, samples=CASES[site])


def buffered(folder, script, **arguments):
    """A run of sites, or of a script."""
    given = {"num_rounds": 3, "aggregator": FedAvg(), "run_id": "run", "buffer": 2, **arguments}
    return start(BufferedTraining(**given), script, folder)


def moved(run, before):
    """By how much the one value of all weights of a run has moved, which every update moves alike."""
    steps = {float(np.round(np.ravel(value - before[name])[0], 5)) for name, value in run.state.model.weights.items()}
    (step,) = steps
    return step


def taking_part(run):
    return [sorted(entry["sites"]) for entry in run.state.rounds]


def test_the_weight_falls_with_staleness_as_computed_by_hand(tmp_path):
    values = {"a": 1.0, "b": 2.0, "c": 4.0}

    def script(task, site, message):
        if task == "prepare":
            return answer(task, site, message)
        return update(message, values[site], CASES[site])

    for exponent, factor in ((0.5, 2**-0.5), (2, 0.25), (0, 1.0)):
        run = buffered(tmp_path / str(exponent), script, num_rounds=2, exponent=exponent)
        before = copy.deepcopy(run.state.model.weights)
        train(run)
        # a and b fill round 0. In round 1 c comes first, with the model of round 0, and then a with that of round 1.
        assert taking_part(run) == [["a", "b"], ["a", "c"]]
        first, second = (1 * 1.0 + 2 * 2.0) / 3, (1 * 1.0 + 5 * 4.0 * factor) / 6
        assert moved(run, before) == pytest.approx(first + second, abs=2e-5)
        notes = [entry["notes"] for entry in run.state.rounds]
        assert [note["staleness"] for note in notes] == [{"a": 0, "b": 0}, {"a": 0, "c": 1}]
        assert [note["in_flight"] for note in notes] == [{"c": 0}, {"b": 1, "c": 1}]
        assert run.state.rounds[1]["weights"] == pytest.approx({"a": 1 / 6, "c": 5 / 6})
        assert run.state.rounds[1]["scales"] == {"c": pytest.approx(factor)}
        assert run.state.events == []


def test_a_site_that_never_answers_blocks_nobody(tmp_path):
    def script(task, site, message):
        return None if (task, site) == ("train", "b") else answer(task, site, message)

    run = train(buffered(tmp_path, script, num_rounds=4))
    assert taking_part(run) == [["a", "c"]] * 4
    assert [entry["notes"]["in_flight"] for entry in run.state.rounds] == [{"b": 0}] * 4
    run.protocol.finish(run.state)
    assert [site for task, sites in run.state.sites.tasks if task == "train" for site in sites].count("b") == 1


class Slow(ScriptedSites):
    """Site c answers what it was sent in round 0 in round 3."""

    def wait(self, enough, timeout=0):
        held = [each for each in self.posted if each[1] == "c" and self.run.state.number < 3]
        self.posted = [each for each in self.posted if each not in held]
        super().wait(enough, timeout)
        self.posted = held + self.posted


def slow(folder, **arguments):
    sites = Slow(answer)
    sites.run = buffered(folder, sites, num_rounds=5, **arguments)
    return train(sites.run)


def test_an_update_that_is_too_old_is_left_out_by_name_and_the_site_trains_on(tmp_path):
    run = slow(tmp_path, max_staleness=2)
    said = "update left out: it started from the model of round 1, 3 rounds ago; 2 are allowed"
    assert run.state.events == [{"round": 3, "site": "c", "what": said}]
    assert any("c" in entry["sites"] for entry in run.state.rounds[3:])
    run = slow(tmp_path / "any")
    assert run.state.events == []
    assert run.state.rounds[3]["notes"]["staleness"]["c"] == 3
    assert run.state.rounds[3]["scales"] == {"c": pytest.approx(0.5)}


def test_the_record_says_which_model_a_late_site_trained(tmp_path):
    slow(tmp_path)
    lines = list(read_record(tmp_path / "state" / "run" / "record.jsonl").of_kind("round"))
    assert lines[3]["sites"]["c"]["trained"] == 0
    assert "trained" not in lines[0]["sites"]["a"]


def test_scores_of_a_late_site_are_of_another_model_and_left_out(tmp_path):
    entry = slow(tmp_path).state.rounds[3]
    assert (entry["sites"]["c"]["val_dice"], entry["sites"]["c"]["val_loss"]) == ({}, None)
    assert entry["sites"]["a"]["val_dice"] == {"mean": 0.5}


def test_what_is_told_of_a_round_does_not_change_it(tmp_path):
    """Scores of late sites are left out when the round ends, whoever asks for its description and however often."""
    sites = Slow(answer)
    run = sites.run = buffered(tmp_path, sites, num_rounds=5)
    seen, model = [], run.state.model
    finish = model.finish_round
    model.finish_round = lambda: (finish(), seen.append({s: dict(r.val_scores) for s, r in model.reports.items()}))
    train(run)
    assert seen[3]["c"] == {}
    before = dict(model.reports)
    assert model.describe_round() == model.describe_round()
    assert model.reports == before


def test_the_steps_of_a_late_update_are_those_of_the_round_that_it_was_trained_in(tmp_path):
    class LongFirst(Buffered):
        def round_settings(self, number):
            return RoundSettings(local_epochs=3 if number == 0 else 1)

    def script(task, site, message):
        if task == "prepare":
            return answer(task, site, message)
        sent = update(message, samples=CASES[site])
        epochs = message.meta[ROUND_SETTINGS]["local_epochs"]
        sent.meta[META_KEY]["num_steps"] *= 1 if (site, wrong) == ("c", True) else epochs
        return sent

    for wrong in (False, True):
        sites = Slow(script)
        model = DiscountedModel(FedAvg(), settings=BufferSettings(buffer=2))
        run = TrainingRun(RunSettings(5, run_id="run"), model, LongFirst(model), AllSites(), sites, RunRecord(tmp_path))
        sites.run = run
        run.state.load(parse_plan(PLAN), RunPlace(tmp_path / str(wrong), tmp_path / "local"))
        train(run)
        late = [entry["notes"]["staleness"].get("c") for entry in run.state.rounds]
        assert (3 in late) is not wrong
        assert bool(run.state.events) is wrong


@pytest.mark.parametrize(("buffer", "known"), [(1, False), (2, True)])
def test_a_best_round_is_known_unless_one_site_fills_a_buffer(tmp_path, buffer, known):
    run = train(buffered(tmp_path, answer, num_rounds=6, buffer=buffer))
    assert (run.state.best_round is not None) is known


def test_a_site_trains_one_task_at_a_time_and_each_model_once(tmp_path):
    seen = []

    def script(task, site, message):
        if task == "train":
            seen.append((site, message.current_round))
        return answer(task, site, message)

    run = train(buffered(tmp_path, script, num_rounds=6, buffer=1))
    assert len(seen) == len(set(seen))
    for site in "abc":
        numbers = [number for name, number in seen if name == site]
        assert numbers == sorted(numbers)
    assert run.state.events == []


@pytest.mark.parametrize("kind", ["refusal", "nan"])
def test_a_bad_update_is_named_and_its_site_is_sent_the_model_of_the_next_round(tmp_path, kind):
    def script(task, site, message):
        if task == "train" and site == "a" and message.current_round == 0:
            return RefusalError("loss", "No.") if kind == "refusal" else update(message, np.nan, CASES[site])
        return answer(task, site, message)

    run = train(buffered(tmp_path, script))
    ((event),) = run.state.events
    assert (event["round"], event["site"]) == (0, "a")
    assert taking_part(run)[0] == ["b", "c"]
    assert "a" in taking_part(run)[1]


def test_a_site_that_dies_is_named_and_asked_again(tmp_path):
    def script(task, site, message):
        if (task, site, run.state.number) == ("train", "b", 0):
            sites.presence.limit, sites.presence._silence["b"] = 1, 2.0
            return None
        if (task, site, run.state.number) == ("train", "c", 1):
            sites.presence.heard("b")
        return answer(task, site, message)

    sites = ScriptedSites(script)
    run = buffered(tmp_path, sites)
    train(run)
    first, second = run.state.events
    assert (first["site"], first["round"]) == ("b", 0)
    assert "did not answer the task train: it was not heard of for 1 s" in first["what"]
    assert (second["site"], second["what"]) == ("b", "is heard of again, and is asked again")
    assert len(run.state.rounds) == 3
    assert "b" in {site for entry in run.state.rounds[1:] for site in entry["sites"]}


def test_a_resumed_run_says_what_was_lost_and_ends(tmp_path):
    stopped = buffered(tmp_path, answer, num_rounds=4)
    stopped.prepare()
    for number in range(2):
        stopped.state.record.round = number
        stopped.run_round()
        stopped.state.save_checkpoint()
    left = stopped.state.rounds[-1]["notes"]["in_flight"]
    assert left
    weights = copy.deepcopy(stopped.state.model.weights)
    del stopped
    gc.collect()
    run = buffered(tmp_path, answer, num_rounds=4, resume=True)
    for name, value in run.state.model.weights.items():
        np.testing.assert_array_equal(value, weights[name])
    train(run)
    assert len(run.state.rounds) == 4
    said = "was training the model of round {} when the run was stopped; that update is lost"
    assert [(e["site"], e["what"]) for e in run.state.events] == [(s, said.format(n + 1)) for s, n in left.items()]
    # All begin with the newest model.
    assert all(staleness == 0 for staleness in run.state.rounds[2]["notes"]["staleness"].values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"selection": DropSlow()}, r"workflow\.selection is 'DropSlow'.*No site waits for a slow one"),
        ({"selection": SitesBySize(1)}, r"workflow\.selection is 'SitesBySize'"),
        ({"selection": PoissonBySize()}, r"workflow\.selection is 'PoissonBySize'.*settings of another round"),
        ({"staleness": "linear"}, r"workflow\.staleness is 'linear'"),
        ({"hinge_slope": 0}, r"workflow\.hinge_slope is 0"),
        ({"target_dice": 0.5}, r"workflow\.target_dice"),
        ({"patience": 2}, r"workflow\.patience"),
        ({"max_epsilon": 2.0}, r"workflow\.max_epsilon"),
        ({"aggregator": CoordinateMedian()}, r"workflow\.aggregator is 'CoordinateMedian'"),
        ({"aggregator": GeometricMedian()}, r"workflow\.aggregator is 'GeometricMedian'"),
        ({"aggregator": Staleness()}, r"workflow\.aggregator is 'Staleness'"),
        ({"buffer": 0}, r"workflow\.buffer is 0"),
        ({"buffer": 1, "min_sites": 2}, r"workflow\.buffer is 1, but must be null, or at least min_sites \(2\)"),
        ({"exponent": -1}, r"workflow\.exponent is -1"),
        ({"max_staleness": -1}, r"workflow\.max_staleness is -1"),
    ],
)
def test_what_has_no_meaning_here_is_refused_by_name(arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        BufferedTraining(**{"num_rounds": 1, "aggregator": FedAvg(), **arguments})


def job_of(kind="fedbuff", **workflow):
    job = read_job(ROOT / "jobs" / f"hippocampus_{kind}")
    for key in ("task", "network", "training"):
        job.set(key, PLAN[key])
    for key, value in {"num_rounds": 3, **workflow}.items():
        job.set(f"workflow.{key}", value)
    return job


def test_jobs_that_cannot_be_buffered_are_refused_by_name():
    job = job_of(shared_arrays={"path": f"{ControlVariates.__module__}.ControlVariates"})
    with pytest.raises(ConfigurationError, match=r"workflow\.shared_arrays is 'ControlVariates'"):
        job.check()
    path = "fedseg.workflows.buffered_training.BufferedTraining"
    for kind in ("he", "splitavg"):
        job = read_job(ROOT / "jobs" / f"hippocampus_{kind}")
        job.server["workflows"][0] = {"path": path, "args": job_of().workflow}
        with pytest.raises(ConfigurationError, match=r"BufferedTraining"):
            job.check()


def test_with_a_buffer_of_all_sites_it_is_federated_averaging_to_the_last_bit(tmp_path):
    data = make_sites(tmp_path, {"alpha": (4, 1), "beta": (2, 1), "gamma": (3, 1)})
    datalists = {site: read_datalist(data / site) for site in ("alpha", "beta", "gamma")}
    models, rounds = [], []
    for job in (job_of(buffer=3), job_of("fedavg")):
        federation = InProcessFederation(job, datalists)
        federation.run()
        assert federation.events == []
        models.append(federation.model.weights)
        rounds.append([(entry["val_dice"], entry["weights"]) for entry in federation.rounds])
    assert rounds[0] == rounds[1]
    for name, value in models[0].items():
        np.testing.assert_array_equal(value, models[1][name])


def test_the_records_of_server_and_sites_agree_on_late_updates(tmp_path):
    sites = {"alpha": (4, 1), "beta": (2, 1), "gamma": (3, 1)}
    data, out = make_sites(tmp_path / "data", sites), tmp_path / "run"
    prepare_output(out, False)
    simulate_in_process(job_of(), data, out, sorted(sites), lambda event: None)
    findings = audit([out])
    assert [finding.text for finding in findings if not finding.good] == []
    assert len([finding for finding in findings if "received are those" in finding.text]) == 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 2**-0.5, 3**-0.5, 0.5]),
        ({"staleness": "constant"}, [1, 1, 1, 1]),
        ({"staleness": "hinge", "hinge_after": 1, "hinge_slope": 2}, [1, 1, 1 / 3, 1 / 5]),
    ],
)
def test_the_functions_of_staleness_by_hand(settings, expected):
    assert [BufferSettings(**settings).factor(staleness) for staleness in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize(("staleness", "factor"), [("constant", None), ("hinge", 1 / 3)])
def test_the_job_chooses_the_function(tmp_path, staleness, factor):
    run = slow(tmp_path, staleness=staleness, hinge_after=2, hinge_slope=2)
    assert run.state.rounds[3]["notes"]["staleness"]["c"] == 3
    assert run.state.rounds[3]["scales"] == {"c": pytest.approx(factor or 1.0)}
    assert run.state.rounds[3]["rule"]["staleness"] == staleness


def test_only_the_sites_that_are_selected_are_sent_the_newest_model(tmp_path):
    run = train(buffered(tmp_path, answer, num_rounds=4, selection=LargestSites(2)))
    assert {site for task, sites in run.state.sites.tasks if task == "train" for site in sites} == {"b", "c"}
    assert taking_part(run) == [["b", "c"]] * 4


def test_a_slow_site_delays_nobody(tmp_path):
    """By events: between two answers of the slow site the others go through all the rounds that they can."""
    order = []

    def script(task, site, message):
        if task == "train":
            order.append((site, message.current_round))
        return answer(task, site, message)

    sites = Slow(script)
    sites.run = run = buffered(tmp_path, sites, num_rounds=5)
    train(run)
    late = order.index(("c", 0))
    assert [each for each in order[:late] if each[0] in "ab"] == [(s, n) for n in range(3) for s in "ab"]
    assert all(set(entry["sites"]) == {"a", "b"} for entry in run.state.rounds[:3])


class Killed(Exception):
    """The server's process ends here."""


@pytest.mark.parametrize("kind", ["in the buffer", "between checkpoint and clearing"])
def test_no_update_that_was_taken_is_lost_when_the_server_is_killed(tmp_path, kind):
    """The resumed run counts each update once, and asks no site again for one that it has."""
    values = {"a": 1.0, "b": 2.0, "c": 4.0}
    trained, kill = [], {"after": None}

    def script(task, site, message):
        if task == "prepare":
            return answer(task, site, message)
        trained.append((site, message.current_round))
        if kill["after"] == len(trained):
            raise Killed
        return update(message, values[site], CASES[site])

    def run_of(**more):
        return buffered(tmp_path / "run", script, num_rounds=2, buffer=3, exponent=0, **more)

    through = buffered(tmp_path / "through", script, num_rounds=2, buffer=3, exponent=0)
    train(through)
    trained.clear()
    run = run_of()
    run.prepare()
    run.state.record.round = 0
    run.run_round()
    run.state.save_checkpoint()
    run.state.record.round = 1
    if kind != "between checkpoint and clearing":
        # Of round 1 the server takes a and b, and ends before c has answered.
        kill["after"] = len(trained) + 3
        with pytest.raises(Killed):
            run.run_round()
        assert trained[-3:] == [("a", 1), ("b", 1), ("c", 1)]
        kill["after"] = None
    start, events = run.state.start_id, len(run.state.events)
    del run
    gc.collect()
    seen = len(trained)
    again = train(run_of(resume=True))
    again.protocol.finish(again.state)
    left = ["c"] if kind != "between checkpoint and clearing" else ["a", "b", "c"]
    assert trained[seen:] == [(site, 1) for site in left], "only what had not arrived is trained again"
    for name, value in through.state.model.weights.items():
        np.testing.assert_array_equal(again.state.model.weights[name], value)
    taken = set("abc") - set(left)
    assert again.state.rounds[1]["notes"].get("starts", {}) == dict.fromkeys(sorted(taken), start)
    lines = list(read_record(tmp_path / "run" / "state" / "run" / "record.jsonl").of_kind("round"))
    assert {site: part.get("start") for site, part in lines[1]["sites"].items()} == {
        site: start if site in taken else None for site in "abc"
    }
    assert len(again.state.events) == events
    assert list((tmp_path / "run" / "state" / "run" / "arrivals").glob("*")) == []


def test_a_site_whose_update_outlived_a_crash_is_told_the_start_that_it_had_trained_for(tmp_path):
    """Else it would not find the state that it kept of that round."""
    lineages, kill = [], [False]

    def script(task, site, message):
        if task == "train":
            lineages.append((site, message.current_round, message.meta["fedseg_lineage"]))
            if kill[0] and site == "c":
                raise Killed
        return answer(task, site, message)

    run = buffered(tmp_path, script, num_rounds=3, buffer=3)
    run.prepare()
    run.state.record.round = 0
    run.run_round()
    run.state.save_checkpoint()
    run.state.record.round, kill[0] = 1, True
    with pytest.raises(Killed):
        run.run_round()
    first = run.state.start_id
    del run
    gc.collect()
    kill[0] = False
    again = train(buffered(tmp_path, script, num_rounds=3, buffer=3, resume=True))
    second = again.state.start_id
    told = {site: lineage for site, number, lineage in lineages if number == 2}
    assert told == {"a": [first, first], "b": [first, first], "c": [first, second]}


def test_the_records_agree_after_a_crash_of_the_server(tmp_path, monkeypatch):
    """Real training in one process; the server ends when the second update of its second round has arrived."""
    sites = {"alpha": (4, 1), "beta": (2, 1), "gamma": (3, 1)}
    data, out = make_sites(tmp_path / "data", sites), tmp_path / "run"
    prepare_output(out, False)
    job = job_of(buffer=3, run_id="run")
    put, count = Arrivals.put, [0]

    def counted(journal, *given):
        arrival = put(journal, *given)
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt
        return arrival

    monkeypatch.setattr(Arrivals, "put", counted)
    with pytest.raises(KeyboardInterrupt):
        simulate_in_process(job, data, out, sorted(sites), lambda event: None)
    monkeypatch.setattr(Arrivals, "put", put)
    gc.collect()
    job = prepare_resume(out, job.name, None)
    result = simulate_in_process(job, data, out, sorted(sites), lambda event: None)
    assert result.results["events"] == []
    assert sorted(result.results["rounds"][1]["notes"]["starts"]) == ["alpha", "beta"]
    findings = audit([out])
    assert [finding.text for finding in findings if not finding.good] == []
