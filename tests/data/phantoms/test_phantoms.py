"""Phantoms: the same bytes from the same seed, anatomy that holds, sites that differ as asked, no half-made folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from fedseg.cli import main
from fedseg.data.datalist import SPLITS, read_datalist
from fedseg.data.phantoms import phantoms as phantom
from fedseg.data.phantoms.brats import CHANNELS, BrainCase, make_brats_case
from fedseg.data.phantoms.pancreas import AbdomenCase, make_pancreas_case
from fedseg.data.phantoms.phantoms import make_phantoms
from fedseg.data.phantoms.shapes import Grid, ellipsoid, smooth_noise, tube_with_position
from fedseg.data.phantoms.sites import SiteStyle, case_counts, site_style, split_counts
from fedseg.errors import UsageError


@pytest.fixture(scope="module")
def brains() -> list[BrainCase]:
    return [make_brats_case(np.random.default_rng([5, i]), site_style(5, i + 1, 1.0)) for i in range(4)]


@pytest.fixture(scope="module")
def abdomens() -> list[AbdomenCase]:
    return [make_pancreas_case(np.random.default_rng([5, i]), SiteStyle()) for i in range(4)]


@pytest.fixture(scope="module")
def ct_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "ct"
    make_phantoms("pancreas", sites=2, cases=4, out=out, seed=7, heterogeneity=1.0, test_fraction=0.2)
    return out


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# ---------------------------------------------------------------------------------------------------- brain tumours


def test_brats_labels_and_volumes(brains: list[BrainCase]) -> None:
    for case in brains:
        assert set(np.unique(case.label)) == {0, 1, 2, 4}
        for value in (1, 2, 4):
            assert np.count_nonzero(case.label == value) * np.prod(case.grid.spacing) > 2000  # mm3
        assert ndimage.label(np.isin(case.label, (1, 4)))[1] == 1


def test_brats_necrosis_is_enclosed_by_the_enhancing_rim(brains: list[BrainCase]) -> None:
    for case in brains:
        grown = ndimage.binary_dilation(case.label == 1)
        assert np.all(np.isin(case.label[grown], (1, 4)))


def test_brats_same_seed_gives_the_same_case(brains: list[BrainCase]) -> None:
    again = make_brats_case(np.random.default_rng([5, 0]), site_style(5, 1, 1.0))
    assert np.array_equal(again.images, brains[0].images)
    assert np.array_equal(again.label, brains[0].label)


def test_brats_background_is_zero_and_brain_is_not(brains: list[BrainCase]) -> None:
    for case in brains:
        brain = case.images > 0
        assert np.all(brain == brain[0])
        assert np.all(case.label[~brain[0]] == 0)
        litres = np.count_nonzero(brain[0]) * np.prod(case.grid.spacing) / 1e6
        assert 0.9 < litres < 1.6


@pytest.mark.parametrize(
    ("channel", "brighter", "darker", "ratio"),
    [
        ("t1", "white", "grey", 1.1),
        ("t1", "grey", "fluid", 1.3),
        ("t1", "grey", "necrosis", 1.1),
        ("t1", "white", "oedema", 1.2),
        ("t1ce", "enhancing", "white", 1.15),
        ("t1ce", "enhancing", "necrosis", 1.6),
        ("t2", "fluid", "grey", 1.2),
        ("t2", "grey", "white", 1.1),
        ("t2", "necrosis", "white", 1.5),
        ("t2", "oedema", "white", 1.4),
        ("flair", "grey", "fluid", 1.5),
        ("flair", "oedema", "grey", 1.1),
        ("flair", "oedema", "white", 1.25),
        ("flair", "oedema", "necrosis", 1.3),
    ],
)
def test_brats_contrast(channel: str, brighter: str, darker: str, ratio: float) -> None:
    """Healthy tissues are found on the sequences where they stand out, then compared on the one in question."""
    case = make_brats_case(np.random.default_rng(11), SiteStyle(bias=0.1, noise=0.3))
    image = dict(zip(CHANNELS, case.images.astype(float), strict=True))
    healthy = ndimage.binary_erosion(image["t1"] > 0, iterations=4) & ~ndimage.binary_dilation(case.label > 0)
    regions = {
        "white": healthy & (image["t1"] > np.quantile(image["t1"][healthy], 0.8)),
        "fluid": healthy & (image["flair"] < np.quantile(image["flair"][healthy], 0.02)),
        "necrosis": case.label == 1,
        "oedema": case.label == 2,
        "enhancing": case.label == 4,
    }
    low, high = np.quantile(image["t1"][healthy], [0.25, 0.45])
    regions["grey"] = healthy & (image["t1"] > low) & (image["t1"] < high)
    assert np.median(image[channel][regions[brighter]]) > ratio * np.median(image[channel][regions[darker]])


def test_brats_rim_is_bright_on_t1ce_only(brains: list[BrainCase]) -> None:
    for case in brains:
        t1, t1ce, t2, flair = (np.maximum(image, 1).astype(float) for image in case.images)
        rim, oedema = case.label == 4, case.label == 2
        # near, because the shading varies over the brain, but not so near that a voxel holds both
        near = oedema & ndimage.binary_dilation(rim, iterations=6) & ~ndimage.binary_dilation(rim, iterations=2)
        assert np.median((t1ce / t1)[rim]) > 1.5 * np.median((t1ce / t1)[near])
        for image in (t1, t2, flair):
            assert np.median(image[rim]) < 1.2 * np.median(image[near])


def test_brats_needs_more_than_a_flair_threshold(brains: list[BrainCase]) -> None:
    def dice(case: BrainCase, threshold: float) -> float:
        brain, flair = case.images[3] > 0, case.images[3].astype(float)
        found = brain & (flair > flair[brain].mean() + threshold * flair[brain].std())
        return 2 * np.count_nonzero(found & (case.label > 0)) / (found.sum() + (case.label > 0).sum())

    best = max(np.mean([dice(case, t) for case in brains]) for t in np.arange(-1, 3, 0.1))
    assert 0.2 < best < 0.75


# --------------------------------------------------------------------------------------------------------- abdomen


def test_ct_hounsfield_units(abdomens: list[AbdomenCase]) -> None:
    for case in abdomens:
        image, label = case.image.astype(float), case.label
        inner = ndimage.binary_erosion(label == 1)
        tumour = ndimage.binary_erosion(label == 2)
        assert 80 < np.median(image[inner]) < 112
        assert 40 < np.median(image[tumour]) < 70
        assert np.median(image[0, 0]) < -950
        assert image.max() > 350  # bone
        x, y, _ = (np.broadcast_to(a, label.shape) for a in case.grid.axes)
        liver = (np.abs(x - 80) < 12) & (np.abs(y) < 15) & (np.arange(label.shape[2]) > label.shape[2] * 0.7)
        assert 95 < np.median(image[liver]) < 125
        fat = (image > -140) & (image < -60)
        assert fat.mean() > 0.1


def test_ct_labels(abdomens: list[AbdomenCase]) -> None:
    for case in abdomens:
        assert set(np.unique(case.label)) == {0, 1, 2}
        organ = case.label > 0
        where = np.argwhere(organ) * case.grid.spacing
        assert np.ptp(where[:, 0]) > 80  # mm from head to tail
        assert np.all(where.min(0) > 0)
        assert np.all(where.max(0) < (np.array(case.label.shape) - 1) * case.grid.spacing)
        volume = np.count_nonzero(case.label == 2) * np.prod(case.grid.spacing)
        assert 4 / 3 * np.pi * 7**3 < volume < 4 / 3 * np.pi * 19**3
        near = ndimage.binary_dilation(case.label == 2) & (case.label == 1)
        assert near.any()


# ----------------------------------------------------------------------------------------------- sites and writing


def test_same_seed_gives_the_same_bytes_and_more_sites_change_none(tmp_path: Path) -> None:
    for name, sites, seed in (("a", 1, 3), ("more", 2, 3), ("other", 1, 4)):
        make_phantoms("pancreas", sites, 3, tmp_path / name, seed=seed, heterogeneity=0.0)
    first, more = digests(tmp_path / "a"), digests(tmp_path / "more")
    assert len(first) == 8  # three images, three labels, two lists
    assert first == {name: digest for name, digest in more.items() if name.startswith("site-1/")}
    other = digests(tmp_path / "other")
    assert all(other[name] != digest for name, digest in first.items() if "imagesTr" in name)


def test_brats_files(tmp_path: Path) -> None:
    (path,) = make_phantoms("brats", 1, 3, tmp_path / "out", seed=1)
    datalist = read_datalist(path)
    assert datalist.task == "brats"
    case = datalist.training[0]
    folder = path.parent / case.patient
    assert [p.name for p in case.images] == [f"{case.patient}_{c}.nii.gz" for c in ("t1", "t1ce", "t2", "flair")]
    assert all(p.parent == folder for p in (*case.images, case.label))
    image, label = nib.load(case.images[0]), nib.load(case.label)
    assert image.get_data_dtype() == np.int16
    assert label.get_data_dtype() == np.uint8
    assert np.array_equal(image.affine, label.affine)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_xyzt_units()[0] == "mm"
    assert np.allclose(np.diag(image.affine)[:3], image.header.get_zooms())


def test_datalists(ct_sites: Path) -> None:
    seen: set[str] = set()
    for site in ("site-1", "site-2"):
        content = json.loads((ct_sites / site / "datalist.json").read_text())
        assert content["origin"] == "phantom"
        assert (content["seed"], content["heterogeneity"]) == (7, 1.0)
        assert content["simulated"] == json.loads(json.dumps(site_style(7, int(site[-1]), 1.0).to_dict()))
        datalist = read_datalist(ct_sites / site)
        assert all(datalist.split(split) for split in SPLITS)
        for case in (*datalist.training, *datalist.validation, *datalist.test):
            assert case.patient not in seen
            seen.add(case.patient)
            assert case.label is not None
            assert case.label.is_file()
            assert case.images[0].is_file()
        paths = [entry["image"] for split in SPLITS for entry in content[split]]
        assert not any(Path(path).is_absolute() for path in paths)


def test_decathlon_description(ct_sites: Path) -> None:
    content = json.loads((ct_sites / "site-1" / "dataset.json").read_text())
    assert content["modality"] == {"0": "CT"}
    assert content["labels"] == {"0": "background", "1": "pancreas", "2": "cancer"}
    assert len(content["training"]) == content["numTraining"] >= 3
    for entry in content["training"]:
        assert (ct_sites / "site-1" / entry["image"]).is_file()
        assert (ct_sites / "site-1" / entry["label"]).is_file()


def test_sites_differ_as_asked() -> None:
    assert {site_style(3, site, 0.0) for site in range(1, 9)} == {SiteStyle()}
    assert case_counts(3, 5, 8, 0.0) == [8] * 5
    for seed in range(20):
        first, second = site_style(seed, 1, 1.0), site_style(seed, 2, 1.0)
        weak = site_style(seed, 1, 0.1)
        assert first.spacing != second.spacing
        assert max(first.noise / second.noise, second.noise / first.noise) > 1.5
        assert abs(np.log(weak.noise)) == pytest.approx(0.1 * abs(np.log(first.noise)), abs=1e-3)
        counts = case_counts(seed, 3, 10, 1.0)
        assert sum(counts) == 30
        assert len(set(counts)) > 1
        assert min(counts) >= 3


@pytest.mark.parametrize(
    ("cases", "fraction", "expected"),
    [(3, 0.0, (2, 1, 0)), (6, 0.0, (4, 2, 0)), (10, 0.0, (7, 3, 0)), (3, 0.5, (1, 1, 1)), (10, 0.2, (6, 2, 2))],
)
def test_split_counts(cases: int, fraction: float, expected: tuple[int, int, int]) -> None:
    assert split_counts(cases, fraction) == expected


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["brats", "--sites", "0", "--cases", "5"], "--sites is 0"),
        (["brats", "--sites", "2", "--cases", "2"], "--cases is 2"),
        (["brats", "--sites", "2", "--cases", "5", "--heterogeneity", "1.5"], "--heterogeneity is 1.5"),
        (["brats", "--sites", "2", "--cases", "5", "--heterogeneity", "nan"], "--heterogeneity is nan"),
        (["brats", "--sites", "2", "--cases", "5", "--seed", "-1"], "--seed is -1"),
        (["pancreas", "--sites", "2", "--cases", "5", "--test-fraction", "0.9"], "--test-fraction is 0.9"),
    ],
)
def test_bad_arguments_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert main(["phantom", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_unknown_task_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["phantom", "lung", "--sites", "1", "--cases", "3", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    with pytest.raises(UsageError, match="lung"):
        make_phantoms("lung", 1, 3, tmp_path / "out")


def test_full_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty"):
        make_phantoms("brats", 1, 3, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interruption_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def stop_at_third(path: Path, volume: np.ndarray, affine: np.ndarray) -> None:
        if "pancreas_1002" in path.name:
            raise error
        write(path, volume, affine)

    write = phantom._write_image
    monkeypatch.setattr(phantom, "_write_image", stop_at_third)
    with pytest.raises(error):
        make_phantoms("pancreas", 1, 3, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_command_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my data"
    assert main(["phantom", "pancreas", "--sites", "1", "--cases", "3", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "site-1" in said
    assert f"fedseg check-data pancreas '{out / 'site-1'}'" in said
    assert f"--data '{out}'" in said


# ------------------------------------------------------------------------------------------------------- geometry


def test_shapes_are_distances_in_mm() -> None:
    grid = Grid.covering((40, 40, 40), (1.0, 1.0, 1.0))
    sphere = ellipsoid(grid.axes, (0.5, 0.5, 0.5), (10, 10, 10))
    radius = np.sqrt(sum((axis - 0.5) ** 2 for axis in grid.axes))
    assert np.allclose(sphere, 10 - radius, atol=1e-3)
    inside, position = tube_with_position(grid.axes, ((-10, 0, 0), (0, 0, 0), (10, 0, 0)), (4, 4, 6))
    x, y, z = np.broadcast_arrays(*grid.axes)
    at = tuple(np.argwhere((x == 5.5) & (y == 3.5) & (z == 0.5))[0])
    assert inside[at] == pytest.approx(5.1 - np.hypot(3.5, 0.5), abs=1e-4)
    assert position[at] == pytest.approx(1.55, abs=1e-4)


def test_smooth_noise_has_the_asked_correlation() -> None:
    grid = Grid.covering((96, 96, 96), (2.0, 2.0, 2.0))
    fields = [smooth_noise(np.random.default_rng(i), grid, 8.0) for i in range(4)]
    assert all(np.mean(f**2) == pytest.approx(1.0, abs=1e-3) for f in fields)
    after = np.mean([np.mean(f[4:] * f[:-4]) for f in fields])  # 8 mm apart
    assert after == pytest.approx(np.exp(-0.5), abs=0.1)
