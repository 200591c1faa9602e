"""Pages, job folders and templates come with the package, wherever it was installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedseg.cli import main
from fedseg.files.shipped import FOLDER, SHIPPED, find_shipped_files
from fedseg.jobs.job import read_job

ROOT = Path(__file__).parents[2]
FILES = (
    "docs/index.md", "jobs/hippocampus_fedavg/meta.json", "workspace_templates/three_hospitals/project.yml",
    "experiments/hippocampus_ten_sites.yaml",
)  # fmt: skip


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as a wheel installs it, with small files in place of the many; gives the folder of these."""
    package = folder / "site-packages" / "fedseg"
    monkeypatch.setattr("fedseg.files.shipped._PACKAGE", package)
    for name in (*FILES, *(name for name in SHIPPED if (ROOT / name).is_file())):
        (package / FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (package / FOLDER / name).write_text(name)
    return package / FOLDER


def test_they_are_the_repositorys_where_this_runs_from_its_sources():
    assert find_shipped_files() == ROOT


def test_an_installed_package_writes_what_its_wheel_brought(tmp_path, monkeypatch, capsys):
    shipped = installed(tmp_path, monkeypatch)
    assert find_shipped_files() == shipped
    assert main(["files", "--out", str(tmp_path / "out")]) == 0
    assert all((tmp_path / "out" / name).read_text() == name for name in FILES)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(SHIPPED)
    assert str(tmp_path / "out" / "docs" / "index.md") in "".join(capsys.readouterr().out.split("\n"))


def test_jobs_and_pages_are_those_of_the_repository(tmp_path):
    assert main(["files", "--out", str(tmp_path / "out")]) == 0
    assert read_job(tmp_path / "out" / "jobs" / "hippocampus_fedavg").check().method == "fedavg"
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (ROOT / name).read_bytes()


def test_a_place_inside_what_is_copied_is_refused(tmp_path, monkeypatch, capsys):
    shipped = installed(tmp_path, monkeypatch)
    assert main(["files", "--out", str(shipped / "docs" / "copy")]) == 2
    assert "which is copied there" in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in (shipped / "docs").iterdir()) == ["index.md"]


def test_a_package_without_them_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fedseg.files.shipped._PACKAGE", tmp_path / "site-packages" / "fedseg")
    assert find_shipped_files() is None
    assert main(["files", "--out", str(tmp_path / "out")]) == 2
    assert "without its pages" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
