"""What goes from site to site, what a round's scores are of, and what is refused; whole runs are in tests/e2e."""

import gc
import json

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.control_variates import ControlVariates
from fedseg.contract.protocol import MODEL_NAME, SPLITS
from fedseg.contract.report import SiteReport
from fedseg.errors import ConfigurationError, FedsegError, RefusalError
from fedseg.files.digest import model_digest
from fedseg.networks.weights import join_shared
from fedseg.provenance.reading import read_record
from fedseg.workflows.cyclic_training import CyclicTraining
from fedseg.workflows.selection import LargestSites
from scripted_sites import ScriptedSites, accepted, start, train


def visiting(folder, script, **arguments):
    """Cyclic weight transfer with sites that answer as a script says."""
    return start(CyclicTraining(**{"num_rounds": 3, "run_id": "run", **arguments}), script, folder)


def scores(dice, cases=2):
    regions = ("inner", "whole")
    empty = {region: {"both": 0, "reference": 0, "prediction": 0} for region in regions}
    part = {"split": "validation", "loss": 0.5, "cases": cases, "dice": {**dict.fromkeys(regions, dice), "mean": dice}}
    part |= {"hd95": {}, "defined": dict.fromkeys(regions, cases), "empty": empty}
    return FLModel(metrics={"validation": part})


def update(model, value):
    """Adds ``value`` everywhere; its own score, of what came to this site, is one that no round may have."""
    report = SiteReport(2, 1, 0.9, 0.8, {"inner": 0.99, "whole": 0.99, "mean": 0.99}, 2)
    arrays = {name: np.full_like(weight, value) for name, weight in model.params.items()}
    return FLModel(params_type=ParamsType.DIFF, params=arrays, meta=report.to_meta())


# What each site adds to the model.
STEP = {"a": 0.25, "b": 0.5, "c": 1.0}


def first_value(weights):
    return float(np.ravel(next(iter(weights.values())))[0])


class Sites:
    """Each adds its own value to the model; remembers what came, as the value of one weight.

    The Dice of a model is what ``dice`` makes of the number of the round and of the site.
    """

    def __init__(self, dice=lambda number, site: 0.6, spoilt=None):
        self.dice, self.spoilt, self.got, self.loop = dice, spoilt or {}, [], None

    def __call__(self, task, site, model):
        if task == "prepare":
            return accepted()
        self.got.append((task, site, round(first_value(model.params) - self.begin, 5)))
        if task == "validate":
            return scores(self.dice(self.loop.state.number, site))
        spoil = self.spoilt.get((self.loop.state.number, site))
        answer = update(model, STEP[site])
        return spoil(answer) if spoil else answer

    def run(self, folder, **arguments):
        self.loop = visiting(folder, self, **arguments)
        self.begin = first_value(self.loop.state.model.weights)
        train(self.loop)
        return self.loop


def test_each_site_receives_what_the_one_before_it_has_left(tmp_path):
    sites = Sites()
    before = visiting(tmp_path / "before", sites).state.model.weights
    loop = sites.run(tmp_path / "run", num_rounds=2)
    visits = [(site, value) for task, site, value in sites.got if task == "train"]
    assert visits == [("a", 0), ("b", 0.25), ("c", 0.75), ("a", 1.75), ("b", 2.0), ("c", 2.5)]
    assert loop.state.events == []
    for name, value in loop.state.model.weights.items():
        np.testing.assert_allclose(value, before[name] + 3.5, rtol=1e-5)
    entry = loop.state.rounds[0]
    assert (entry["rule"], entry["carried"]) == ({"name": "CyclicWeightTransfer", "order": "name"}, True)
    assert entry["visited"] == ["a", "b", "c"]
    assert (entry["weights"], sorted(entry["sites"])) == ({}, ["a", "b", "c"])


def test_a_rounds_scores_are_of_one_model_at_all_of_its_sites(tmp_path):
    sites = Sites(lambda number, site: {"a": 0.2, "b": 0.4, "c": 0.6}[site])
    loop = sites.run(tmp_path, num_rounds=2)
    scored = [(site, value) for task, site, value in sites.got if task == "validate"]
    assert scored == [("a", 0), ("b", 0), ("c", 0), ("a", 1.75), ("b", 1.75), ("c", 1.75)]
    for entry in loop.state.rounds:
        assert entry["val_dice"] == pytest.approx(0.4)
        assert {s: part["val_dice"]["mean"] for s, part in entry["sites"].items()} == {"a": 0.2, "b": 0.4, "c": 0.6}
        assert {part["val_cases"] for part in entry["sites"].values()} == {2}


def test_the_best_model_is_chosen_by_these_scores(tmp_path):
    """That before the third round, which the second one has made."""
    loop = Sites(lambda number, site: (0.1, 0.3, 0.7, 0.5)[number]).run(tmp_path, num_rounds=4)
    assert loop.state.best_round == 1


