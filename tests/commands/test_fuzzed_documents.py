"""Damaged JSON of every kind goes through the commands that read it: a sentence or success, and no input is changed."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedseg.cli import main
from fedseg.contract.plan import parse_plan
from fedseg.errors import FedsegError
from fedseg.models.model_file import write_model
from fedseg.networks.weights import get_weights
from fedseg.site.profile import read_profile, read_state_folder
from tiny import PLAN, TASK, make_sites

ROOT = Path(__file__).parents[2]
JOB = ROOT / "jobs" / "hippocampus_fedavg"
COUNT = 300

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2.5, 1e308, float("inf"), 10**400, "", " ", "x", "~", "$HOME", "..", "/", "a\0b",
    "u\u0308", "\U0001f600", "9" * 400, "n" * 5000, [], {}, [[]], [None], [1, "a"], {"": {}}, {"image": []},
    ["a", ["b"]],
    [0] * 50,
)  # fmt: skip
SCRAPS = ('"', "{", "]", ",", "NaN", "[" * 2000, "7" * 5000, "\\ud800")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document, as the keys that lead to it."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


def changed(document: Any, chance: random.Random) -> Any:
    """The document with one place replaced, removed, renamed, doubled, or exchanged for another part."""
    content = copy.deepcopy(document)
    every = [path for path in places(content) if path]
    path = chance.choice(every)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    key, part = path[-1], holder[path[-1]]
    kind = chance.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[chance.choice([f"{key}s", f"{key} ", f"{key}_2", key.upper()])] = holder.pop(key)
    elif kind == 2:
        holder[key] = [part, part]
    elif kind == 3:
        other = content
        for step in chance.choice(every):
            other = other[step]
        holder[key] = copy.deepcopy(other)
    else:
        holder[key] = chance.choice(VALUES)
    return content


def damaged(document: Any, chance: random.Random) -> bytes:
    """A document as a file that somebody, or a program, has got wrong in one to three places."""
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        if isinstance(document, dict | list) and document:
            document = changed(document, chance)
    text = json.dumps(document, ensure_ascii=chance.random() < 0.5)
    kind = chance.randrange(20)
    if kind == 0:
        text = text[: chance.randrange(len(text))]
    elif kind == 1:
        place = chance.randrange(len(text))
        text = (
            text[:place] + chance.choice(['"', "{", "]", ",", "NaN", "[" * 2000, "7" * 5000, "\\ud800"]) + text[place:]
        )
    elif kind == 2:
        return text.encode(chance.choice(["utf-8-sig", "utf-16", "utf-32", "latin-1"]), "replace")
    elif kind == 3:
        content = bytearray(text.encode())
        content[chance.randrange(len(content))] = chance.randrange(256)
        return bytes(content)
    return text.encode(errors="surrogatepass")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole documents of each kind, and the images that they name."""
    folder = tmp_path_factory.mktemp("originals")
    plan = parse_plan(PLAN)
    write_model(folder / "model.safetensors", plan, get_weights(plan.build_network()), 0)
    make_sites(folder, {"site": (2, 1)})
    (folder / "task.json").write_text(json.dumps(TASK))
    shutil.copytree(JOB, folder / "job")
    (folder / "job" / "app" / "config" / "fedseg.json").write_text(json.dumps({**PLAN, "dataset": "tiny"}))
    names = [path.name for path in sorted((folder / "site" / "images").glob("*_image.nii.gz"))]
    entries = [{"image": f"./images/{n}", "label": f"./images/{n.replace('_image', '')}"} for n in names]
    dataset = {"name": "tiny", "modality": {"0": "a"}, "labels": {"0": "background", "1": "inner", "2": "outer"}}
    (folder / "site" / "dataset.json").write_text(json.dumps({**dataset, "training": entries, "test": ["./x.nii.gz"]}))
    policy = {"min_cases": 2, "epsilon_budget": {"*": {"epsilon": 4, "delta": 1e-5}}, "jobs": ["brats_*"]}
    profile = {"datasets": {"tiny": "site"}, "state": "state", "cache": "cache", "device": "cpu", "policy": policy}
    (folder / "local").mkdir()
    (folder / "local" / "fedseg.json").write_text(json.dumps(profile))
    return folder


def run(*arguments: object) -> Callable[[], int]:
    return lambda: main([str(argument) for argument in arguments])


def profile_of(folder: Path) -> int:
    try:
        read_profile("site", folder / "local", folder)
        read_state_folder("server", folder / "local", folder)
    except FedsegError:
        return 1
    return 0


def uses(kind: str, out: Path) -> list[Callable[[], int]]:
    """What reads a kind of document; ``simulate`` and ``submit`` end behind their checks, for want of sites and kit."""
    model = ["model.safetensors", "--task", "task.json", "--data", "site"]
    check, read = (
        run("check-data", "task.json", "site"),
        run("import-data", "site", "--task", "task.json", "--out", out),
    )
    score = run("evaluate", *model, "--out", out / "scores", "--split", "all")
    mask = run("predict", *model, "--out", out / "masks")
    simulate = run("simulate", "job", "--data", "nothing", "--out", out / "run")
    submit = run("submit", "job", "--kit", "nothing")
    named = run("simulate", "job", "--set", "task=task.json", "--data", "nothing", "--out", out / "run")
    return {
        "site/datalist.json": [check, read, score, mask],
        "task.json": [check, read, score, named],
        "job/app/config/fedseg.json": [simulate, submit, run("check-data", "job", "site")],
        "job/meta.json": [simulate, submit],
        "job/app/config/config_fed_server.json": [simulate, submit],
        "job/app/config/config_fed_client.json": [simulate, submit],
        "site/dataset.json": [run("import-data", "site/dataset.json", "--task", "task.json", "--out", out)],
        "local/fedseg.json": [lambda: profile_of(Path.cwd())],
    }[kind]


KINDS = (
    *(["site/datalist.json"] * 4), *(["task.json"] * 3), *(["job/app/config/fedseg.json"] * 3), "job/meta.json",
    *(["site/dataset.json"] * 2), *(["local/fedseg.json"] * 2), "job/app/config/config_fed_server.json",
    "job/app/config/config_fed_client.json",
)  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("part", range(6))
def test_a_damaged_document_ends_in_a_sentence_and_changes_nothing(originals, tmp_path, monkeypatch, capsys, part):
    work = Path(shutil.copytree(originals, tmp_path / "work"))
    monkeypatch.chdir(work)
    ended = dict.fromkeys((0, 1, 2), 0)
    for seed in range(part, COUNT, 6):
        chance = random.Random(seed)
        kind = chance.choice(KINDS)
        (work / kind).write_bytes(damaged(json.loads((originals / kind).read_text()), chance))
        before = contents(work)
        for number, use in enumerate(uses(kind, tmp_path / f"out-{seed}")):
            code = use()
            ended[code] += 1
            said = capsys.readouterr()
            assert code in (0, 1, 2), (seed, kind, number)
            assert "Traceback" not in said.out + said.err, (seed, kind, number)
            assert code == 0 or kind == "local/fedseg.json" or len((said.out + said.err).split()) > 5, (seed, kind)
            assert contents(work) == before, (seed, kind, number)
            shutil.rmtree(tmp_path / f"out-{seed}", ignore_errors=True)
        shutil.copyfile(originals / kind, work / kind)
    assert ended[0] > 5
    assert ended[1] > 20
