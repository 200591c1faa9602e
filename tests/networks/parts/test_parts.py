import copy
import hashlib
import json

import numpy as np
import pytest
import torch

from fedseg.contract.plan import parse_plan
from fedseg.contract.shapes import array_owners, withheld_names
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.part import FIXED, PRIVATE, SHARED, Ownership
from fedseg.networks.registry import NETWORKS, parse_network
from fedseg.networks.split.stages import cut_stages
from fedseg.networks.weights import get_weights, set_weights
from tiny import PLAN, small
from toy_parts import NAMES, declare

IMAGE = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_plan_without_parts_is_the_plan_that_it_was():
    plan = parse_plan(PLAN)
    assert "parts" not in plan.network.to_dict()
    assert parse_plan({**PLAN, "network": {**PLAN["network"], "parts": []}}).digest == plan.digest
    assert hashlib.sha256(json.dumps(plan.to_dict(), sort_keys=True).encode()).hexdigest() == plan.digest
    assert array_owners(plan) == {}


def test_a_part_is_in_the_plan_and_in_its_digest(monkeypatch):
    plan = parse_plan(declare(monkeypatch, private=True))
    assert plan.network.to_dict()["parts"] == [{"name": "affine", "private": True, "sites": ["*"], "from_round": 0}]
    assert parse_plan(plan.to_dict()) == plan
    digests = {parse_plan(each).digest for each in (PLAN, declare(monkeypatch), declare(monkeypatch, private=True))}
    assert len(digests) == 3


@pytest.mark.parametrize("network", NETWORKS)
def test_a_part_changes_no_array_of_the_network_and_no_name(network, monkeypatch):
    declare(monkeypatch)
    bare = get_weights(parse_network(small(network)).build(1, 2, 3, (32, 32, 32)))
    whole = get_weights(parse_network(small(network, parts=[{"name": "affine"}])).build(1, 2, 3, (32, 32, 32)))
    assert list(whole) == [*bare, *NAMES]
    for name, value in bare.items():
        np.testing.assert_array_equal(whole[name], value)


def test_the_network_sees_what_the_part_makes_of_the_image(monkeypatch):
    plan = parse_plan(declare(monkeypatch))
    bare, whole = parse_plan(PLAN).build_network().eval(), plan.build_network().eval()
    slope, offset = (whole.get_parameter(name).item() for name in NAMES)
    assert torch.allclose(whole(IMAGE), bare(IMAGE * slope + offset), atol=1e-5)


def test_a_copy_of_a_network_has_a_part_of_its_own(monkeypatch):
    whole = parse_plan(declare(monkeypatch)).build_network().eval()
    before, other = whole(IMAGE), copy.deepcopy(whole)
    set_weights(other, {name: np.zeros_like(value) for name, value in get_weights(other).items()})
    assert torch.equal(whole(IMAGE), before)
    assert not other(IMAGE).any()


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ("affine", "network.parts"),
        (["affine"], r"network.parts\[0\]"),
        ([{"private": True}], r"network.parts\[0\].name"),
        ([{"name": "afine"}], r"parts\[0\].name is 'afine', but must be one of .*affine"),
        ([{"name": "affine", "slope": 1}], r"parts\[0\].slope is not known: the settings are"),
        ([{"name": "affine", "private": 1}], r"parts\[0\].private is 1, but must be true or false"),
        ([{"name": "affine"}, {"name": "affine"}], r"parts\[1\].name is 'affine', but must be a part that is not"),
    ],
)
def test_what_is_no_part_is_refused_by_name(parts, named, monkeypatch):
    declare(monkeypatch)
    with pytest.raises(ConfigurationError, match=named):
        parse_plan({**PLAN, "network": {**PLAN["network"], "parts": parts}})


def test_a_network_that_is_cut_has_no_parts(monkeypatch):
    network = parse_plan(declare(monkeypatch)).network
    with pytest.raises(ConfigurationError, match=r"network\.parts is \['affine'\], but must be left out"):
        cut_stages(network, "encoder1")


@pytest.mark.parametrize(
    ("owner", "trained", "sent"),
    [
        (SHARED, "a0 a1 b0 b1", "a0 a1 b0 b1"),
        (PRIVATE, "a0 a1 b0 b1", ""),
        (FIXED, "", ""),
        (Ownership(sites=("a*",)), "a0 a1", "a0 a1"),
        (Ownership(from_round=1), "a1 b1", "a1 b1"),
        (Ownership(private=True, sites=("b",), from_round=1), "b1", ""),
    ],
)
def test_who_trains_an_array_and_who_sends_it(owner, trained, sent):
    places = [(site, number) for site in "ab" for number in (0, 1)]
    assert [f"{s}{n}" for s, n in places if owner.trained(s, n)] == trained.split()
    assert [f"{s}{n}" for s, n in places if owner.sent(s, n)] == sent.split()


def test_names_that_are_withheld_follow_from_site_and_round(monkeypatch):
    plan = parse_plan(declare(monkeypatch, sites=["a"], from_round=2))
    assert array_owners(plan) == dict.fromkeys(NAMES, Ownership(sites=("a",), from_round=2))
    assert withheld_names(plan, "a", 2) == frozenset()
    assert withheld_names(plan, "a", 1) == withheld_names(plan, "b", 5) == frozenset(NAMES)
