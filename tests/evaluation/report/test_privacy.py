"""What a run's report says of its privacy: from the records of the updates, by hand."""

import re

import pytest

from evaluation.synthetic_run import SITES, make_summary, write_run
from fedseg.evaluation.privacy_summary import privacy_summary
from fedseg.evaluation.report.curves import epsilon, epsilon_course
from fedseg.evaluation.report.page import write_report
from fedseg.evaluation.report.text_tables import filter_table
from fedseg.jobs.allowed_components import filter_meanings
from filters.test_fail_closed import FILTERS

LAYERS = {"filter": "SharedLayers", "stage": 10, "last": 1, "patterns": None, "frozen": True}
LAYERS |= {"coordinates": 1000, "shared": 50}
NOISE = {"filter": "GaussianNoise", "stage": 30, "clip": 0.5, "noise_multiplier": 4.0, "delta": 1e-5}
NOISE |= {"neighbours": "replace", "mechanism": "gaussian", "unit": "site update", "secure_noise": False}
NOISE |= {"coordinates": 50, "noise_to_signal": 28.3}


def described(rounds):
    return privacy_summary(rounds, filter_meanings())


def noise(epsilon, releases, **changes):
    return {**NOISE, "epsilon": epsilon, "releases": releases, "seconds": 0.5, **changes}


def layers(**changes):
    return {**LAYERS, "seconds": 0.25, **changes}


def rounds(*sites):
    """The entries of rounds whose sites have these steps."""
    return [
        {"round": number, "sites": {site: {"privacy": steps} for site, steps in entry.items()}}
        for number, entry in enumerate(sites)
    ]


def test_each_site_has_what_its_last_release_says():
    """beta took part in one round of two, but had released before: its ledger counts what the run does not."""
    found = privacy_summary(
        rounds(
            {"alpha": [layers(), noise(1.0, 1)], "beta": [layers(), noise(2.5, 4, secure_noise=True)]},
            {"alpha": [layers(), noise(1.5, 2)]},
        )
    )
    common = {"mechanism": "gaussian", "unit": "site update", "delta": 1e-5, "noise_multiplier": 4.0, "clip": 0.5}
    common |= {"noise_to_signal": 28.3, "coordinates": 50}
    assert found["sites"] == {
        "alpha": {**common, "epsilon": 1.5, "rounds": 2, "steps": 2, "secure_noise": False},
        "beta": {**common, "epsilon": 2.5, "rounds": 1, "steps": 4, "secure_noise": True},
    }
    # The worst of the sites, not their sum: no patient is at two.
    assert found["total"] == {"mechanism": "gaussian", "unit": "site update", "epsilon": 2.5, "delta": 1e-5}
    # Three updates, each 0.25 + 0.5 s.
    assert found["seconds_per_round"] == 0.75


def test_filters_stand_with_their_arguments_in_order():
    """And without what they found: sizes, durations, costs."""
    found = privacy_summary(rounds({"alpha": [layers(), noise(1.0, 1)]}))
    assert found["filters"] == [
        {"filter": "SharedLayers", "last": 1, "frozen": True},
        {
            "filter": "GaussianNoise",
            "clip": 0.5,
            "noise_multiplier": 4.0,
            "delta": 1e-5,
            "neighbours": "replace",
        },
    ]


def test_the_last_chain_counts_and_a_round_without_updates_is_no_error():
    found = privacy_summary(rounds({"alpha": [noise(1.0, 1)]}, {"alpha": [noise(1.5, 2, clip=0.25)]}, {}))
    assert [entry["clip"] for entry in found["filters"]] == [0.25]
    assert (found["sites"]["alpha"]["clip"], found["sites"]["alpha"]["rounds"]) == (0.25, 2)


def test_a_filter_without_a_guarantee_has_no_epsilon():
    found = privacy_summary(rounds({"alpha": [{"filter": "QuantizeUpdate", "stage": 50, "bits": 8, "seconds": 1.0}]}))
    assert found == {
        "filters": [{"filter": "QuantizeUpdate", "bits": 8}],
        "sites": {"alpha": {"mechanism": "QuantizeUpdate", "rounds": 1}},
        "seconds_per_round": 1.0,
    }


