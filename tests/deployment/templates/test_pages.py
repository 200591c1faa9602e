"""What the pages about containers, Kubernetes and Slurm do to a kit works, and the files that they name exist."""

import re
import shutil

import pytest

from fedseg.jobs.allowed_components import site_resources
from prepared_kits import ROOT, SERVER, SITE, TEMPLATES, blocks, load, run

PAGES = ("containers", "kubernetes", "slurm")
NOT_HERE = ("docker build", "docker compose", "kubectl", "sbatch", "chown")


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_does_to_a_kit_works(page, kits, tmp_path):
    here = [block for block in blocks(page) if not any(word in block for word in NOT_HERE)]
    assert any("fedseg equip" in block for block in here)
    for kit in (SITE, SERVER):
        shutil.copytree(kits / kit, tmp_path / kit)
    shutil.copytree(TEMPLATES, tmp_path / "workspace_templates")
    image = tmp_path / "fedseg.sif"
    image.touch()
    settings = tmp_path / "workspace_templates" / "slurm" / "prepare.yaml"
    settings.write_text(settings.read_text("utf-8").replace("/opt/fedseg/fedseg.sif", str(image)), "utf-8")
    for block in here:
        done = run("bash", "-euo", "pipefail", "-c", block, cwd=tmp_path, env={"HOME": str(tmp_path)})
        assert done.returncode == 0, done.stdout + done.stderr
        (made,) = re.findall(r"--output (\S+)", block)
        resources = load(tmp_path / made / "local" / "resources.json")
        assert resources["class_allow_list"] == site_resources()["class_allow_list"]
        assert (tmp_path / made / "local" / "study_runtime.yaml").is_file()
    for block in blocks(page):
        assert run("bash", "-n", "-c", block).returncode == 0


def test_files_that_the_pages_name_exist():
    text = "".join((ROOT / "docs" / "how-to" / f"{page}.md").read_text("utf-8") for page in (*PAGES, "own-keys"))
    named = set(re.findall(r"workspace_templates/[\w./-]+\w", text))
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()
