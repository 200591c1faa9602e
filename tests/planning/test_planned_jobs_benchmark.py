"""The benchmark of proposed jobs draws patients: all cases of one stay on one side."""

import sys
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import planned_jobs  # noqa: E402

from fedseg.data.datalist import SPLITS, Case, Datalist  # noqa: E402
from fedseg.planning.proposed_job import propose_job  # noqa: E402
from fedseg.statistics.document import FederationStatistics  # noqa: E402
from statistics_of_tiny import TINY, tiny_cases  # noqa: E402

CASES = [Case((Path(f"{i}_image.nii.gz"),), Path(f"{i}.nii.gz"), f"p{i // 3}") for i in range(300)]


def test_the_few_patients_of_brats_are_enough_for_a_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(planned_jobs, "get_task", lambda name: TINY)
    proposed: list[FederationStatistics] = []
    monkeypatch.setattr(planned_jobs, "propose_job", lambda told, voxels: proposed.append(told) or propose_job(told))
    sites = {f"s{n}": Datalist(training=tuple(tiny_cases(tmp_path / f"s{n}", range(n)))) for n in (4, 2)}
    assert prod(planned_jobs.plan_of("brats", sites).plan["task"]["patch_size"]) > 1
    assert {site: told.cases for site, told in proposed[0].sites.items()} == {"s4": 4, "s2": 2}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["hippocampus", "brats"])
def test_no_patient_is_on_two_sides(name, seed, tmp_path, monkeypatch):
    halves = {"one": CASES[:150], "real": [replace(case, patient=f"q{case.patient}") for case in CASES[150:]]}
    monkeypatch.setattr(planned_jobs, "read_source", lambda path, task: tuple(CASES))
    monkeypatch.setattr(planned_jobs, "institutions", lambda name, data, out: halves)
    monkeypatch.setattr(planned_jobs, "halved", lambda case, folder: case)  # the cases have no files
    sides = [
        {case.patient for case in datalist.split(split)}
        for datalist in planned_jobs.sites_of(name, tmp_path, tmp_path, seed).values()
        for split in SPLITS
    ]
    assert all(sides)
    assert sum(map(len, sides)) == len(set().union(*sides))
