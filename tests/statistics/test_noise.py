"""Statistics with noise: how far a patient moves them, what they cost, and what they still tell."""

import math

import numpy as np
import pytest

from fedseg.data.datalist import Case
from fedseg.errors import ConfigurationError
from fedseg.privacy.accounting.epsilon import epsilon
from fedseg.privacy.mechanisms.noise import SecureNoise, SeededNoise
from fedseg.statistics.measuring import measure
from fedseg.statistics.noise import NoiseSetting, parse_noise, protected
from fedseg.statistics.site_statistics import parse_statistics, pooled
from statistics_of_tiny import TINY, tiny_cases


def counts(tallies):
    return [tally.dense() for tally in (*tallies.bins.values(), *tallies.names.values())]


def coarse(cases):
    return measure(TINY, cases, fine=False, per_patient=True)


def test_exchanging_a_patient_moves_all_counts_by_the_sensitivity_at_most(tmp_path):
    cases = tiny_cases(tmp_path / "a", range(4))
    stranger = tiny_cases(tmp_path / "b", [99], spacing=3.0)[0]
    more = [Case(case.images, case.label, cases[0].patient) for case in tiny_cases(tmp_path / "c", [7, 8], spacing=0.3)]
    before, one, several = (coarse(part) for part in (cases, [stranger, *cases[1:]], [*more, *cases[1:]]))
    for after in (one, several):
        apart = [a - b for a, b in zip(counts(before), counts(after), strict=True)]
        assert 0 < sum(np.abs(d).sum() for d in apart) <= NoiseSetting(1.0).sensitivity(len(apart))
        gaussian = NoiseSetting(1.0, "gaussian").sensitivity(len(apart))
        assert math.sqrt(sum((d**2).sum() for d in apart)) <= gaussian


def test_what_leaves_without_noise_is_equal_where_one_patient_has_more_cases(tmp_path):
    """Neighbours by replacement: four patients with a case each, and the first of them with three cases."""
    cases = tiny_cases(tmp_path / "a", range(4))
    more = [Case(case.images, case.label, cases[0].patient) for case in tiny_cases(tmp_path / "b", [7, 8])]
    for part in (cases, [*cases, *more]):
        found = protected(coarse(part), NoiseSetting(1.0), SeededNoise(1))
        assert (found.cases, found.patients, found.minimum) == (4, 4, 0)


def test_the_worst_exchange_reaches_the_sensitivity():
    a, b = np.eye(2)
    assert np.abs(a - b).sum() == NoiseSetting(1.0).sensitivity(1)
    assert np.linalg.norm(a - b) == pytest.approx(NoiseSetting(1.0, "gaussian").sensitivity(1))


@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
def test_the_release_costs_the_epsilon_that_was_asked_for(mechanism):
    setting = NoiseSetting(2.0, mechanism, 1e-5)
    spent = epsilon([setting.release()], 1e-5)
    assert spent <= 2.0 + 1e-9
    assert spent == pytest.approx(2.0, rel=1e-3)
    assert setting.release().unit == "patient"


@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
def test_the_noise_has_the_stated_variance(tmp_path, mechanism):
    tallies = coarse(tiny_cases(tmp_path, range(2)))
    found = protected(tallies, NoiseSetting(2.0, mechanism), SeededNoise(1))
    drawn = np.concatenate(
        [np.array(list(found.histograms[name].bins.values())) - tally.dense() for name, tally in tallies.bins.items()]
    )
    assert len(drawn) > 400
    assert drawn.var() == pytest.approx(found.noise["variance"], rel=0.35)
    assert abs(drawn.mean()) < 4 * math.sqrt(found.noise["variance"] / len(drawn))
    again = protected(tallies, NoiseSetting(2.0, mechanism), SecureNoise())
    assert again.histograms["components: inner"].bins != found.histograms["components: inner"].bins


def test_every_bin_leaves_and_nothing_else(tmp_path):
    setting = NoiseSetting(5.0)
    found = [
        protected(coarse(tiny_cases(tmp_path / str(n), range(n, n + 2))), setting, SeededNoise(n)) for n in range(2)
    ]
    for part in found:
        assert not part.moments
        assert all(len(h.bins) == h.scale.ends[1] - h.scale.ends[0] + 1 for h in part.histograms.values())
        assert parse_statistics(part.to_dict(), TINY) == part
    assert found[0].histograms.keys() == found[1].histograms.keys()
    both = pooled({"a": found[0], "b": found[1]})
    assert both.noise == {"variance": pytest.approx(2 * found[0].noise["variance"])}
    assert pooled({"a": found[0]}).noise == {"variance": found[0].noise["variance"]}


def test_with_little_noise_the_counts_are_those_without(tmp_path):
    tallies = coarse(tiny_cases(tmp_path, range(3)))
    found = protected(tallies, NoiseSetting(1e9), SeededNoise(1))
    for name, tally in tallies.bins.items():
        assert list(found.histograms[name].bins.values()) == pytest.approx(tally.dense(), abs=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0},
        {"epsilon": True},
        {},
        "laplace",
        {"epsilon": 1, "scale": 2},
        {"epsilon": 1, "mechanism": "uniform"},
        {"epsilon": 1, "delta": 0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="noise"):
        parse_noise(wrong)


def test_without_a_setting_there_is_no_noise():
    assert parse_noise(None) is None
    assert parse_noise({"epsilon": 1.5}) == NoiseSetting(1.5)
