"""Normalisation by modality: which branch an image meets, who trains it, and the limits in which it is FedAvg."""

import copy

import numpy as np
import pytest
import torch

from fedseg.contract.plan import parse_plan
from fedseg.contract.shapes import array_owners
from fedseg.data.datalist import Datalist
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.models.model_file import initial_weights, write_model
from fedseg.networks.registry import parse_network
from fedseg.networks.weights import get_weights, set_weights
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from tiny import PLAN, TASK

NETWORKS = {
    "residual_unet": {"channels": [4, 8, 8], "strides": [2, 2]},
    "dynunet": {"filters": [4, 8, 8], "strides": [1, 2, 2]},
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
}
BOTH = {**TASK, "channels": ["ct", "mr"], "optional_channels": ["ct", "mr"], "sampling": {}}
START = "parts.modality_norm."


def plan(sites=(("c*",), ("m*",)), task=BOTH, parts=True):
    added = [{"name": "modality_norm", "sites": [list(group) for group in sites]}] if parts else []
    return parse_plan({**PLAN, "task": task, "network": {**PLAN["network"], "parts": added}})


def cases(make_case, place, count=2):
    """Cases that have the channel at a place only."""
    found = []
    for number in range(count):
        case = make_case(f"{place}_{number}")
        found.append(type(case)(case.images, case.label, f"p{place}{number}", tuple({0, 1} - {place})))
    return Datalist(tuple(found), tuple(found[:1]))


def trained(of, site, datalist, **setup):
    trainer = SiteTrainer(of, site, datalist, TrainerSetup(**setup))
    weights = get_weights(of.build_network())
    return weights, trainer.train_round(weights, 0, 3)


