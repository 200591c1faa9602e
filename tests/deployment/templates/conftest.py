"""Kits of the template's federation, and the same as `nvflare deploy prepare` leaves them."""

import pytest
import yaml

from fedseg.deployment.kits.project_file import read_project
from fedseg.deployment.kits.provisioning import provision
from prepared_kits import DOCKER, KUBERNETES, POLICY, SERVER, SITE, SLURM, TEMPLATES, run


@pytest.fixture(scope="session")
def kits(tmp_path_factory):
    """Kits of the template's federation."""
    project = read_project(TEMPLATES / "three_hospitals")
    federation = provision(project, POLICY, tmp_path_factory.mktemp("kits") / "out", with_wheel=False)
    return federation.folder / "kits"


@pytest.fixture(scope="session")
def prepared(kits, tmp_path_factory):
    """The same kits as `nvflare deploy prepare` leaves them with the templates' settings."""
    folder = tmp_path_factory.mktemp("prepared")
    image = folder / "fedseg.sif"
    image.touch()
    made = {}
    for runtime, templates in (("docker", DOCKER), ("k8s", KUBERNETES), ("slurm", SLURM)):
        settings = folder / f"{runtime}.yaml"
        settings.write_text(
            (templates / "prepare.yaml").read_text("utf-8").replace("/opt/fedseg/fedseg.sif", str(image)), "utf-8"
        )
        for kit in (SITE, SERVER):
            if runtime == "slurm" and kit == SERVER:
                content = yaml.safe_load(settings.read_text("utf-8"))
                del content["parent"]
                settings.write_text(yaml.safe_dump(content), "utf-8")
            out = folder / runtime / kit
            done = run(
                "nvflare", "deploy", "prepare", kits / kit, "--output", out, "--config", settings,
                env={"HOME": str(folder)},
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            made[runtime, kit] = out
    return made