def test_training_stops_early_by_these_scores(tmp_path):
    loop = Sites(lambda number, site: (0.1, 0.3, 0.7, 0.5)[number]).run(tmp_path, num_rounds=4, target_dice=0.65)
    assert len(loop.state.rounds) == 3, "0.99, which the sites say of what came to them, counts for nothing"


def spoil_nan(answer):
    first = next(iter(answer.params))
    return FLModel(params_type=ParamsType.DIFF, params={**answer.params, first: answer.params[first] * np.nan},
                   meta=answer.meta)  # fmt: skip


def with_control_variates(answer):
    """As SCAFFOLD's hook sends them."""
    answer.params = join_shared(answer.params, {"control": np.zeros(1, np.float32)})
    return answer


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda answer: None, "did not answer the task train"),
        (
            lambda answer: RefusalError("data", "No cases."),
            "data: No cases.",
        ),
        (spoil_nan, "update left out: "),
        (with_control_variates, "update left out: The update holds 1 shared array"),
    ],
    ids=["silence", "refusal", "nan", "shared arrays"],
)
def test_a_site_that_fails_is_named_and_passed_over(tmp_path, spoil, said):
    sites = Sites(spoilt={(0, "b"): spoil})
    loop = sites.run(tmp_path, num_rounds=2)
    visits = [(site, value) for task, site, value in sites.got if task == "train"]
    assert visits == [("a", 0), ("b", 0.25), ("c", 0.25), ("a", 1.25), ("b", 1.5), ("c", 2.0)]
    assert [sorted(entry["sites"]) for entry in loop.state.rounds] == [["a", "c"], ["a", "b", "c"]]
    assert [(event["round"], event["site"]) for event in loop.state.events] == [(0, "b")]
    assert loop.state.events[0]["what"].startswith(said)


def test_with_too_few_visits_the_job_fails(tmp_path):
    with pytest.raises(FedsegError, match="2 site"):
        Sites(spoilt={(0, "b"): lambda answer: None}).run(tmp_path, min_sites=3)


def test_scores_that_do_not_fit_are_left_out_and_those_that_are_withheld_are_missing(tmp_path):
    class Odd(Sites):
        def __call__(self, task, site, model):
            answer = super().__call__(task, site, model)
            if task == "validate" and site == "a":
                return scores(0.5, cases=7)
            if task == "validate" and site == "b":
                return FLModel(metrics={"final": {"split": "validation", "cases": 2, "withheld": True}})
            return answer

    loop = Odd().run(tmp_path, num_rounds=1)
    assert [(event["site"], event["what"]) for event in loop.state.events] == [
        ("a", "sent scores that cannot be read; they were left out")
    ]
    found = {site: (part["val_dice"], part["val_cases"]) for site, part in loop.state.rounds[0]["sites"].items()}
    assert (found["a"], found["b"]) == (({}, 0), ({}, 0))
    assert loop.state.rounds[0]["val_dice"] == 0.6, "that of c alone"


def test_only_the_sites_of_a_round_are_visited_and_score(tmp_path):
    class Sized(Sites):
        def __call__(self, task, site, model):
            return (
                accepted(training={"a": 1, "b": 2, "c": 2}[site])
                if task == "prepare"
                else super().__call__(task, site, model)
            )

    sites = Sized()
    loop = sites.run(tmp_path, num_rounds=1, selection=LargestSites(2))
    assert [(task, site) for task, site, _ in sites.got] == [
        ("validate", "b"), ("validate", "c"), ("train", "b"), ("train", "c")
    ]  # fmt: skip
    assert loop.state.rounds[0]["asked"] == ["b", "c"]


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    through = Sites().run(tmp_path / "through", num_rounds=3)
    fails = Sites(spoilt={(2, site): lambda answer: None for site in "abc"})
    with pytest.raises(FedsegError, match="0 site"):
        fails.run(tmp_path / "run", num_rounds=3)
    fails.loop = None
    gc.collect()  # and with it the lock
    again = Sites()
    loop = again.run(tmp_path / "run", num_rounds=3, resume=True)
    assert [site for task, site, _ in again.got if task == "train"] == ["a", "b", "c"], "the third round alone"
    for name, value in through.state.model.weights.items():
        np.testing.assert_array_equal(loop.state.model.weights[name], value)
    assert [entry["val_dice"] for entry in loop.state.rounds] == [entry["val_dice"] for entry in through.state.rounds]


