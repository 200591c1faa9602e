"""What tests of the templates for containers, Kubernetes and Slurm share, on a machine with none of these."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEMPLATES = ROOT / "workspace_templates"
DOCKER, KUBERNETES, SLURM = (TEMPLATES / name for name in ("docker", "kubernetes", "slurm"))
POLICY = TEMPLATES / "site_policy" / "local"
SITE, SERVER = "hospital-a", "server.example.org"
PROGRAMS = Path(sys.executable).parent
USER = 10001
WORKSPACE = "/var/tmp/nvflare/workspace"


def load(path):
    return json.loads(path.read_text("utf-8"))


def run(*command, **options):
    path = os.pathsep.join([str(PROGRAMS), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, **options.pop("env", {})}
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=120, check=False, env=env, **options
    )


def instructions():
    """The Dockerfile as (instruction, rest) with continued lines joined and comments left out."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def place_kit(source, target):
    """A kit as the image sees it: a folder of the image's user, in it ``startup`` and ``local``, read-only."""
    target.mkdir()
    for part in ("startup", "local"):
        shutil.copytree(source / part, target / part)
        for path in (target / part, *(target / part).rglob("*")):
            if os.getuid() == 0:
                os.chown(path, USER, USER)
            path.chmod(0o500 if path.is_dir() or path.suffix == ".sh" else 0o400)
    if os.getuid() == 0:
        os.chown(target, USER, USER)


def blocks(page):
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text("utf-8")
    return re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
