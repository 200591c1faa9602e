"""The page on adding a site, followed word by word against a running federation: its own commands, in its own order."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from federation_parts import COORDINATOR, POLICY, ROOT, TEMPLATE, tiny_job

from fedseg.data.datalist import read_datalist, write_datalist
from fedseg.deployment.kits.certificates import read_certificate
from fedseg.deployment.kits.installed_kit import read_kit
from fedseg.deployment.kits.project_file import PROJECT_FILE, on_this_machine, read_project
from fedseg.deployment.kits.provisioned_kits import sha256_of
from fedseg.deployment.local.federation import running
from fedseg.deployment.local.processes import listens
from fedseg.deployment.operation.kit_processes import find_processes
from fedseg.deployment.operation.start_stop import stop
from tiny import make_sites

pytestmark = pytest.mark.full

PAGE = ROOT / "docs" / "how-to" / "add-a-site.md"
NEW, OLD, SECONDS = "hospital-d", {"alpha": (2, 1), "beta": (2, 1)}, 240
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections():
    """Heading -> the page's blocks below it, as (language, text), in order."""
    parts = _HEADING.split(PAGE.read_text("utf-8"))
    return {title: _FENCE.findall(text) for title, text in zip(parts[1::2], parts[2::2], strict=True)}


class Reader:
    """Somebody who follows the page in a folder; what the page leaves to the reader is put in.

    Args:
        folder: where this person works.
        substitutions: words of the page -> what stands for them here.
    """

    def __init__(self, folder, home, substitutions):
        self.folder, self.home, self.substitutions = folder, home, substitutions

    def run(self, block):
        """Run the lines of one block as typed; they must all succeed."""
        for word, meant in self.substitutions.items():
            block = block.replace(word, str(meant))
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=self.folder, env={**os.environ, "PATH": path, "HOME": str(self.home), "COLUMNS": "240"},
            capture_output=True, encoding="utf-8", timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done

    def becomes(self, block, wanted):
        """Repeat a block until it says what it shall: the page speaks of a few seconds."""
        end = time.monotonic() + SECONDS
        while wanted not in (done := self.run(block)).stdout:
            assert time.monotonic() < end, done.stdout
            time.sleep(1)
        return done


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adding")
    at = {name: folder / name for name in ("coordinator", "hospital", "out", "jobs", "home")}
    for path in at.values():
        path.mkdir()
    data = make_sites(folder / "data", {**OLD, NEW: (2, 1)})
    job = tiny_job("hippocampus_fedcostwavg", at["jobs"], 1)
    page = sections()
    (at["coordinator"] / "our_federation").mkdir()
    (at["coordinator"] / "site_policy").symlink_to(ROOT / "workspace_templates" / "site_policy")
    with running(read_project(TEMPLATE), POLICY, data, list(OLD), at["out"]) as local:
        # The project file from which this federation was made, as the page supposes it.
        project = on_this_machine(read_project(TEMPLATE), list(OLD), local.port)
        (at["coordinator"] / "our_federation" / PROJECT_FILE).write_text(yaml.safe_dump(dict(project)))
        coordinator = Reader(
            at["coordinator"],
            at["home"],
            # Where the federation of this test lies, and a job that takes seconds.
            {
                "runs/kits": at["out"] / "provisioned",
                "jobs/brats_fedcostwavg": job.folder,
                "runs/with_hospital_d": folder / "run",
            },
        )
        hospital = Reader(
            at["hospital"],
            at["home"],
            # The environment of the tests stands for the one of the page; that the wheel can be installed is seen by
            # unpacking it with pip, without the packages that it requires.
            {
                "python3.11 -m venv environment": "mkdir -p environment/bin && touch environment/bin/activate",
                "pip install": "pip install --quiet --no-deps --no-index --target environment/packages",
            },
        )
        kit = at["hospital"] / NEW
        try:
            with local.coordinator(SECONDS):
                pass  # Every site is connected.
            before = SimpleNamespace(
                pids=sorted(process.pid for process in local.processes()),
                kits={k.name: sha256_of(k.archive) for k in local.federation.kits},
            )
            yield follow(page, coordinator, hospital, kit, data, local, before, folder)
        finally:
            if (kit / "startup").is_dir():
                stop(read_kit(kit))
    assert not listens(local.port)


