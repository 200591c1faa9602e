"""Partition into sites, the simulated scanner shift, and `fedseg partition`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from fedseg.cli import main
from fedseg.data.datalist import SPLITS, Case, Datalist, read_datalist, write_datalist
from fedseg.data.partition import (
    Sites,
    foreground_volume,
    partition_by_csv,
    partition_by_dirichlet,
    partition_by_sizes,
    partition_equally,
)
from fedseg.data.scanner_shift import ScannerShift, apply_shift, draw_shift
from fedseg.data.shared_cases import draw_shared
from fedseg.data.site_folders import find_sites
from fedseg.errors import DataError, UsageError

MakeCase = Callable[..., Case]


def cases_of(patients: Sequence[str]) -> tuple[Case, ...]:
    return tuple(Case((Path(f"/d/{i}.nii.gz"),), Path(f"/d/{i}_seg.nii.gz"), p) for i, p in enumerate(patients))


def numbered(count: int) -> tuple[Case, ...]:
    return cases_of([f"p{i:03d}" for i in range(count)])


def patients(sites: Sites) -> list[set[str]]:
    return [{c.patient for c in cases} for cases in sites.values()]


def table(path: Path, *rows: str, header: str = "Partition_ID,Subject_ID") -> Path:
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


def test_sizes_are_met_exactly_and_no_case_is_twice() -> None:
    sites = partition_by_sizes(numbered(10), {"a": 5, "b": 3, "c": 1}, 0)
    assert [len(c) for c in sites.values()] == [5, 3, 1]
    assert len(set.union(*patients(sites))) == 9
    assert partition_by_sizes(numbered(10), {"a": 5, "b": 3, "c": 1}, 0) == sites
    assert partition_by_sizes(numbered(10), {"a": 5, "b": 3, "c": 1}, 1) != sites


@pytest.mark.parametrize(
    "spread",
    [
        lambda cases: partition_by_sizes(cases, {"a": 9, "b": 8, "c": 5}, 0),
        lambda cases: partition_equally(cases, ["a", "b", "c"], 0),
        lambda cases: partition_by_dirichlet(cases, ["a", "b"], 1.0, {c.patient: 1.0 for c in cases}, 0),
    ],
)
def test_a_patient_is_at_one_site_only(spread: Callable[[Sequence[Case]], Sites]) -> None:
    sites = spread(cases_of([f"p{i // 3}" for i in range(30)]))
    for one in sites:
        for other in set(sites) - {one}:
            assert not {c.patient for c in sites[one]} & {c.patient for c in sites[other]}
    assert max(len(c) for c in sites.values()) >= 9


def test_equal_sites_take_everybody() -> None:
    sites = partition_equally(numbered(11), ["a", "b", "c"], 0)
    assert [len(c) for c in sites.values()] == [4, 4, 3]


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match="sum to 11, but there are only 10 cases"):
        partition_by_sizes(numbered(10), {"a": 6, "b": 5}, 0)
    with pytest.raises(UsageError, match="at least 1"):
        partition_by_sizes(numbered(10), {"a": 0, "b": 5}, 0)


def test_dirichlet_skews_target_sizes_more_for_small_alpha() -> None:
    cases = numbered(200)
    volumes = {c.patient: float(i) for i, c in enumerate(cases)}

    def spread_of_means(alpha: float) -> float:
        result = []
        for seed in range(5):
            sites = partition_by_dirichlet(cases, ["a", "b", "c"], alpha, volumes, seed, least=2)
            assert sum(len(c) for c in sites.values()) == 200
            result.append(np.std([np.mean([volumes[c.patient] for c in site]) for site in sites.values()]))
        return float(np.mean(result))

    assert spread_of_means(0.2) > 3 * spread_of_means(1000.0)
    assert [len(c) for c in partition_by_dirichlet(cases, ["a", "b"], 1e6, volumes, 0).values()] == [100, 100]


@pytest.mark.parametrize(
    ("alpha", "count", "words"), [(0.0, 9, "above 0"), (1.0, 3, "at least 2"), (1e-4, 12, "larger")]
)
def test_dirichlet_that_leaves_a_site_empty_is_refused(alpha: float, count: int, words: str) -> None:
    cases = numbered(count)
    with pytest.raises(UsageError, match=words):
        partition_by_dirichlet(cases, list("abcdef"), alpha, {c.patient: 1.0 for c in cases}, 0, least=2)


def test_table_of_fets_finds_brats_2021_by_number(tmp_path: Path) -> None:
    file = table(tmp_path / "t.csv", "10,FeTS2022_01341", "2,FeTS2022_00006", "2,FeTS2022_00007", "3,FeTS2022_09999")
    cases = cases_of(["BraTS2021_01341", "BraTS2021_00006", "BraTS2021_00007", "BraTS2021_00008"])
    sites, without_images = partition_by_csv(cases, file)
    assert {name: [c.patient for c in site] for name, site in sites.items()} == {
        "site-2": ["BraTS2021_00006", "BraTS2021_00007"],
        "site-10": ["BraTS2021_01341"],
    }
    assert list(sites) == ["site-2", "site-10"]
    assert without_images == 1


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        (["1,x"], "Site,Subject_ID", "lacks the column Partition_ID"),
        (["1,p000", "2,p000"], "Partition_ID,Subject_ID", "puts the subject p000 twice"),
        (["1,FeTS2022_00001"], "Partition_ID,Subject_ID", "names none of the 3 patients"),
    ],
)
def test_table_that_cannot_be_used(tmp_path: Path, rows: list[str], header: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        partition_by_csv(numbered(3), table(tmp_path / "t.csv", *rows, header=header))


def at_sites(sizes: Sequence[int]) -> dict[str, tuple[Case, ...]]:
    """Training cases of sites a, b...; every patient is named after its site."""
    return {s: cases_of([f"{s}{i:02d}" for i in range(n)]) for s, n in zip("abcd", sizes, strict=False)}


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.001, 1), (0.05, 2), (0.5, 20), (1.0, 40)])
def test_shared_cases_are_a_fraction_of_all_training_cases(fraction: float, expected: int) -> None:
    training = at_sites([24, 12, 4])
    drawn = draw_shared(training, fraction, 0)
    assert list(drawn) == ["a", "b", "c"]
    assert sum(len(positions) for positions in drawn.values()) == expected
    for site, positions in drawn.items():
        assert list(positions) == sorted(set(positions))
        assert all(0 <= i < len(training[site]) for i in positions)


def test_the_shared_draw_depends_on_the_seed_and_not_on_the_order_of_files() -> None:
    def patients_of(training: dict[str, tuple[Case, ...]], seed: int) -> set[str]:
        return {training[s][i].patient for s, found in draw_shared(training, 0.3, seed).items() for i in found}

    training = at_sites([20, 10])
    turned = {site: cases[::-1] for site, cases in training.items()}
    assert patients_of(training, 0) == patients_of(turned, 0)
    assert patients_of(training, 0) != patients_of(training, 1)


@pytest.mark.parametrize(
    ("sizes", "fraction", "words"), [([5, 5], -0.1, "--shared is -0.1"), ([5, 5], 1.1, "1.1"), ([5], 0.1, "two sites")]
)
def test_a_shared_fraction_that_cannot_be_is_refused(sizes: list[int], fraction: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        draw_shared(at_sites(sizes), fraction, 0)


def test_foreground_volume_is_in_cubic_millimetres(make_case: MakeCase) -> None:
    case = make_case("v", values=(1, 2), box=3, affine=np.diag([1, 2, 0.5, 1.0]))
    assert foreground_volume(case) == pytest.approx(2 * 3 * 3 * 1.0)


MR = ScannerShift("MR", 1.0, 0.8, 0.03, 1.3, 0.8, (0.2,) * 9)


def brain(shape: tuple[int, int, int] = (12, 14, 16)) -> np.ndarray:
    volume = np.zeros(shape, np.float32)
    volume[3:-3, 3:-3, 3:-3] = np.random.default_rng(0).uniform(100, 900, tuple(n - 6 for n in shape))
    return volume


def test_shift_of_mr_keeps_the_background_and_the_input() -> None:
    volume = brain()
    before = volume.copy()
    shifted = apply_shift(volume, (1, 1, 1), MR, np.random.default_rng(0))
    assert (volume == before).all()
    assert (shifted[volume == 0] == 0).all()
    assert (shifted[volume != 0] > 0).all()
    assert shifted.dtype == np.float32
    assert np.abs(shifted - volume)[volume != 0].mean() > 20


def test_shift_of_nothing_changes_nothing() -> None:
    volume = brain()
    none = draw_shift(0.0, 3, "a", "MR")
    np.testing.assert_allclose(apply_shift(volume, (1, 1, 1), none, np.random.default_rng(0)), volume, rtol=1e-4)
    ct = volume - 1000
    same = apply_shift(ct, (1, 1, 1), draw_shift(0.0, 3, "a", "CT"), np.random.default_rng(0))
    np.testing.assert_allclose(same, ct, atol=1e-3)


def test_gain_and_gamma_of_mr_against_a_hand_calculation() -> None:
    volume = np.full((4, 4, 4), 100, np.float32)
    volume[0, 0, 0] = 25
    shift = ScannerShift("MR", 1.0, 0.0, 0.0, gain=2.0, gamma=0.5)
    shifted = apply_shift(volume, (1, 1, 1), shift, np.random.default_rng(0))
    assert shifted[0, 0, 0] == pytest.approx(2 * 100 * (25 / 100) ** 0.5)
    assert shifted[1, 1, 1] == pytest.approx(200)


def test_blur_of_mr_does_not_darken_the_rim() -> None:
    volume = brain()
    volume[volume != 0] = 500
    shifted = apply_shift(volume, (1, 1, 1), ScannerShift("MR", 1.0, 1.2, 0.0), np.random.default_rng(0))
    np.testing.assert_allclose(shifted, volume, rtol=1e-4)


def test_shift_of_ct_stays_plausible_in_hounsfield_units() -> None:
    volume = np.full((20, 20, 20), 50, np.float32)
    shift = ScannerShift("CT", 1.0, 1.0, 20.0, hu_offset=10.0)
    shifted = apply_shift(volume, (1, 1, 2.5), shift, np.random.default_rng(0))
    assert shifted.mean() == pytest.approx(60, abs=1)
    assert shifted.std() == pytest.approx(20, rel=0.05)


def test_scanner_is_drawn_by_site_and_seed_and_grows_with_strength() -> None:
    one = draw_shift(0.5, 0, "north", "MR")
    assert one == draw_shift(0.5, 0, "north", "MR")
    assert one != draw_shift(0.5, 0, "south", "MR")
    assert one != draw_shift(0.5, 1, "north", "MR")
    strong = draw_shift(1.0, 0, "north", "MR")
    assert strong.blur_mm == pytest.approx(2 * one.blur_mm)
    assert np.log(strong.gain) == pytest.approx(2 * np.log(one.gain))
    with pytest.raises(UsageError, match=r"--scanner-shift is 1\.5"):
        draw_shift(1.5, 0, "north", "MR")


@pytest.fixture
def source(tmp_path: Path, make_case: MakeCase) -> Path:
    """A datalist of twelve cases of the hippocampus task."""
    cases = tuple(make_case(f"v{i:02d}", box=1 + i % 4, seed=i) for i in range(12))
    return write_datalist(Datalist(cases, task="hippocampus"), tmp_path / "source" / "datalist.json")


def test_command_writes_sites_that_point_to_the_originals(source: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "sites"
    assert main(["partition", str(source), "--sizes", "6,4", "--out", str(out), "--test-fraction", "0.2"]) == 0
    printed = capsys.readouterr().out
    assert "site-1" in printed
    assert "2 of 12 cases are at no site" in printed
    assert sorted(p.name for p in out.iterdir()) == ["site-1", "site-2"]
    datalist = read_datalist(out / "site-1")
    assert [len(datalist.split(s)) for s in SPLITS] == [4, 1, 1]
    assert datalist.task == "hippocampus"
    assert all(c.images[0].is_relative_to(tmp_path / "images") for c in datalist.training)
    assert "simulated_scanner_shift" not in datalist.notes
    assert datalist.notes["partition"] == {"method": "sizes", "value": [6, 4], "seed": 0}


def test_command_with_scanner_shift_writes_images_and_says_so(source: Path, tmp_path: Path) -> None:
    command = ["partition", str(source), "--names", "north,south", "--scanner-shift", "0.8"]
    for out in ("one", "two"):
        assert main([*command, "--out", str(tmp_path / out)]) == 0
    datalist = read_datalist(tmp_path / "one" / "north")
    expected = draw_shift(0.8, 0, "north", "MR").to_dict()
    assert datalist.notes["simulated_scanner_shift"] == expected
    case = datalist.training[0]
    assert case.images[0].parent == tmp_path / "one" / "north" / "images"
    assert case.label is not None
    assert case.label.is_relative_to(tmp_path / "labels")
    image, original = nib.load(case.images[0]), nib.load(tmp_path / "images" / case.images[0].name)
    assert (image.affine == original.affine).all()
    assert not np.allclose(image.get_fdata(), original.get_fdata(), rtol=0.02)
    again = nib.load(tmp_path / "two" / "north" / "images" / case.images[0].name)
    assert (image.get_fdata() == again.get_fdata()).all()


def listed(folder: Path, site: str, split: str) -> list[str]:
    return [case.patient for case in read_datalist(folder / site).split(split)]


def test_command_with_shared_cases_adds_them_to_all_other_sites(source: Path, tmp_path: Path, capsys: Any) -> None:
    command = ["partition", str(source), "--names", "a,b,c", "--test-fraction", "0.2"]
    assert main([*command, "--out", str(tmp_path / "plain")]) == 0
    assert "leave their hospitals" not in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "shared"), "--shared", "0.5"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    own = {site: listed(tmp_path / "plain", site, "training") for site in "abc"}
    assert [len(patients) for patients in own.values()] == [2, 2, 2]
    given = {site: read_datalist(tmp_path / "shared" / site).notes["shared_cases"]["given"] for site in "abc"}
    assert sum(len(patients) for patients in given.values()) == 3
    for site in "abc":
        note = read_datalist(tmp_path / "shared" / site).notes["shared_cases"]
        received = {other: given[other] for other in "abc" if other != site and given[other]}
        assert note == {"fraction": 0.5, "given": given[site], "received": received}
        assert set(given[site]) <= set(own[site])
        assert listed(tmp_path / "shared", site, "training") == own[site] + [p for v in received.values() for p in v]
        for split in ("validation", "test"):
            assert listed(tmp_path / "shared", site, split) == listed(tmp_path / "plain", site, split)
    assert "3 training case(s) are at every site" in printed
    assert "In a real consortium they would leave their hospitals." in printed
    assert "are at no site" not in printed


def test_command_without_shared_cases_writes_what_it_always_wrote(source: Path, tmp_path: Path) -> None:
    command = ["partition", str(source), "--sites", "2", "--out"]
    assert main([*command, str(tmp_path / "without")]) == 0
    assert main([*command, str(tmp_path / "zero"), "--shared", "0"]) == 0
    for site in ("site-1", "site-2"):
        files = [(tmp_path / out / site / "datalist.json").read_bytes() for out in ("without", "zero")]
        assert files[0] == files[1]
        assert "shared_cases" not in read_datalist(tmp_path / "zero" / site).notes


def test_command_shares_images_with_the_scanner_of_their_hospital(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "sites"
    command = ["partition", str(source), "--names", "a,b", "--scanner-shift", "1", "--shared", "1", "--out", str(out)]
    assert main(command) == 0
    lists = {site: read_datalist(out / site) for site in "ab"}
    for site, other in ("ab", "ba"):
        count = len(lists[site].notes["shared_cases"]["given"])
        own, received = lists[site].training[:count], lists[site].training[count:]
        assert [c.patient for c in received] == [c.patient for c in lists[other].training[: len(received)]]
        assert {c.images[0].parent for c in own} == {out / site / "images"}
        assert {c.images[0].parent for c in received} == {out / other / "images"}
        assert all(c.images[0].is_file() for c in received)
        assert main(["check-data", "hippocampus", str(out / site)]) == 0


def test_command_with_a_table_can_choose_sites(source: Path, tmp_path: Path, capsys: Any) -> None:
    rows = [f"{1 + i // 5},v{i:02d}" for i in range(12)]
    file = table(tmp_path / "t.csv", *rows, "1,elsewhere")
    command = ["partition", str(source), "--csv", str(file), "--out"]
    assert main([*command, str(tmp_path / "a"), "--names", "site-2"]) == 0
    printed = capsys.readouterr().out
    assert "7 of 12 cases are at no site" in printed
    assert "1 subjects of the table have no images here" in printed
    assert main([*command, str(tmp_path / "b"), "--sites", "2"]) == 0
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["site-1", "site-2"]
    assert main([*command, str(tmp_path / "c"), "--names", "site-9"]) == 2
    assert main([*command, str(tmp_path / "c"), "--sites", "4"]) == 2


def test_command_with_dirichlet(source: Path, tmp_path: Path) -> None:
    assert main(["partition", str(source), "--sites", "2", "--dirichlet", "2", "--out", str(tmp_path / "s")]) == 0
    total = sum(len(read_datalist(tmp_path / "s" / n).split(s)) for n in ("site-1", "site-2") for s in SPLITS)
    assert total == 12


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "Say how many sites"),
        (["--sites", "0"], 2, "--sites is 0"),
        (["--sites", "3", "--names", "a,b"], 2, "The numbers of sites differ"),
        (["--names", "a,a"], 2, "same name"),
        (["--names", "a,server"], 2, "cannot name a site"),
        (["--names", "a,../b"], 2, "cannot name a site"),
        (["--names", "a,b.c"], 2, "'b.c' cannot name a site"),
        (["--names", "b,B"], 2, "Two sites have the same name: b and B"),
        (["--sites", "2", "--validation-fraction", "0"], 2, "--validation-fraction must be above 0"),
        (["--sites", "2", "--scanner-shift", "2"], 2, "--scanner-shift is 2.0"),
        (["--sites", "2", "--seed", "-1"], 2, "--seed is -1"),
        (["--sites", "2", "--shared", "1.5"], 2, "--shared is 1.5"),
        (["--sites", "1", "--shared", "0.1"], 2, "--shared needs at least two sites"),
        (["--sizes", "11,1"], 1, "site-2 (1)"),
        (["--sizes", "6,2", "--test-fraction", "0.1"], 1, "3 are needed at each site"),
    ],
)
def test_command_refuses_what_cannot_be(
    source: Path, tmp_path: Path, options: list[str], code: int, words: str, capsys: Any
) -> None:
    assert main(["partition", str(source), "--out", str(tmp_path / "new" / "s"), *options]) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_command_leaves_a_full_folder_alone(source: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    assert main(["partition", str(source), "--sites", "2", "--out", str(tmp_path / "full")]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_command_leaves_nothing_half_written(source: Path, tmp_path: Path, capsys: Any) -> None:
    image = read_datalist(source).training[7].images[0]
    image.write_bytes(image.read_bytes()[:-50])
    out = tmp_path / "new" / "sites"
    assert main(["partition", str(source), "--sites", "2", "--scanner-shift", "1", "--out", str(out)]) == 1
    assert f"{image} cannot be read" in capsys.readouterr().err
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.images
def test_whole_numbers_of_a_table_are_read_as_such(tmp_path: Path) -> None:
    rows = ["1.0, 7.0", "1,8 ", "02,x.0"]
    sites, missing = partition_by_csv(cases_of(["7", "8", "x.0", "9"]), table(tmp_path / "t.csv", *rows))
    assert (patients(sites), list(sites), missing) == ([{"7", "8"}, {"x.0"}], ["site-1", "site-02"], 0)


@pytest.mark.parametrize("name", ["hospital.a", "server", "a b", "_x"])
def test_folders_that_cannot_be_sites_are_refused(tmp_path: Path, name: str) -> None:
    write_datalist(Datalist(), tmp_path / name / "datalist.json")
    with pytest.raises(UsageError, match="cannot name a site"):
        find_sites(tmp_path)


@pytest.mark.parametrize(("number", "site"), [(1, "site-12"), (2, "site-16")])
def test_real_table_finds_the_real_cases(test_data: Path, tmp_path: Path, number: int, site: str, capsys: Any) -> None:
    file = test_data / "partitions" / f"FeTS2022_partitioning_{number}.csv"
    command = ["partition", str(test_data / "BraTS2021"), "--csv", str(file), "--out", str(tmp_path / "s")]
    assert main(command) == 1
    assert "(1): 2 are needed" in capsys.readouterr().err
    assert main([*command, "--names", site]) == 0
    assert "1244 subjects of the table have no images here" in capsys.readouterr().out
    assert len(read_datalist(tmp_path / "s" / site).training) == 5
