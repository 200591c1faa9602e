"""Parts that cannot work together are found by what they declare, before anybody trains."""

import pytest

from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.fedcostwavg import FedCostWAvg
from fedseg.aggregators.fedmix import FedMix
from fedseg.aggregators.fednova import FedNova
from fedseg.aggregators.fedpod import FedPOD
from fedseg.aggregators.krum import Krum
from fedseg.aggregators.robust import CoordinateMedian, GeometricMedian, TrimmedMean
from fedseg.contract.combinations import EPSILON, TRAIN_LOSS, check_parts, conflict, declared
from fedseg.errors import ConfigurationError
from fedseg.filters.dp_sgd import DPSGD
from fedseg.filters.encrypt import EncryptUpdate
from fedseg.filters.noise import GaussianNoise, LaplaceNoise
from fedseg.filters.norm_clip import NormClip
from fedseg.filters.quantize import QuantizeUpdate
from fedseg.filters.share_fraction import ShareFraction
from fedseg.filters.sparse_vector import SparseVector
from fedseg.jobs.allowed_components import component_classes
from fedseg.training.hooks import TrainingHook
from fedseg.training.methods.class_weights import ClassWeights
from fedseg.training.methods.ditto import Ditto
from fedseg.training.methods.fedmax import FedMax
from fedseg.training.methods.fedprox import FedProx
from fedseg.training.methods.harmofl import HarmoFL
from fedseg.training.methods.moon import MOON
from fedseg.training.methods.scaffold import Scaffold
from fedseg.training.patient_dp_sgd import PatientDPSGD
from fedseg.workflows.run.settings import RunSettings
from fedseg.workflows.selection import AllSites, DropSlow, RandomSites

GUARANTEED = (DPSGD, GaussianNoise, LaplaceNoise, SparseVector)


@pytest.mark.parametrize("filter_class", GUARANTEED)
@pytest.mark.parametrize(
    ("part", "needs"),
    [
        (FedMix(), "the training loss"),
        (FedCostWAvg(), "the training loss"),
        (FedCostWAvg(cost="val_loss"), "the validation loss"),
        (FedCostWAvg(cost="val_dice"), "validation scores"),
        (FedPOD(), "the validation loss"),
        (RunSettings(3, patience=2), "validation scores"),
        (RunSettings(3, target_dice=0.9), "validation scores"),
        (DropSlow(), "the duration"),
        (ClassWeights, "statistics"),
    ],
)
def test_what_a_guarantee_withholds_nobody_may_need(filter_class, part, needs):
    assert needs in (conflict([part, filter_class]) or "")
    assert conflict([filter_class, part]) == conflict([part, filter_class])
    assert conflict([part, NormClip, AllSites()]) is None


def test_a_guarantee_goes_with_rules_that_look_at_counts_alone():
    assert conflict([FedAvg(), RunSettings(3, max_epsilon=8), AllSites(), DPSGD]) is None
    assert conflict([FedAvg(), FedProx, GaussianNoise]) is None


def test_dp_sgd_makes_all_steps_itself():
    assert conflict([FedProx, DPSGD]) == "FedProx needs a part in the sites' training steps, which DPSGD withholds."


def test_a_limit_of_epsilon_needs_somebody_who_counts_it():
    expected = "max_epsilon needs an epsilon in every report, which no part of the job provides."
    parts = [RunSettings(3, max_epsilon=8), FedAvg(), NormClip]
    assert conflict(parts) == expected
    assert conflict(parts, whole=False) is None


def test_scores_of_rounds_are_compared_over_the_same_sites_only():
    assert "the same sites in every round" in (conflict([RunSettings(3, patience=1), RandomSites(2)]) or "")


def test_updates_that_are_encrypted_are_not_compared():
    assert "the values of each update" in (conflict([Krum(), EncryptUpdate]) or "")


@pytest.mark.parametrize("rule", [CoordinateMedian(), TrimmedMean(0.1)])
@pytest.mark.parametrize("sparse", [ShareFraction, SparseVector])
def test_rules_of_single_coordinates_need_all_of_them(rule, sparse):
    assert "every coordinate of each update, which" in (conflict([rule, sparse]) or "")
    assert conflict([rule, NormClip, QuantizeUpdate]) is None
    assert conflict([GeometricMedian(), ShareFraction]) is None


def test_steps_are_counted_only_where_their_number_says_how_far_a_site_went():
    for part in (MOON, Scaffold, DPSGD):
        for rule in (FedNova(), FedNova(mu=0.1)):
            assert f"which {part.__name__} withholds" in (conflict([rule, part]) or "")
    assert conflict([FedNova(), FedProx]) == (
        "FedNova needs local steps along the gradient of the loss alone, which FedProx withholds."
    )
    assert conflict([FedNova(mu=0.1), FedProx]) is None
    assert conflict([FedNova(), ClassWeights, Ditto, FedMax, HarmoFL]) is None


def test_every_hook_that_changes_steps_says_whether_they_can_be_counted():
    for found in component_classes().values():
        if issubclass(found, TrainingHook) and found is not PatientDPSGD:
            changes = [m for m in ("loss", "step", "after_backward", "after_step") if m in vars(found)]
            assert not changes or "withholds" in vars(found), (found.__name__, changes)


def test_a_refusal_names_both_parts_and_what_is_missing():
    with pytest.raises(ConfigurationError, match=r"job is 'FedMix with DPSGD', .*FedMix needs the training loss"):
        check_parts([FedMix(), DPSGD])
    check_parts([])


def test_every_component_declares_words_of_the_list_alone():
    for found in component_classes().values():
        assert all(isinstance(declared(found, kind), frozenset) for kind in ("needs", "provides", "withholds"))

    class Slip:
        needs = frozenset({"train_los"})

    with pytest.raises(ValueError, match="train_los"):
        conflict([Slip()])


def test_filters_with_a_guarantee_provide_its_epsilon():
    for found in component_classes().values():
        if getattr(found, "guarantees", False):
            assert EPSILON in found.provides
            assert TRAIN_LOSS in found.withholds