def follow(page, coordinator, hospital, kit, data, local, before, folder):
    """The page from its first command to its last; returns what was seen on the way."""
    make, install, use, renew, leave = (
        page[title]
        for title in (
            "Coordinator: make the kit",
            "Site: install it",
            "Coordinator: run a job with it",
            "When its certificate ends",
            "If the site shall leave again",
        )
    )
    seen = SimpleNamespace(before=before, kit=kit, local=local, folder=folder)
    ((_, block),) = make
    seen.make = coordinator.run(block)
    seen.sums = [sha256_of(local.folder / "provisioned" / "archives" / f"{NEW}.tar.gz")]
    shutil.copy(local.folder / "provisioned" / "archives" / f"{NEW}.tar.gz", hospital.folder)
    (_, unpack), (language, profile), (_, check_and_start), (_, look) = install
    assert language == "json"
    seen.unpack = hospital.run(unpack)
    (kit / "local" / "fedseg.json").write_text(json.dumps(filled_in(json.loads(profile), data / NEW, folder)))
    seen.start = hospital.run(check_and_start)
    seen.status = hospital.becomes(look, f"connected to localhost:{local.port}\n")
    (_, submit), (_, fetch) = use
    seen.submit = coordinator.run(submit)
    coordinator.substitutions["JOB_ID"] = seen.submit.stdout.strip()
    seen.fetch = coordinator.run(fetch)
    seen.summary = json.loads((folder / "run" / "report" / "summary.json").read_text("utf-8"))
    seen.certificates = [certificate_of(kit)]
    write_down(seen.make.stdout, coordinator.folder / "our_federation" / PROJECT_FILE)
    (_, anew), (_, change) = renew
    seen.renew = coordinator.run(anew)
    seen.sums.append(sha256_of(local.folder / "provisioned" / "archives" / f"{NEW}.tar.gz"))
    shutil.copy(local.folder / "provisioned" / "archives" / f"{NEW}.tar.gz", hospital.folder)
    seen.change = hospital.run(change)
    seen.status_anew = hospital.becomes(look, f"connected to localhost:{local.port}\n")
    seen.certificates.append(certificate_of(kit))
    seen.pids = sorted(process.pid for process in local.processes())
    seen.kits = {k.name: sha256_of(k.archive) for k in local.federation.kits}
    ((_, block),) = leave
    seen.leave = hospital.run(block)
    return seen


def certificate_of(kit):
    return read_certificate(kit / "startup" / "client.crt")


def write_down(said, project):
    """Put the line that the command printed into the project file, as the page asks for."""
    (line,) = [line for line in said.splitlines() if line.startswith("  - {")]
    content = yaml.safe_load(project.read_text("utf-8"))
    content["participants"] += yaml.safe_load(line)
    project.write_text(yaml.safe_dump(content), "utf-8")


def filled_in(profile, datalist, folder):
    """The page's profile with the data of this test: few images that fit the task of hippocampi."""
    assert set(profile) == {"datasets", "state", "policy"}
    hippocampi = datalist.with_name("hippocampi") / "datalist.json"
    write_datalist(read_datalist(datalist), hippocampi)
    profile["datasets"] = {"hippocampus": str(hippocampi), "*": str(datalist)}
    profile["state"] = str(folder / "state")
    profile["policy"] = {**profile["policy"], "tasks": ["tiny"], "jobs": ["hippocampus_*"], "min_cases": 2}
    return profile


def test_the_kit_is_made_and_its_fingerprint_told(seen):
    first, second = (f"{digest}  {NEW}.tar.gz" for digest in seen.sums)
    assert first in seen.make.stdout
    assert first in seen.unpack.stdout, "what the engineer compares by telephone"
    assert second in seen.renew.stdout
    assert second in seen.change.stdout


def test_the_check_of_the_new_site_finds_nothing_red(seen):
    assert re.search(rf"(GREEN|YELLOW): {NEW} is ready", seen.start.stdout)
    assert "TLSv1.3 with the kit's certificate and root" in " ".join(seen.start.stdout.split())
    assert re.search(r"green.*FLARE.*The server's FLARE answers", seen.start.stdout)
    assert re.search(r"green.*clock.*As the server's", seen.start.stdout)
    assert re.search(r"green.*files.*files are as the coordinator signed them", seen.start.stdout)


def test_the_new_site_takes_part_in_a_job(seen):
    assert f"connected sites: alpha, beta, {NEW}" in seen.submit.stderr
    assert [sorted(entry["sites"]) for entry in seen.summary["rounds"]] == [["alpha", "beta", NEW]]
    assert sorted(seen.summary["final"]["sites"]) == ["alpha", "beta", NEW]
    assert seen.summary["events"] == []


def test_the_others_were_not_restarted_and_keep_their_kits(seen):
    assert len(seen.before.pids) == 1 + len(OLD)
    assert set(seen.before.pids) <= set(seen.pids)
    assert seen.kits == seen.before.kits
    assert COORDINATOR in seen.kits


def test_the_renewed_site_is_connected_with_another_certificate_of_the_same_root(seen):
    before, after = seen.certificates
    assert before.subject == after.subject
    assert before.fingerprint != after.fingerprint
    root = read_certificate(seen.kit / "startup" / "rootCA.pem").fingerprint
    assert root in seen.make.stdout
    assert root in seen.renew.stdout
    assert "NOT" not in seen.status_anew.stdout
    assert re.search(rf"(GREEN|YELLOW): {NEW} is ready", seen.change.stdout)


def test_the_site_leaves_and_nothing_of_it_is_left(seen):
    assert seen.leave.stdout.rstrip().endswith(f"{NEW} is stopped.")
    assert not find_processes(read_kit(seen.kit))


def test_every_command_of_the_page_was_run():
    """A block that is added to the page must be followed here, too."""
    counts = {title: len(blocks) for title, blocks in sections().items()}
    assert counts == {
        "Coordinator: make the kit": 1,
        "Site: install it": 4,
        "Coordinator: run a job with it": 2,
        "When its certificate ends": 2,
        "If the site shall leave again": 1,
        "When it does not work": 0,
    }
