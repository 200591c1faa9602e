"""Fixtures for all tests: the real images where they are, and tiny images made on the fly."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import settings
from nvflare.private.fed.utils.fed_utils import nvflare_fobs_initialize

from fedseg.data.datalist import Case

# The first call of a compiled sum takes seconds, and so does any call on a machine that is busy.
settings.register_profile("fedseg", deadline=None)
settings.load_profile("fedseg")

DEFAULT_TEST_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


# Files that take a minute and more: first those in which seconds count, beside one that is a single process.
LONG = (
    "e2e/test_process_faults.py", "e2e/test_faults.py", "simulation/test_in_process_jobs.py",
    "e2e/test_local_federation.py", "e2e/test_simulation.py", "e2e/test_refusals.py", "e2e/test_channels.py",
    "e2e/test_encryption.py", "e2e/test_every_job_runs.py", "e2e/test_resume.py", "e2e/test_privacy_run.py",
    "e2e/test_local_federation_script.py", "simulation/test_in_process.py",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers long files come first, then others of whole runs: quick ones fill up the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: place(item.nodeid.partition("::")[0].removeprefix("tests/")))


def place(file: str) -> int:
    """Where a file of the folder of tests stands among all."""
    return LONG.index(file) if file in LONG else len(LONG) + (not file.startswith("e2e/"))


@pytest.fixture(scope="session", autouse=True)
def flare_serialises() -> None:
    """As in FLARE's own processes: what is serialised before FLARE has declared how is serialised wrongly ever after,
    by every later test in this process.
    """
    nvflare_fobs_initialize()


@pytest.fixture(scope="session", autouse=True)
def no_loss_of_power() -> Iterator[None]:
    """The tests' own process forces nothing to the disk: only a loss of power takes what was written, and no test has
    one. A run forces 300 files. Processes that tests start do so as always.
    """
    with pytest.MonkeyPatch.context() as patch:
        # It too fails for what is no open file.
        patch.setattr(os, "fsync", os.fstat)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread_everywhere() -> None:
    """Fixtures of a whole module are made before those of a test: they sum as the tests do."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads wait for each other on images as small as those of the tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images; tests that need it carry the mark ``images``."""
    folder = Path(os.environ.get("FEDSEG_TEST_DATA") or DEFAULT_TEST_DATA)
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} does not exist; name their folder in FEDSEG_TEST_DATA")
    return folder


def save_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write an array as NIfTI (1 mm, RAS where no affine is given) and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


@pytest.fixture
def make_case(tmp_path: Path) -> Callable[..., Case]:
    """A factory of tiny cases on disk: random images, and a label that holds a box of each given value."""

    def make(
        name: str = "case",
        *,
        channels: int = 1,
        shape: Sequence[int] = (8, 9, 10),
        values: Sequence[float] = (1, 2),
        affine: np.ndarray | None = None,
        low: float = 1.0,
        high: float = 100.0,
        patient: str | None = None,
        box: int = 2,
        seed: int | None = None,
    ) -> Case:
        generator = np.random.default_rng(sum(name.encode()) if seed is None else seed)
        images = tuple(
            save_nifti(
                tmp_path / "images" / f"{name}_{channel}.nii.gz",
                generator.uniform(low, high, tuple(shape)).astype(np.float32),
                affine,
            )
            for channel in range(channels)
        )
        label = np.zeros(tuple(shape), np.float32 if any(v != int(v) for v in values) else np.uint8)
        for index, value in enumerate(values):
            label[index, :box, :box] = value
        label_file = save_nifti(tmp_path / "labels" / f"{name}.nii.gz", label, affine)
        return Case(images, label_file, patient or name)

    return make