def shuffled(network):
    """Scales and offsets that differ from each other."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def images(*places):
    made = torch.zeros(len(places), 2, 8, 8, 8)
    for number, place in enumerate(places):
        made[number, place] = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(number))
    return made


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_each_image_meets_the_branch_of_its_modality_whatever_else_is_in_the_batch(name, group):
    """A network without the part, with the arrays of the branch in the place of its own, gives the same."""
    declared = {"name": name, **NETWORKS[name], "norm": "group" if group else "instance"}
    whole = parse_network({**declared, "parts": [{"name": "modality_norm", "sites": [["*"], ["*"]]}]})
    network, plain = shuffled(whole.build(2, 2, 0)), parse_network(declared).build(2, 2, 0).eval()
    batch = images(1, 0, 1)
    with torch.no_grad():
        mixed = network(batch)
        for number, place in enumerate((1, 0, 1)):
            arrays = {n: v for n, v in network.state_dict().items() if not n.startswith("parts.")}
            plain.load_state_dict(arrays)
            layers = [m for m in plain.modules() if isinstance(m, torch.nn.InstanceNorm3d | torch.nn.GroupNorm)]
            for index, layer in enumerate(layers if place else ()):
                layer.weight.copy_(network.state_dict()[f"{START}scales.1_{index}"])
                layer.bias.copy_(network.state_dict()[f"{START}offsets.1_{index}"])
            torch.testing.assert_close(mixed[number], plain(batch[number : number + 1])[0])
        assert not torch.allclose(network(images(0))[0], network(images(0).flip(1))[0])


def test_one_modality_is_training_without_the_part_to_the_bit(make_case):
    case = make_case("x")
    datalist = Datalist((case,), (case,))
    weights, one = trained(plan([["*"]], TASK), "a", datalist)
    _, bare = trained(plan(task=TASK, parts=False), "a", datalist)
    assert set(one.update) == set(bare.update) == {n for n, v in weights.items() if v.dtype == np.float32}
    for name, value in bare.update.items():
        np.testing.assert_array_equal(one.update[name], value)


@pytest.mark.parametrize(("site", "place"), [("c1", 0), ("m1", 1)])
def test_a_site_of_one_modality_trains_its_branch_as_fedavg_would_and_leaves_the_other(site, place, make_case):
    datalist = cases(make_case, place)
    weights, result = trained(plan(), site, datalist)
    _, bare = trained(plan(parts=False), site, datalist)
    own = [name for name, owner in array_owners(plan()).items() if owner.trained(site, 0)]
    others = [name for name, owner in array_owners(plan()).items() if not owner.trained(site, 0)]
    assert own
    assert others
    assert not set(others) & set(result.update)
    for name in others:
        np.testing.assert_array_equal(result.weights[name], weights[name])
    norms = [name for name in array_owners(plan()) if not name.startswith("parts.")]
    for name, value in bare.update.items():
        if name not in norms:
            np.testing.assert_array_equal(result.update[name], value)
    moved = sorted(float(np.abs(result.update[name]).sum()) for name in own)
    assert moved == sorted(float(np.abs(bare.update[name]).sum()) for name in norms)
    assert max(moved) > 0


def test_a_copy_of_the_network_has_branches_of_its_own():
    network = shuffled(plan([["*"], ["*"]]).build_network())
    before, other = network(images(1)), copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.get_submodule("parts.modality_norm").parameters():
            parameter.zero_()
        assert torch.equal(network(images(1)), before)
        assert not torch.allclose(other(images(1)), before)


@pytest.mark.parametrize(
    ("sites", "task", "named"),
    [
        ([["a"]], BOTH, r"parts\[0\].sites is .*2 lists"),
        ([["a"], []], BOTH, r"parts\[0\].sites is"),
        ([], BOTH, r"parts\[0\].sites is"),
        ([["a"], ["b"]], {**BOTH, "optional_channels": ["mr"]}, "optional_channels is .*all of"),
    ],
)
def test_what_is_no_group_for_each_modality_is_refused(sites, task, named):
    with pytest.raises(ConfigurationError, match=named):
        plan(sites, task)


def test_a_site_of_no_group_is_refused_before_it_trains_and_may_score(make_case):
    datalist = cases(make_case, 0)
    with pytest.raises(RefusalError, match="part modality_norm names groups of sites, and this site is in none"):
        trained(plan(), "hospital", datalist)
    assert len(SiteTrainer(plan(), "hospital", datalist).validate(get_weights(plan().build_network()))) == 1


@pytest.mark.parametrize("place", [0, 1])
def test_who_trains_alone_trains_the_branches_of_its_images_as_a_site_of_their_group_does(place, make_case):
    datalist = cases(make_case, place)
    _, group = trained(plan(), "cm"[place], datalist)
    weights, alone = trained(plan([["x"], ["y"]]), "cm"[place], datalist, alone=True)
    assert set(alone.update) == {name for name, value in weights.items() if value.dtype == np.float32}
    for name, value in group.weights.items():
        np.testing.assert_array_equal(alone.weights[name], value)


@pytest.mark.parametrize("group", [False, True])
def test_every_modality_begins_with_the_normalisation_of_a_model_without_the_part(group, tmp_path):
    norm = {**PLAN, "task": BOTH, "network": {**PLAN["network"], "norm": "group" if group else "instance"}}
    plain, parts = parse_plan(norm), [{"name": "modality_norm", "sites": [["c*"], ["m*"]]}]
    network = shuffled(plain.build_network())
    whole = parse_plan({**norm, "network": {**norm["network"], "parts": parts}})
    begun = whole.build_network().eval()
    set_weights(begun, initial_weights(whole, write_model(tmp_path / "m", plain, get_weights(network), 3)))
    with torch.no_grad():
        torch.testing.assert_close(begun(images(0, 1, 1)), network(images(0, 1, 1)))


def test_a_model_with_the_part_keeps_its_branches(tmp_path):
    weights = get_weights(shuffled(plan().build_network()))
    found = initial_weights(plan(), write_model(tmp_path / "m", plan(), weights, 3))
    assert set(found) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value)