def test_encryption_states_its_security_and_its_size():
    def encrypted(bits, size):
        step = {"filter": "EncryptUpdate", "stage": 60, "mechanism": "BFV", "mode": "compact", "seconds": 2.0}
        return {**step, "security_bits": bits, "bytes_per_parameter": size, "sites": 2, "key": "ab12", "error": 1e-5}

    found = privacy_summary(rounds({"alpha": [encrypted(192, 6.0)], "beta": [encrypted(128, 6.5)]}))
    assert (found["mechanism"], found["security_bits"], found["bytes_per_parameter"]) == ("BFV", 128, 6.5)
    assert found["filters"] == [{"filter": "EncryptUpdate", "mode": "compact"}]
    assert found["sites"]["alpha"] == {"mechanism": "BFV", "rounds": 1}
    assert "total" not in found


@pytest.mark.parametrize("history", [[], rounds({}), rounds({"alpha": []}), [{"round": 0, "sites": {"alpha": {}}}]])
def test_a_run_without_filters_has_an_empty_part(history):
    assert privacy_summary(history) == {}


# ------------------------------------------------------------------------ report


def private_summary(count=3):
    """A run of three hospitals, of which hospital-c misses the last round."""
    summary = make_summary(count)
    for number, entry in enumerate(summary["rounds"]):
        if number == count - 1:
            entry["sites"].pop("hospital-c")
        for index, values in enumerate(entry["sites"].values()):
            values["epsilon"] = 0.5 * (number + 1) + index
            values["privacy"] = [layers(), noise(values["epsilon"], number + 1)]
    summary["privacy"] = described(summary["rounds"])
    return summary


def words(page):
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_the_course_of_epsilon():
    table = epsilon_course(private_summary())
    assert table["hospital-a"].tolist() == [0.5, 1.0, 1.5]
    assert table["hospital-c"].tolist()[:2] == [2.5, 3.0]
    assert table["hospital-c"].isna().tolist() == [False, False, True]


def test_the_figure_has_a_line_for_each_site():
    (axes,) = epsilon(private_summary()).axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
    assert set(lines) == set(SITES)
    assert lines["hospital-b"] == [1.5, 2.0, 2.5]
    assert "epsilon" in axes.get_ylabel()
    assert axes.get_ylim()[0] == 0


def test_without_an_epsilon_there_is_no_figure(tmp_path):
    assert epsilon_course(make_summary(2)).empty
    assert epsilon(make_summary(2)) is None
    write_report(write_run(tmp_path, make_summary(2)))
    assert not (tmp_path / "report" / "figures" / "epsilon.png").exists()


def test_the_page_has_the_tables_the_figure_and_what_they_mean(tmp_path):
    page = write_report(write_run(tmp_path, private_summary())).read_text("utf-8")
    text = words(page)
    assert (tmp_path / "report" / "figures" / "epsilon.png").is_file()
    assert "No privacy mechanism ran" not in text
    arguments = "clip 0.5, noise multiplier 4.0, delta 1e-05, neighbours replace"
    assert f"GaussianNoise {arguments} {filter_meanings()['GaussianNoise']}" in text
    assert f"SharedLayers last 1, frozen True {filter_meanings()['SharedLayers']}" in text
    for phrase in ("Privacy spent", "site update", "Total gaussian", "two data sets apart"):
        assert phrase in text, phrase
    # Of the summary: hospital-c spent most, 3.0 after two rounds.
    assert re.search(r"hospital-c gaussian site update 3 1e-05 4 0\.5 2 2", text)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([layers()], "No formal guarantee: what was sent was sent as it is"),
        ([{"filter": "EncryptUpdate", "stage": 60, "security_bits": 128}], "whoever has the key"),
    ],
)
def test_the_page_promises_nothing_that_no_mechanism_gives(tmp_path, steps, said):
    summary = make_summary(2)
    summary["privacy"] = described(rounds({"hospital-a": steps}))
    text = words(write_report(write_run(tmp_path, summary)).read_text("utf-8"))
    assert said in text
    assert "two data sets apart" not in text
    assert not (tmp_path / "report" / "figures" / "epsilon.png").exists()


def test_what_each_filter_means_is_said():
    """Of every filter of the package."""
    assert set(filter_meanings()) == set(FILTERS)
    assert all(len(meaning) > 20 for meaning in filter_meanings().values())


def test_a_filter_of_another_kind_stands_without_a_meaning():
    assert filter_table({"privacy": {"filters": [{"filter": "Other", "x": 1}]}}).rows == [["Other", "x 1", ""]]
    assert filter_table({}).rows == []
