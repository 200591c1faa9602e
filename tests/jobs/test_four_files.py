"""A method is four files: a guide of the docs adds one of each sort to a copy of the repository, where they run."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "add-a-method.md"
COPIED = ("custom", "jobs", "docs/reference", "scripts", "workspace_templates/simulator", "tests", "pyproject.toml")
TABLE = "docs/reference/method-table.md"
WRITTEN = {"docs/reference/components.md", "workspace_templates/simulator/local/resources.json"}
_FILE = re.compile(r"^`([\w./]+)`[^\n]*:\n\n```(?:python|json)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^The row, in \[[^\]]+\]\([^)#]+#([\w-]+)\):\n\n```markdown\n(.*?)^```", re.MULTILINE | re.DOTALL)

TRAIN = """
import sys
from pathlib import Path
import numpy as np
from fedseg.data.datalist import read_datalist
from fedseg.jobs.job import read_job
from fedseg.simulation.in_process import InProcessFederation
from tiny import PLAN, make_sites

data = make_sites(Path(sys.argv[1]), {"alpha": (4, 1), "beta": (2, 1), "gamma": (2, 1)})
for folder in sys.argv[2:]:
    job = read_job(Path(folder))
    job.check()
    kind = job.plan.task.objective
    for key in ("task", "network"):
        job.set(key, PLAN[key])
    if kind != "segmentation":
        job.set("task.objective", kind)
    job.set("workflow.num_rounds", 2)
    federation = InProcessFederation(job, {site.name: read_datalist(site) for site in sorted(data.iterdir())})
    start = federation.model.weights
    federation.run()
    assert federation.events == [] and len(federation.rounds) == 2, federation.events
    assert any(not np.array_equal(federation.model.weights[name], start[name]) for name in start)
    print("trained", job.name)
"""


def methods():
    """Files by path and rows by heading, of each section of the page that adds a method."""
    found = defaultdict(lambda: ({}, []))
    for part in re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        title = part.split("\n", 1)[0]
        files, rows = dict(_FILE.findall(part)), _ROW.findall(part)
        if files or rows:
            found[title] = (files, rows)
    return dict(found)


def digests(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def touched(before, after):
    """Paths that differ; a job folder is one of them."""
    paths = {path for path in {*before, *after} if before.get(path) != after.get(path)}
    return {"/".join(path.split("/")[:2]) if path.startswith("jobs/") else path for path in paths}


def add(copy, files, rows):
    """What the page tells a person to do."""
    for path, content in files.items():
        target = copy / path
        if path.startswith("jobs/"):
            folder = copy.joinpath(*Path(path).parts[:2])
            if not folder.exists():
                shutil.copytree(copy / "jobs" / "hippocampus_fedavg", folder)
                method = folder.name.removeprefix("hippocampus_")
                for place, key, value in (
                    ("meta.json", "name", folder.name),
                    ("app/config/fedseg.json", "method", method),
                ):
                    told = json.loads((folder / place).read_text("utf-8"))
                    (folder / place).write_text(json.dumps({**told, key: value}), "utf-8")
            content = json.dumps({**json.loads(target.read_text("utf-8")), **json.loads(content)})
        else:
            assert not target.exists(), path
        target.write_text(content, "utf-8")
    for heading, row in rows:
        insert_row(copy / TABLE, heading, row)


def insert_row(table, heading, row):
    """Put a row at the end of the table that follows a heading."""
    parts = re.split(r"(^## [^\n]+\n)", table.read_text("utf-8"), flags=re.MULTILINE)
    places = [i for i, part in enumerate(parts) if part[3:-1].lower().replace(" ", "-") == heading]
    (place,) = (i for i in places if parts[i].startswith("## "))
    body, last = parts[place + 1], re.compile(r"(?:^\|[^\n]*\n)+", re.MULTILINE).search(parts[place + 1])
    parts[place + 1] = body[: last.end()] + row + body[last.end() :]
    table.write_text("".join(parts), "utf-8")


def run(copy, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(copy / "custom"), str(copy / "tests")])}
    done = subprocess.run([sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """The copy with every method of the page, and by section the paths that adding it touched."""
    copy = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, copy / name)
    counts, before = {}, digests(copy)
    for title, (files, rows) in methods().items():
        add(copy, files, rows)
        after = digests(copy)
        counts[title], before = touched(before, after), after
    run(copy, "scripts/write_component_lists.py")
    assert touched(before, digests(copy)) == WRITTEN
    return copy, counts


def test_the_page_adds_one_method_of_each_sort(changed):
    _, counts = changed
    assert len(counts) == 7
    for title, paths in counts.items():
        places = sorted(path.split("/")[0] for path in paths)
        assert places == ["custom", "docs", "jobs", "tests"], f"{title}: {paths}"


def test_the_methods_pass_their_own_tests_and_those_of_all_jobs_and_methods(changed):
    copy, counts = changed
    own = [path for paths in counts.values() for path in paths if path.startswith("tests/")]
    standing = ("docs/test_method_table.py", "jobs/test_short_jobs.py", "jobs/test_allowed_components.py")
    run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", *own, *(f"tests/{file}" for file in standing))


def test_their_jobs_train_in_one_process(changed, tmp_path):
    copy, counts = changed
    folders = sorted(path for paths in counts.values() for path in paths if path.startswith("jobs/"))
    told = run(copy, "-c", TRAIN, str(tmp_path / "data"), *folders)
    assert told.split("\n")[:-1] == [f"trained {Path(folder).name}" for folder in folders]
