from pathlib import Path

import pytest

from fedseg.data.datalist import Case, Datalist, case_names, read_datalist, write_datalist
from fedseg.errors import DataError


def case(images, label=None, patient="p"):
    return Case(tuple(Path(i) for i in images), Path(label) if label else None, patient)


@pytest.mark.parametrize(
    ("images", "label", "name"),
    [
        (["a/BraTS2021_1_t1.nii.gz", "a/BraTS2021_1_flair.nii.gz"], "a/BraTS2021_1_seg.nii.gz", "BraTS2021_1"),
        (["imagesTr/x.1.nii.gz"], "labelsTr/x.1.nii.gz", "x.1"),
        (["ct.nii"], None, "ct"),
        (["t1.nii", "t2.nii"], "seg.nii", "seg"),
    ],
)
def test_names_of_cases(images, label, name):
    assert case_names([case(images, label)]) == [name]


def test_files_named_alike_are_told_apart_by_the_patient():
    cases = [case([f"{p}/ct.nii.gz"], f"{p}/label.nii.gz", p) for p in ("A 1", "B/2")]
    assert case_names(cases) == ["A_1_label", "B_2_label"]
    assert case_names([cases[0], cases[0]]) == ["A_1_label_1", "A_1_label_2"]


def test_a_datalist_is_written_with_paths_relative_to_it(tmp_path):
    inside, outside = tmp_path / "site" / "a.nii", tmp_path / "b.nii"
    path = write_datalist(Datalist((case([inside], outside),), notes={"origin": "x"}), tmp_path / "site" / "d.json")
    assert '"a.nii"' in path.read_text()
    again = read_datalist(path)
    assert again.training[0].images[0] == inside
    assert again.training[0].label == outside
    assert again.notes == {"origin": "x"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "JSON"),
        ("[]", "none of the lists"),
        ('{"training": 3}', "none of the lists"),
        ('{"training": [], "test": {}}', "list of cases"),
        ('{"training": ["x.nii"]}', "object with image"),
        ('{"training": [{"image": 3, "patient": "p"}]}', "image must be"),
        ('{"training": [{"image": "x.nii", "label": 3, "patient": "p"}]}', "label must be"),
        ('{"training": [{"image": "x.nii"}]}', "no 'patient'"),
    ],
)
def test_what_is_no_datalist_is_explained(tmp_path, content, said):
    (tmp_path / "datalist.json").write_text(content)
    with pytest.raises(DataError, match=said):
        read_datalist(tmp_path)
