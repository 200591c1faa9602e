"""An experiment with partial labels: what nobody drew counts in no score, and the page says what is drawn."""

import json
import re
from dataclasses import replace

import pandas as pd
import pytest

from fedseg.data.datalist import FILE_NAME, SPLITS, read_datalist, write_datalist
from fedseg.data.supervision import parse_supervision
from fedseg.experiments.cohort import Cohort, read_cohort
from fedseg.experiments.definition import Watts, read_definition
from fedseg.experiments.experiment import describe, finish, load_experiment
from fedseg.experiments.unit_run import run_unit
from fedseg.files.documents import write_json
from fedseg.tasks.registry import resolve_task
from tiny import TASK
from tiny_experiment import write_experiment

ARMS = {"central": {"kind": "central"}, "local": {"kind": "local"}, "fedavg": {"job": "job"}}
SIZES = {"alpha": (2, 1), "beta": (2, 1)}


@pytest.fixture(scope="module")
def partial(tmp_path_factory):
    """Folder of an experiment at whose site beta the inner region alone is drawn, and its summary."""
    folder = tmp_path_factory.mktemp("partial")
    file = write_experiment(folder, arms=ARMS, sizes=SIZES, budget={"rounds": 1})
    place = folder / "data" / "beta"
    write_datalist(read_datalist(place).with_drawn(["inner"]), place / FILE_NAME)
    experiment, out = load_experiment(file, None, folder / "sites"), folder / "out"
    for unit in experiment.units:
        run_unit(unit, out, Watts())
    write_json(out / "experiment.json", record := describe(experiment, {}, out))
    return out, finish(experiment, out, record, {})


def test_what_nobody_drew_has_no_score_and_is_in_no_mean(partial):
    out, summary = partial
    rows = pd.read_csv(out / "results.csv", keep_default_na=False, dtype={"value": str})
    beta = rows[rows["evaluated_at"] == "beta"]
    assert set(beta["arm"]) == set(ARMS)
    undrawn = beta[beta["region"] == "whole"]
    assert set(zip(undrawn["value"], undrawn["empty"], strict=True)) == {("", "")}
    keys = ["arm", "seed", "site", "case", "metric"]
    inner, mean = (beta[beta["region"] == region].set_index(keys)["value"] for region in ("inner", "mean"))
    pd.testing.assert_series_equal(inner, mean)
    assert (inner.xs("dice", level="metric") != "").all()
    sites = {(row["region"], row["arm"]): row["sites"] for row in summary["rows"] if row["metric"] == "dice"}
    assert {region: {sites[region, arm] for arm in ("central", "fedavg")} for region in ("inner", "whole", "mean")} == {
        "inner": {2}, "whole": {1}, "mean": {2},
    }  # fmt: skip


def test_facts_and_page_say_in_how_many_cases_regions_are_drawn(partial):
    out, _ = partial
    sites = json.loads((out / "experiment.json").read_text("utf-8"))["sites"]
    cases = {site: sum(told[split] for split in SPLITS) for site, told in sites.items()}
    assert "drawn" not in sites["alpha"]
    assert sites["beta"]["drawn"] == {"inner": cases["beta"], "whole": 0}
    for page in (out / "report" / "report.html", out / "report" / "sites" / "beta.html"):
        text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.read_text("utf-8")))
        assert "Nobody drew whole at beta: there is no score of it there." in text
        rows = re.findall(r"(alpha|beta) (all|tested \(\d+\)) (\d+) (\d+) ", text)
        tested = {site: str(told["test"]) for site, told in sites.items()}
        assert rows == [
            ("alpha", f"tested ({tested['alpha']})", tested["alpha"], tested["alpha"]),
            ("beta", "all", str(cases["beta"]), "0"),
            ("beta", f"tested ({tested['beta']})", tested["beta"], "0"),
        ]


def test_what_is_known_of_regions_makes_other_cases(tmp_path):
    definition = read_definition(write_experiment(tmp_path, sizes=SIZES))
    cohort = read_cohort(definition, resolve_task(TASK), tmp_path, tmp_path / "sites")
    whole = cohort.sites["alpha"]
    boxes = [[[1, 1, 1], [4, 4, 4]]]
    weak = parse_supervision({"supervision": "boxes", "boxes": {"inner": boxes}}, "a case")
    other = parse_supervision({"supervision": "boxes", "boxes": {"inner": []}}, "a case")
    lists = [whole, whole.with_drawn(["inner"]), whole.with_drawn(["whole"])]
    lists += [
        replace(whole, training=tuple(replace(c, supervision=said) for c in whole.training)) for said in (weak, other)
    ]
    assert len({Cohort({}, {}, cohort.digests).digest(each) for each in lists}) == len(lists)
