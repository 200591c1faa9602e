"""The page about the experiment file against the code: every key with its default, kinds, and the example."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from fedseg.evaluation.experiment_folder import COST_COLUMNS, CURVE_COLUMNS, RESULT_COLUMNS
from fedseg.experiments import arms, definition
from fedseg.experiments.rows import QUANTITIES
from fedseg.experiments.summary import SCOPES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "experiment-file.md"
GUIDE = ROOT / "docs" / "how-to" / "run-an-experiment.md"


def section(title):
    return PAGE.read_text("utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title, head):
    """Rows of the table of a section whose header begins with this cell."""
    tables = section(title).strip().split("\n\n")
    (table,) = [part for part in tables if part.startswith(f"| {head} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("data", definition.DataSettings),
        ("folds", definition.FoldSettings),
        ("budget", definition.Budget),
        ("watts", definition.Watts),
    ],
)
def test_every_setting_stands_there_with_its_default(title, kind):
    expected = {f"`{field.name}`": f"`{json.dumps(field.default)}`" for field in dataclasses.fields(kind)}
    assert {row[0]: row[1] for row in rows(title, "key")} == expected


def test_every_key_of_a_definition_stands_there_and_the_required_ones_are_called_so():
    found = {row[0].strip("`"): row[1] for row in rows("Keys", "key")}
    assert set(found) == set(definition.KEYS)
    assert {key for key, default in found.items() if default == "required"} == set(definition.REQUIRED)


def test_every_key_of_an_arm_stands_there_with_its_kinds():
    found = {row[0].strip("`"): row for row in rows("arms", "key")}
    assert set(found) == set(arms.KEYS)
    for key, row in found.items():
        own = {kind for kind, keys in arms._KEYS.items() if key in keys}
        said = set(re.findall(r"`(\w+)`", row[2]))
        assert said == own or (row[2] == "all" and key == "kind") or set(arms.KINDS) - own == said, key
    defaults = {field.name: field.default for field in dataclasses.fields(arms.Arm)}
    for key in ("equal", "order", "patience", "elsewhere"):
        assert found[key][1] == f"`{json.dumps(defaults[key])}`"


def test_every_kind_of_arm_stands_there():
    assert [row[0].strip("`") for row in rows("arms", "kind")] == list(arms.KINDS)


def test_every_column_and_scope_is_named():
    text = section("What an experiment leaves")
    for name in {*RESULT_COLUMNS, *COST_COLUMNS, *CURVE_COLUMNS, *QUANTITIES, *SCOPES} - {
        "experiment",
        "arm",
        "seed",
        "fold",
        "site",
    }:
        assert f"`{name}`" in text, name


@pytest.mark.parametrize("page", [PAGE, GUIDE], ids=lambda page: page.stem)
def test_the_example_is_what_the_code_reads(page, tmp_path):
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    file = tmp_path / "experiments" / "a.yaml"
    file.parent.mkdir()
    file.write_text(block, "utf-8")
    found = definition.read_definition(file)
    assert found.reference == "fedavg"
    names = {Path(arm["job"]).name for arm in yaml.safe_load(block)["arms"].values() if "job" in arm}
    assert all((ROOT / "jobs" / name / "meta.json").is_file() for name in names)
