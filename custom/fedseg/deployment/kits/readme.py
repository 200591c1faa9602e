"""The page in a kit for whoever unpacks it: what the kit is, and the five commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedseg.deployment.kits.project_file import EVALUATE_ONLY
from fedseg.version import __version__

README_FILE = "readme.txt"
_START = """{name}: a kit of the federation {project}, made by fedseg {version}.

It holds a private key. Keep it on this machine, readable for one user only.
Each step below is a command; run them in this folder.

"""
_SITE = """1. Install what the federation runs, once:      pip install ./fedseg-*.whl
2. {fill}
3. See what is missing, and what to do:         fedseg site check
4. Start:                                       fedseg site start
5. See whether it runs, and end it:             fedseg site status
                                                fedseg site stop

Do not use startup/start.sh: it starts FLARE without the checks, whatever is red.
"""
_EVALUATOR = """This site scores models of the federation on its own cases and never trains: its local/fedseg.json says
evaluate_only. Beside the fact that it takes part, means of scores and numbers of cases leave it, and nothing else.

"""
_FILL = {
    "client": "Say where the data is, and what may leave:   local/fedseg.json",
    "server": "Say where the server keeps its state:        local/fedseg.json",
}
_PERSON = """1. Install what the federation runs, once:      pip install ./fedseg-*.whl
2. See the federation's jobs:                   fedseg jobs --kit .
3. Submit a job and wait for its end:           fedseg submit JOB --kit . --wait
4. Bring models and report of an ended job:     fedseg fetch JOB_ID --kit . --out runs/first
5. Let a stopped job go on:                     fedseg resume JOB_ID --kit .
"""
_END = """
Every command explains itself with --help. What fedseg names as docs/..., jobs/... or workspace_templates/... is written
by this command; begin with docs/index.md:     fedseg files --out fedseg-files
"""


def write_readme(kit: Path, entry: Mapping[str, Any], project: str) -> None:
    """Write the page in place of FLARE's, whose commands are not those of fedseg.

    Args:
        kit: folder of the kit.
        entry: of the participant in the project file.
        project: its name.
    """
    kind = str(entry["type"])
    steps = _SITE.format(fill=_FILL[kind]) if kind in _FILL else _PERSON
    if entry.get(EVALUATE_ONLY):
        steps = _EVALUATOR + steps
    facts = {"name": entry["name"], "project": project, "version": __version__}
    (kit / README_FILE).write_text(_START.format(**facts) + steps + _END.format(**facts), "utf-8")
