"""Definitions: what they mean, and one sentence for everything that is wrong."""

from pathlib import Path

import pytest
import yaml

from fedseg.errors import FedsegError
from fedseg.experiments.definition import KEYS, read_definition

GOOD = {
    "experiment": "first",
    "job": "jobs/hippocampus_fedavg",
    "data": {"folder": "data"},
    "arms": {"local": {"kind": "local"}, "fedavg": {"job": "jobs/hippocampus_fedavg"}},
}
ROOT = Path(__file__).parents[2]


def read(tmp_path, content):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    return read_definition(tmp_path / "a.yaml")


def test_what_is_left_out_has_its_default(tmp_path):
    found = read(tmp_path, GOOD)
    assert (found.seeds, found.budget, found.folds.kind, found.watts.cpu) == ((0,), None, "none", None)
    assert found.reference == "local"
    assert list(found.arms) == ["local", "fedavg"]
    assert found.arms["fedavg"].kind == "job"
    assert found.arms["fedavg"].job == tmp_path / "jobs" / "hippocampus_fedavg"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"experiment": "a b"}, "experiment is 'a b', but must be the name of"),
        ({"experiment": "../a"}, "experiment is '../a', but must be the name of an experiment"),
        ({"experiment": ""}, "experiment is '', but must be a text that is not empty"),
        ({"experiment": 3}, "experiment is 3"),
        ({"method": "x"}, "method is not known: an experiment has"),
        ({"job": None}, "job is missing"),
        ({"seeds": []}, "seeds is []"),
        ({"seeds": [1, 1]}, "seeds is [1, 1], but must be a list of different whole numbers"),
        ({"seeds": [-1]}, "seeds[0] is -1"),
        ({"seeds": 3}, "seeds is 3"),
        ({"budget": {}}, "budget is missing, but must be an object with one of rounds, steps, samples"),
        ({"budget": {"rounds": 1, "steps": 2}}, "budget is ['rounds', 'steps']"),
        ({"budget": {"rounds": 0}}, "budget.rounds is 0"),
        ({"budget": {"epochs": 1}}, "budget.epochs is not known"),
        ({"folds": {"kind": "random"}}, "folds.kind is 'random'"),
        ({"folds": {"k": 1}}, "folds.k is 1"),
        ({"data": {}}, "data is missing, but must be an object with one of folder, source and sources"),
        ({"data": {"folder": "a", "source": "b"}}, "data is ['folder', 'source']"),
        ({"data": {"folder": "a", "number": 3}}, "data.number is 3, but must be left out without data.source"),
        ({"data": {"folder": "a", "scanner_shift": 0.5}}, "data.scanner_shift is 0.5"),
        ({"data": {"source": "a"}}, "Name number, sizes, names or csv."),
        ({"data": {"source": "a", "sizes": [3, 0]}}, "data.sizes[1] is 0"),
        ({"data": {"source": "a", "sizes": [3, 4], "dirichlet": 0.5}}, "data.dirichlet is 0.5"),
        ({"data": {"source": "a", "sizes": [3, 4], "names": ["a"]}}, "data.sizes is [3, 4], but must be for as many"),
        ({"data": {"source": "a", "number": 2, "names": ["a"]}}, "data.number is 2, but must be for as many sites as"),
        ({"data": {"source": "a", "csv": "t.csv", "number": 3}}, "data.csv is 't.csv'"),
        ({"data": {"source": "a", "number": 2, "validation": 0.6, "test": 0.5}}, "nothing is left to train on"),
        ({"data": {"source": "a", "number": 2, "dirichlet": 0}}, "data.dirichlet is 0"),
        ({"data": {"sources": {"server": "a"}}}, "'server', but must be the name of a site"),
        ({"data": {"sources": {}}}, "data.sources is {}"),
        ({"sites": "alpha"}, "sites is 'alpha'"),
        ({"external": {"x": 3}}, "external.x is 3, but must be a text"),
        ({"watts": {"cpu": 0}}, "watts.cpu is 0"),
        ({"statistics": 0}, "statistics is 0, but must be a whole number of at least 1, or null"),
        ({"watts": {"tpu": 1}}, "watts.tpu is not known"),
        ({"set": ["a"]}, "set is ['a']"),
        ({"reference": "x"}, "reference is 'x', but must be one of ['local', 'fedavg']"),
        ({"arms": {}}, "arms is {}"),
        ({"arms": {"a": 3}}, "arms.a is 3"),
        ({"arms": {"a/b": {"kind": "local"}}}, "'a/b', but must be the name of an arm"),
        ({"arms": {"a": {"kind": "local"}, "A": {"kind": "local"}}}, "differ in more than small and capital"),
        ({"arms": {"a": {}}}, "arms.a.kind is missing"),
        ({"arms": {"a": {"kind": "fedavg"}}}, "arms.a.kind is 'fedavg'"),
        ({"arms": {"a": {"kind": "local", "rounds": 3}}}, "arms.a.rounds is not known"),
        ({"arms": {"a": {"kind": "local", "patience": 3}}}, "arms.a.patience is 3, but must be left out"),
        ({"arms": {"a": {"kind": "central", "equal": "hours"}}}, "arms.a.equal is 'hours'"),
        ({"arms": {"a": {"kind": "ciil", "order": "up"}}}, "arms.a.order is 'up'"),
        ({"arms": {"a": {"kind": "iil", "patience": 0}}}, "arms.a.patience is 0"),
        ({"arms": {"a": {"kind": "ensemble"}}}, "arms.a.of is missing"),
        ({"arms": {"a": {"kind": "ensemble", "of": "b"}}}, "Add an arm of the kind local."),
        ({"arms": {"a": {"job": 3}}}, "arms.a.job is 3"),
        ({"arms": {"a": {"kind": "local", "elsewhere": 1}}}, "arms.a.elsewhere is 1"),
        ({"arms": {"a": {"kind": "local", "set": 1}}}, "arms.a.set is 1"),
    ],
)
def test_a_wrong_value_is_told_by_name_value_and_remedy(tmp_path, change, said):
    with pytest.raises(FedsegError) as found:
        read(tmp_path, {**GOOD, **change})
    assert said in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["experiment", "job", "data", "arms"])
def test_what_is_required_is_asked_for(tmp_path, name):
    with pytest.raises(FedsegError, match=f"{name} is missing"):
        read(tmp_path, {key: value for key, value in GOOD.items() if key != name})


def test_the_digest_is_that_of_the_content(tmp_path):
    one = read(tmp_path, GOOD)
    assert one.digest == read(tmp_path, dict(reversed(GOOD.items()))).digest
    assert one.digest != read(tmp_path, {**GOOD, "seeds": [1]}).digest


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_experiments_of_the_repository_are_valid(file):
    found = read_definition(file)
    assert found.name == file.stem
    assert found.reference in found.arms
    for job in [found.job, *(arm.job for arm in found.arms.values() if arm.job)]:
        assert (job / "meta.json").is_file()
    assert set(found.raw) <= set(KEYS)
