from pathlib import Path

import pytest

from fedseg.data.datalist import Case, Datalist, case_names, read_datalist, write_datalist
from fedseg.data.splits import by_patient, patients_in_two_splits, spelled_alike, split_by_patient
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
        (["BraTS-GLI-00005-000-t1n.nii.gz", "BraTS-GLI-00005-000-t2f.nii.gz"], "s.nii", "BraTS-GLI-00005-000"),
        (["brain_mr.nii", "brain_mr2.nii"], None, "brain"),
        (["knee.nii", "knee_2.nii"], None, "knee"),
        (["case7t1.nii", "case7t2.nii"], "case7seg.nii", "case7seg"),
        (["a b:c.nii"], None, "a_b_c"),
        (["ö" * 200 + ".nii"], None, "ö" * 80),
    ],
)
def test_names_of_cases(images, label, name):
    assert case_names([case(images, label)]) == [name]


def test_files_named_alike_are_told_apart_by_the_patient():
    cases = [case([f"{p}/ct.nii.gz"], f"{p}/label.nii.gz", p) for p in ("A 1", "B/2")]
    assert case_names(cases) == ["A_1_label", "B_2_label"]
    assert case_names([cases[0], cases[0]]) == ["A_1_label_1", "A_1_label_2"]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["Fall 7.nii", "Fall_7.nii"], ["0_Fall_7", "1_Fall_7"]),
        (["ct.nii", "CT.nii"], ["0_ct", "1_CT"]),
        (["u\u0308.nii", "\u00fc.nii"], ["0_\u00fc", "1_\u00fc"]),
        (["0_x.nii", "y/x.nii", "z/x.nii"], ["0_x", "1_x", "2_x"]),
    ],
)
def test_names_differ_after_what_a_file_cannot_have_is_replaced(files, names):
    assert case_names([case([file], patient=str(i)) for i, file in enumerate(files)]) == names


def test_a_number_that_tells_cases_apart_is_nobody_elses_name():
    cases = [case(["x.nii"], patient="p"), case(["a/x.nii"], patient="p"), case(["p_x_1.nii"], patient="p")]
    assert case_names(cases) == ["p_x_2", "p_x_3", "p_x_1"]


@pytest.mark.parametrize("patient", ["P-7 ", " P-7", "P-7\u00a0"])
def test_a_patient_is_one_however_the_id_is_spelled(patient):
    cases = [case(["a.nii"], patient="P-7"), case(["b.nii"], patient=patient)]
    assert list(by_patient(cases)) == ["P-7"]
    assert patients_in_two_splits(Datalist((cases[0],), (cases[1],))) == {"P-7": ["training", "validation"]}
    parts = split_by_patient([*cases, case(["c.nii"], patient="Q")], {"validation": 0.5}, 0)
    assert {len(part) for part in parts.values()} == {0, 1, 2}


def test_ids_that_look_like_two_spellings_are_told():
    assert spelled_alike(["p7", "P7", "q 1", "Q_1", "8", "8.0", "p71", "a-1", "a1"]) == [
        ["p7", "P7"],
        ["q 1", "Q_1"],
        ["8", "8.0"],
    ]


@pytest.mark.parametrize(("written", "read"), [("12.0", "12"), ("12", "12"), ('" 12 "', "12"), ("-3", "-3")])
def test_whole_numbers_are_patients(tmp_path, written, read):
    (tmp_path / "datalist.json").write_text(f'{{"training": [{{"image": "x.nii", "patient": {written}}}]}}')
    assert read_datalist(tmp_path).training[0].patient == read


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_files_of_windows_are_read(tmp_path, encoding):
    text = '{"training": [{"image": "x.nii", "patient": "Müller"}]}'
    (tmp_path / "datalist.json").write_bytes(text.encode(encoding))
    assert read_datalist(tmp_path).training[0].patient == "Müller"


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
        ('{"training": [{"image": "x.nii", "patient": " "}]}', "has the patient ' '"),
        ('{"training": [{"image": "x.nii", "patient": true}]}', "has the patient True"),
        ('{"training": [{"image": "x.nii", "patient": 1.5}]}', "has the patient 1.5"),
        ('{"training": [{"image": "x.nii", "patient": NaN}]}', "NaN is no number"),
        ('{"training": [{"image": "\\u0000", "patient": 1}]}', "image must be"),
        ('{"training": [], "val": [{"image": "x.nii", "patient": 1}]}', "cases under 'val', which is not read"),
        ('{"training": [], "more": {"fold 1": [{"image": "x.nii"}]}}', "cases under 'more'"),
        ('{"training": [], "training": []}', "'training' stands twice"),
        ("[" * 99999, "nested too deeply"),
        ('{"training": [], "x": ' + "[" * 120 + "]" * 120 + "}", "nested too deeply"),
        ('{"training": [{"image": "x.nii", "patient": ' + "9" * 5000 + "}]}", "digits"),
        ('{"training": [], "x": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_what_is_no_datalist_is_explained(tmp_path, content, said):
    (tmp_path / "datalist.json").write_text(content)
    with pytest.raises(DataError, match=said):
        read_datalist(tmp_path)
