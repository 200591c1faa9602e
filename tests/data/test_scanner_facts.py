"""What is kept of a scanner: its maker by a closed list, its field strength, and nothing else."""

import json

import pytest

from fedseg.data.scanner_facts import (
    MAKERS,
    UNKNOWN_MAKER,
    ScannerFacts,
    facts_file,
    makers,
    read_scanner_facts,
    scanner_facts,
    write_scanner_facts,
)


@pytest.mark.parametrize(
    ("maker", "tesla", "expected"),
    [
        ("SIEMENS", 3, ("Siemens", 3.0)),
        ("GE MEDICAL SYSTEMS", "1.494", ("GE", 1.5)),
        ("Philips Medical Systems", 30000, ("Philips", 3.0)),
        ("TOSHIBA_MEC", None, (UNKNOWN_MAKER, None)),
        ("Toshiba", "", ("Canon", None)),
        ("Dr. Miller's own scanner", "x", (UNKNOWN_MAKER, None)),
        ("", 0, (None, None)),
        (None, float("nan"), (None, None)),
        (7, -1, (None, None)),
        ("GE", float("inf"), ("GE", None)),
    ],
)
def test_texts_become_known_words(maker, tesla, expected):
    found = scanner_facts(maker, tesla)
    assert (found.maker, found.field_strength) == expected
    assert found.maker is None or found.maker in makers()


def test_every_maker_is_in_the_closed_list():
    assert {*MAKERS.values(), UNKNOWN_MAKER} == set(makers())


@pytest.mark.parametrize("name", ["scan.1.nii.gz", "scan.1.nii", "scan.1.mha"])
def test_the_file_lies_beside_the_image(tmp_path, name):
    image = tmp_path / name
    assert facts_file(image).name == "scan.1.json"
    facts = ScannerFacts("Siemens", 3.0)
    assert write_scanner_facts(facts, image) == facts_file(image)
    assert read_scanner_facts(image) == facts


def test_nothing_known_is_nothing_written(tmp_path):
    assert write_scanner_facts(ScannerFacts(), tmp_path / "a.nii.gz") is None
    assert list(tmp_path.iterdir()) == []
    assert read_scanner_facts(tmp_path / "a.nii.gz") == ScannerFacts()


@pytest.mark.parametrize("content", ["[]", "no JSON", '{"Manufacturer": ["GE"]}', json.dumps({"PatientName": "X"})])
def test_files_that_tell_nothing_usable_tell_nothing(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert read_scanner_facts(tmp_path / "a.nii.gz") == ScannerFacts()
