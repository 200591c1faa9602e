"""Which site is visited when, how long it trains, and what a stopped run goes on with; also in one process."""

import gc
from pathlib import Path

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.contract.plan import parse_plan
from fedseg.contract.report import META_KEY, SiteReport
from fedseg.contract.round_settings import META_KEY as ROUND_SETTINGS
from fedseg.contract.round_settings import RoundSettings
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError, FedsegError, RefusalError
from fedseg.jobs.job import read_job
from fedseg.networks.weights import apply_difference, get_weights
from fedseg.provenance.reading import read_record
from fedseg.simulation.in_process import InProcessFederation
from fedseg.tasks.objective import MEAN
from fedseg.training.trainer import SiteTrainer
from fedseg.workflows.incremental_training import IncrementalTraining
from in_process_runs import tiny_job
from scripted_sites import ScriptedSites, accepted, start, train
from tiny import PLAN, make_sites

JOBS = Path(__file__).parents[2] / "jobs"
SIZES = {"a": 1, "b": 4, "c": 2}


def incremental(folder, script, **arguments):
    return start(IncrementalTraining(**{"num_rounds": 9, "run_id": "run", **arguments}), script, folder)


def update(site, message, value=1.0, epochs=1):
    cases = SIZES[site]
    report = SiteReport(cases, epochs * -(-cases // 2), 0.9, 0.8, {"mean": 0.5}, 2)
    arrays = {name: np.full_like(weight, value) for name, weight in message.params.items()}
    return FLModel(params_type=ParamsType.DIFF, params=arrays, meta=report.to_meta())


class Sites:
    """Each adds 1 to the model; ``spoilt`` says what a site answers at which of its turns in place of that."""

    def __init__(self, spoilt=None, epochs=1):
        self.spoilt, self.epochs, self.visits, self.messages = spoilt or {}, epochs, [], []

    def __call__(self, task, site, message):
        if task == "prepare":
            return accepted(training=SIZES[site])
        if task != "train":
            raise AssertionError(task)
        self.visits.append(site)
        self.messages.append(message)
        turn = self.visits.count(site) - 1
        return self.spoilt.get((site, turn), lambda: update(site, message, epochs=self.epochs))()


def order_of(run):
    return [entry["visited"] for entry in run.state.rounds]


@pytest.mark.parametrize(
    ("order", "expected"), [("name", "abc"), ("largest_first", "bca"), (["c", "b", "a"], "cba"), ("random", None)]
)
def test_every_site_is_visited_once_in_the_order_of_the_job(tmp_path, order, expected):
    sites = Sites()
    run = train(incremental(tmp_path, sites, order=order))
    expected = expected or "".join(sites.visits)
    assert sorted(expected) == list("abc")
    assert "".join(sites.visits) == expected
    assert order_of(run) == [[site] for site in expected]
    assert [entry["asked"] for entry in run.state.rounds] == [[site] for site in expected]
    assert run.state.rounds[1]["selection"] == {
        expected[0]: "was visited in round 1", expected[1]: "its turn has come", expected[2]: "waits for its turn"
    }  # fmt: skip
    assert (run.state.events, run.state.stopped) == ([], None)
    lines = read_record(tmp_path / "state" / "run" / "record.jsonl").of_kind("visit")
    assert [(line["round"], line["site"]) for line in lines] == list(enumerate(expected))
    assert run.state.best_round is None


def test_a_random_order_follows_from_the_seed(tmp_path):
    plans = [parse_plan({**PLAN, "seed": seed}) for seed in (0, 0, 1, 2, 3)]
    orders = []
    for number, plan in enumerate(plans):
        workflow = IncrementalTraining(9, order="random", run_id="run")
        orders.append(order_of(train(start(workflow, Sites(), tmp_path / str(number), plan))))
    assert orders[0] == orders[1]
    assert any(order != orders[0] for order in orders)


def test_as_many_visits_as_the_job_allows(tmp_path):
    sites = Sites()
    train(incremental(tmp_path, sites, num_rounds=2))
    assert sites.visits == ["a", "b"]


@pytest.mark.parametrize(
    "answer", [lambda: None, lambda: RefusalError("data", "No cases.")], ids=["silence", "refusal"]
)
def test_a_site_that_fails_has_its_turn_after_the_others(tmp_path, answer):
    sites = Sites({("a", 0): answer})
    run = train(incremental(tmp_path, sites))
    assert sites.visits == [*"abca"]
    assert order_of(run) == [["b"], ["c"], ["a"]]
    ((event),) = run.state.events
    assert (event["round"], event["site"]) == (0, "a")
    assert run.state.rounds[0]["asked"] == ["a", "b"]


def test_a_site_that_fails_twice_is_named_and_the_run_ends_without_it(tmp_path):
    sites = Sites({("a", turn): lambda: RefusalError("data", "No cases.") for turn in range(9)})
    run = train(incremental(tmp_path, sites))
    assert sites.visits == [*"abca"]
    assert order_of(run) == [["b"], ["c"]]
    assert [event["site"] for event in run.state.events] == ["a", "a", "a"]
    assert run.state.events[-1]["what"] == "is left out: it had 2 turns, and the model was not trained there"
    assert run.state.stopped == {"round": 1, "reason": "No further site could be visited."}


def test_where_no_site_can_be_visited_the_run_fails(tmp_path):
    sites = Sites({(site, turn): lambda: None for site in "abc" for turn in (0, 1)})
    with pytest.raises(FedsegError, match="No further site could be visited"):
        train(incremental(tmp_path, sites))


def test_an_absent_site_is_passed_over_by_name_and_visited_when_it_is_back(tmp_path):
    sites = Sites()

    def script(task, site, message):
        if task == "train":
            port.presence.heard("a")
        return sites(task, site, message)

    port = ScriptedSites(script)
    run = incremental(tmp_path, port)
    run.prepare()
    port.presence.limit, port.presence._silence["a"] = 1, 2.0
    run.run_rounds()
    assert order_of(run) == [["b"], ["c"], ["a"]]
    ((event),) = run.state.events
    assert (event["round"], event["site"]) == (0, "a")
    assert event["what"] == "is passed over: it was not heard of for 1 s; it is visited when it is back"


class Returning(ScriptedSites):
    """A site comes back while the server waits for it; ``asked_for`` has whom it waited for, and how long at most."""

    def __init__(self, script, back):
        super().__init__(script)
        self.back, self.asked_for = back, []

    def await_return(self, sites, timeout):
        self.asked_for.append((list(sites), timeout))
        if self.back in sites:
            self.presence.heard(self.back)


def absent_from_the_start(folder, port, *sites, **arguments):
    run = incremental(folder, port, **arguments)
    run.prepare()
    port.presence.limit = 1
    port.presence._silence |= dict.fromkeys(sites, 2.0)
    run.run_rounds()
    return run


def test_the_second_turn_of_the_last_site_waits_for_its_return(tmp_path):
    sites = Sites()
    port = Returning(sites, back="c")
    run = absent_from_the_start(tmp_path, port, "c")
    assert order_of(run) == [["a"], ["b"], ["c"]]
    assert port.asked_for == [(["c"], 600)]
    assert [event["what"] for event in run.state.events] == [
        "is passed over: it was not heard of for 1 s; it is visited when it is back"
    ]
    assert run.state.stopped is None


def test_of_several_absent_sites_the_one_that_is_back_is_visited_first(tmp_path):
    port = Returning(Sites(), back="c")
    run = absent_from_the_start(tmp_path, port, "b", "c", round_timeout=7)
    assert order_of(run) == [["a"], ["c"]]
    assert port.asked_for == [(["b", "c"], 7), (["b"], 7)]
    assert run.state.events[-1]["what"] == "is left out: it had 2 turns, and the model was not trained there"
    assert run.state.events[-1]["site"] == "b"


def test_sites_that_do_not_come_back_are_waited_for_once_together(tmp_path):
    port = Returning(Sites(), back="nobody")
    run = absent_from_the_start(tmp_path, port, "b", "c")
    assert order_of(run) == [["a"]]
    assert port.asked_for == [(["b", "c"], 600)]
    assert [event["site"] for event in run.state.events[-2:]] == ["b", "c"]
    assert run.state.stopped == {"round": 0, "reason": "No further site could be visited."}


def test_a_stopped_run_goes_on_with_the_sites_that_are_left(tmp_path):
    run = incremental(tmp_path, Sites())
    run.prepare()
    run.state.record.round = 0
    run.run_round()
    run.state.save_checkpoint()
    del run
    gc.collect()
    sites = Sites()
    run = train(incremental(tmp_path, sites, resume=True))
    assert sites.visits == ["b", "c"]
    assert order_of(run) == [["a"], ["b"], ["c"]]


def test_a_stopped_run_knows_the_turns_that_sites_have_had(tmp_path):
    refusals = {("a", turn): lambda: RefusalError("data", "No cases.") for turn in range(9)}
    run = incremental(tmp_path, Sites(refusals))
    run.prepare()
    run.state.record.round = 0
    run.run_round()
    run.state.save_checkpoint()
    del run
    gc.collect()
    sites = Sites(refusals)
    run = train(incremental(tmp_path, sites, resume=True))
    assert sites.visits == ["c", "a"], "the second turn of a is its last one"
    assert order_of(run) == [["b"], ["c"]]
    assert run.state.events[-1]["what"] == "is left out: it had 2 turns, and the model was not trained there"


class Epochs(Sites):
    """Site b reports the steps of so many local epochs, of which one has two."""

    def __init__(self, epochs):
        super().__init__()
        self.of_b = epochs

    def __call__(self, task, site, message):
        answer = super().__call__(task, site, message)
        if (task, site) == ("train", "b"):
            answer.meta[META_KEY]["num_steps"] = int(2 * self.of_b)
        return answer


def test_with_patience_a_visit_may_have_fewer_epochs_but_only_whole_ones(tmp_path):
    plan = parse_plan({**PLAN, "training": {**PLAN["training"], "local_epochs": 5}})
    for epochs, good in ((1, True), (3, True), (5, True), (6, False), (0, False), (2.5, False)):
        sites = Epochs(epochs)
        workflow = IncrementalTraining(9, local_patience=2, run_id="run")
        run = train(start(workflow, sites, tmp_path / str(epochs), plan))
        assert (["b"] in order_of(run)) is good, epochs
        assert sites.messages[0].meta[ROUND_SETTINGS] == {"patience": 2, "own_schedule": True}


def test_patience_needs_validation_cases_at_every_site(tmp_path):
    def script(task, site, message):
        return accepted(training=SIZES[site], validation=0 if site == "b" else 2)

    with pytest.raises(ConfigurationError, match=r"workflow\.local_patience is 3, but .*, since b has no"):
        train(incremental(tmp_path, script, local_patience=3))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"aggregator": object()}, r"workflow\.aggregator is 'given', but must be left out in incremental learning"),
        ({"selection": object()}, r"workflow\.selection is 'given'"),
        ({"local_patience": 0}, r"workflow\.local_patience is 0"),
        ({"order": "x"}, r"workflow\.order is 'x'"),
        ({"patience": 2}, "patience needs the same sites in every round"),
    ],
)
def test_what_has_no_meaning_here_is_refused(arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        IncrementalTraining(3, **arguments)


# ---------------------------------------------------------------------- real training, in one process


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    data = make_sites(tmp_path_factory.mktemp("data"), {"alpha": (4, 2), "beta": (2, 1)})
    return {site: read_datalist(data / site) for site in ("alpha", "beta")}


def iil(**changes):
    job = tiny_job(JOBS / "hippocampus_iil", rounds=9)
    for key, value in {"training": {**PLAN["training"], "local_epochs": 3}, **changes}.items():
        job.set(key, value)
    return job


def test_a_pass_is_the_loop_written_out(lists):
    job = iil(**{"workflow.local_patience": None, "workflow.order": "smallest_first"})
    federation = InProcessFederation(job, lists)
    weights = {name: value.copy() for name, value in federation.model.weights.items()}
    federation.run()
    assert federation.events == []
    for number, site in enumerate(("beta", "alpha")):
        # The whole course of the learning rate at each site, from the round's own seeds.
        trainer = SiteTrainer(federation.plan, site, lists[site])
        settings = RoundSettings(own_schedule=True)
        weights = apply_difference(weights, trainer.train_round(weights, number, 9, settings=settings).update)
    for name, value in weights.items():
        np.testing.assert_array_equal(federation.model.weights[name], value)


def test_with_patience_a_site_leaves_its_best_model(lists, monkeypatch):
    """Scores as a script has them: best after the second of the epochs, of which the fourth is the last."""
    plan = parse_plan({**PLAN, "training": {**PLAN["training"], "local_epochs": 9, "schedule": "constant"}})
    scores, seen = iter([0.1, 0.2, 0.5, 0.4, 0.5, 0.9]), []

    def scripted(trainer, weights):
        seen.append({name: value.copy() for name, value in weights.items()})
        return next(scores)

    monkeypatch.setattr(SiteTrainer, "_mean_score", scripted)
    trainer = SiteTrainer(plan, "alpha", lists["alpha"])
    begin = get_weights(trainer.network)
    result = trainer.train_round(begin, 0, 1, settings=RoundSettings(patience=2, own_schedule=True))
    assert (result.num_steps, trainer.counted_steps()) == (4 * 2, 4 * 2)
    whole = SiteTrainer(plan, "alpha", lists["alpha"])
    whole.train_round(begin, 0, 1, settings=RoundSettings(local_epochs=2, own_schedule=True))
    for name, value in get_weights(whole.network).items():
        np.testing.assert_array_equal(seen[2][name], value, err_msg="scoring between epochs changes nothing")
        np.testing.assert_array_equal(result.weights[name], value)


def test_a_pass_with_patience_runs_and_ends_at_scores_no_worse_than_it_came_with(lists):
    federation = InProcessFederation(iil(**{"workflow.local_patience": 1}), lists)
    federation.run()
    assert federation.events == []
    assert [entry["visited"] for entry in federation.rounds] == [["alpha"], ["beta"]]
    trainer = federation.trainers["beta"]
    kind = trainer.objective
    last = kind.summarise([case.score for case in trainer.validate(federation.model.weights)])
    assert last[kind.primary.name][MEAN] >= federation.rounds[1]["sites"]["beta"][f"val_{kind.primary.name}"][MEAN]


def test_patience_and_averaged_weights_are_refused(lists):
    job = read_job(JOBS / "hippocampus_iil")
    job.set("training.weight_average", 0.9)
    with pytest.raises(ConfigurationError, match=r"training\.weight_average is 0\.9"):
        InProcessFederation(job, lists)