def test_the_record_names_the_model_of_each_visit(tmp_path):
    sites, seen = Sites(), []

    def script(task, site, message):
        if task == "train":
            seen.append((site, model_digest(message.params)))
        elif task == "validate":
            assert message.meta[SPLITS] == ["validation"]
            assert message.meta[MODEL_NAME] == "round"
        return sites(task, site, message)

    sites.loop = loop = visiting(tmp_path, script, num_rounds=1)
    sites.begin = 0.0
    train(loop)
    record = read_record(tmp_path / "state" / "run" / "record.jsonl")
    lines = list(record.of_kind("visit"))
    assert [(line["site"], line["received"]) for line in lines] == seen
    assert {(line["round"], line["start"]) for line in lines} == {(0, loop.state.start_id)}
    assert len({digest for _, digest in seen}) == 3
    assert json.dumps(lines)


def test_what_has_no_meaning_here_is_refused():
    for name in ("aggregator", "server_optimizer"):
        with pytest.raises(ConfigurationError, match=f"workflow.{name} is 'given', but must be left out in cyclic"):
            CyclicTraining(1, **{name: object()})
    with pytest.raises(ConfigurationError, match=r"workflow\.shared_arrays is 'ControlVariates', but must be left out"):
        CyclicTraining(1, shared_arrays=ControlVariates())
    with pytest.raises(ConfigurationError, match=r"workflow\.order is 'largest'"):
        CyclicTraining(1, order="largest")
    with pytest.raises(ConfigurationError, match=r"workflow\.num_rounds is 0"):
        CyclicTraining(0)
    with pytest.raises(ConfigurationError, match="target_dice needs the same sites in every round"):
        CyclicTraining(1, selection=LargestSites(1), target_dice=0.5)


@pytest.mark.parametrize(
    ("order", "expected"),
    [("largest_first", "bca"), ("smallest_first", "acb"), (["c", "a", "b"], "cab"), (["c", "x", "a", "b"], "cab")],
)
def test_the_order_of_the_visits_is_that_of_the_job_and_stands_in_record_and_results(tmp_path, order, expected):
    sizes = {"a": 1, "b": 4, "c": 2}

    class Sized(Sites):
        def __call__(self, task, site, model):
            if task == "prepare":
                return accepted(training=sizes[site])
            answer = super().__call__(task, site, model)
            if task == "train":
                answer.meta["fedseg_report"] |= {"num_samples": sizes[site], "num_steps": -(-sizes[site] // 2)}
            return answer

    sites = Sized()
    loop = sites.run(tmp_path, num_rounds=2, order=order)
    assert "".join(site for task, site, _ in sites.got if task == "train") == expected * 2
    assert [entry["visited"] for entry in loop.state.rounds] == [list(expected)] * 2
    assert loop.state.rounds[0]["rule"]["order"] == order
    lines = read_record(tmp_path / "state" / "run" / "record.jsonl").of_kind("visit")
    assert "".join(line["site"] for line in lines) == expected * 2
    assert [event["site"] for event in loop.state.events] == (["x"] if "x" in order else [])


def test_a_list_that_lacks_a_site_is_refused_before_anybody_trains(tmp_path):
    sites = Sites()
    with pytest.raises(ConfigurationError, match=r"workflow\.order is .*, b included"):
        sites.run(tmp_path, order=["a", "c"])
    assert sites.got == []


def absent(port, site):
    """The site's process is silent for longer than is allowed."""
    port.presence.limit, port.presence._silence[site] = 1, 2.0


def test_a_site_that_is_away_at_its_turn_is_visited_after_the_others(tmp_path):
    """It goes after the round has begun, and is back before the round ends."""
    sites = Sites()

    def script(task, site, message):
        if (task, site, sites.loop.state.number) == ("train", "a", 0):
            absent(port, "b")
        if (task, site) == ("train", "c"):
            port.presence.heard("b")
        return sites(task, site, message)

    port = ScriptedSites(script)
    sites.loop = loop = visiting(tmp_path, port, num_rounds=2)
    sites.begin = first_value(loop.state.model.weights)
    train(loop)
    assert [site for task, site, _ in sites.got if task == "train"] == [*"acb", *"abc"]
    assert [entry["visited"] for entry in loop.state.rounds] == [["a", "c", "b"], ["a", "b", "c"]]
    assert loop.state.events == []


def test_a_site_that_has_gone_is_passed_over_by_name_and_visited_in_a_later_round(tmp_path):
    sites = Sites()

    def script(task, site, message):
        number = sites.loop.state.number
        if (task, site, number) == ("train", "a", 0):
            absent(port, "b")
        if (task, site, number) == ("train", "c", 1):
            port.presence.heard("b")
        return sites(task, site, message)

    port = ScriptedSites(script)
    sites.loop = loop = visiting(tmp_path, port, num_rounds=3)
    sites.begin = first_value(loop.state.model.weights)
    train(loop)
    assert [entry["visited"] for entry in loop.state.rounds] == [["a", "c"], ["a", "c"], ["a", "b", "c"]]
    ((event),) = loop.state.events
    assert (event["round"], event["site"]) == (0, "b")
    assert event["what"] == "is passed over: it was not heard of for 1 s; it is visited when it is back"
