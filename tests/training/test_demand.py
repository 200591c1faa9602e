"""What training takes, counted by hand for a plan whose numbers are small, and beside what torch really holds."""

import gc

import numpy as np
import pytest
import torch

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.data.grid import Grid
from fedseg.errors import ConfigurationError
from fedseg.memory import GIB
from fedseg.networks.demand import demand
from fedseg.networks.parts.amplitude import SPECTRUM
from fedseg.networks.weights import get_weights
from fedseg.training.demand import cases_bytes, check_training, training_bytes
from fedseg.training.methods.ditto import Ditto
from fedseg.training.methods.fedmax import FedMax
from fedseg.training.methods.fedprox import FedProx
from fedseg.training.methods.harmofl import HarmoFL
from fedseg.training.methods.iop_fl import IOPFL
from fedseg.training.methods.moon import MOON
from fedseg.training.methods.scaffold import Scaffold
from fedseg.training.patient_dp_sgd import PatientDPSGD
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from tiny import PLAN, TASK, make_sites, small

SLICES = Grid((100, 80, 10), np.diag([0.5, 1.0, 5.0, 1.0]))


def plan(task=(), **training):
    return parse_plan({**PLAN, "task": {**TASK, **dict(task)}, "training": {**PLAN["training"], **training}})


def test_the_parts_of_the_estimate_by_hand():
    """4096 voxels, one channel, two outputs."""
    needs, voxels = demand(plan().network, 1, 2, (16, 16, 16)), 16**3
    of_pass = needs.kept + needs.largest + 3 * 2 * voxels
    for size, cases, batch in ((2, 10, 2), (4000, 10, 10), (2, 0, 1)):
        got = training_bytes(plan(batch_size=size), cases)
        alone = needs.unfolded if batch == 1 else 0
        assert got == 4 * (5 * needs.weights + batch * (2 * 2 * voxels + of_pass) + alone)
    # Eight channels from two levels of the network, 27 weights for each, at 8 x 8 x 8 voxels.
    assert needs.unfolded == 16 * 27 * 8**3
    sgd = training_bytes(plan(batch_size=1, optimizer="sgd", threads=2), 3)
    assert sgd == 4 * (4 * needs.weights + 2 * 2 * voxels + of_pass), "with two threads torch goes another way"
    without = training_bytes(plan(batch_size=1, optimizer="sgd", momentum=0.0, threads=2), 3)
    assert sgd - without == 4 * needs.weights
    half = training_bytes(plan(batch_size=1), 3, on_gpu=True)
    assert sgd + 4 * needs.weights - half == 2 * (needs.kept + needs.largest)
    assert training_bytes(plan(batch_size=1, precision="float32"), 3, on_gpu=True) == sgd + 4 * needs.weights


@pytest.mark.parametrize(
    ("hook", "copies"),
    [(FedProx(0.1), 1), (MOON(), 2), (Ditto(), 5), (IOPFL(), 1), (HarmoFL(), 1), (Scaffold(), 3), (FedMax(), 0)],
)
def test_what_a_method_keeps_counts_for_each_weight(hook, copies):
    """Ditto's personal model has gradients and AdamW's two numbers, and keeps the received weights."""
    weights = demand(plan().network, 1, 2, (16, 16, 16)).weights
    assert training_bytes(plan(), 3, [hook]) - training_bytes(plan(), 3) == 4 * copies * weights


def test_cases_that_go_one_by_one_take_the_memory_of_one():
    hook = PatientDPSGD(1.0, 1.0)
    one, eight = (training_bytes(plan(batch_size=size), 8, [hook]) for size in (1, 8))
    assert eight - one == 7 * 4 * 2 * 2 * 16**3, "the patches alone"


def test_images_count_at_the_voxel_size_of_the_task():
    """100 x 0.5, 80 x 1 and 10 x 5 mm are 50, 80 and 50 mm."""
    assert SLICES.voxels_at(None) == 100 * 80 * 10
    assert SLICES.voxels_at((1, 1, 1)) == 50 * 80 * 50
    assert SLICES.voxels_at((3, 3, 3)) == 17 * 27 * 17
    turned = Grid((10, 100, 80), np.array([[0, 0.5, 0, 0], [0, 0, 1.0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]]))
    assert turned.voxels_at((1, 2, 5)) == 50 * 40 * 10, "axes in the order of the body"


def test_all_images_count_where_they_stay_in_memory():
    small = Grid((10, 10, 10), np.eye(4))
    assert cases_bytes(plan({"spacing": [1, 1, 1]}), [SLICES, small]) == 4 * (200_000 + 1000)
    for largest in (
        plan({"spacing": [1, 1, 1]}, cache="disk"),
        plan({"spacing": [1, 1, 1], "crop_to_foreground": True}),
    ):
        assert cases_bytes(largest, [SLICES, small]) == 4 * 200_000
    assert cases_bytes(plan(), []) == 0


def test_the_finest_spacing_is_refused_by_its_images_and_the_largest_patch_by_itself():
    with pytest.raises(
        ConfigurationError, match=r"and the images is '.* GiB', but must be 64 GiB at most\. Take smaller"
    ):
        check_training(plan({"spacing": [0.01, 0.01, 0.01]}), [SLICES], limit=64 * GIB)
    with pytest.raises(ConfigurationError, match=r"batches of 2 patches of 1024x1024x1024 voxels is '.* GiB'"):
        check_training(plan({"patch_size": [1024] * 3}), [SLICES], limit=16 * GIB)
    check_training(plan(), [SLICES] * 20, limit=GIB)


def test_on_a_gpu_the_network_is_compared_with_the_gpu_and_the_images_with_the_site():
    network, images = training_bytes(plan(), 2, on_gpu=True), cases_bytes(plan(), [SLICES, SLICES])
    check_training(plan(), [SLICES, SLICES], limit=images, on_gpu=network)
    for limit, on_gpu, named in ((images - 1, network, "and the images"), (images, network - 1, "voxels is")):
        with pytest.raises(ConfigurationError, match=named):
            check_training(plan(), [SLICES, SLICES], limit=limit, on_gpu=on_gpu)


# ------------------------------------------------------------------------- beside what torch really holds

FACTOR = 1.5
NETWORKS = {
    "residual_unet": {"name": "residual_unet", "channels": [8, 16, 32], "strides": [2, 2]},
    "dynunet": {"name": "dynunet", "filters": [8, 16, 32], "strides": [1, 2, 2]},
    "segresnet": {"name": "segresnet", "init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
    "residual_encoder_unet": {
        "name": "residual_encoder_unet",
        "features": [8, 16, 32],
        "strides": [1, 2, 2],
        "blocks": [1, 2, 2],
        "blocks_up": [1, 1],
    },
}
METHODS = {"none": (), "FedProx": (FedProx, 0.1), "MOON": (MOON,), "Ditto": (Ditto,), "IOP-FL": (IOPFL,)}
METHODS |= {"HarmoFL": (HarmoFL,), "SCAFFOLD": (Scaffold,), "DP-SGD": (PatientDPSGD, 1.0, 1.0)}


def most_held(work):
    """The most bytes that torch held at one time while it worked, by its own profiler."""
    gc.collect()  # what earlier tests left would be freed meanwhile, and counted
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    folder = make_sites(tmp_path_factory.mktemp("memory"), {"a": (2, 1)})
    return read_datalist(folder / "a")


def measured(network, method, datalist, size, batch):
    """Estimate and what torch held in a round of a site."""
    training = {"batch_size": batch, "augmentation": "none", "optimizer": "adamw"}
    if method == "SCAFFOLD":
        training |= {"optimizer": "sgd", "momentum": 0.0}
    if method == "HarmoFL":
        network = {**network, "parts": [{"name": "amplitude"}]}
    declared = parse_plan({**PLAN, "network": network, "task": {**TASK, "patch_size": size}, "training": training})
    kind, *arguments = METHODS[method] or (None,)
    hooks = [] if kind is None else [kind(*arguments)]
    weights = get_weights(declared.build_network())
    shared = {f"control/{name}": np.zeros_like(value) for name, value in weights.items()}
    weights |= {name: value + 1 for name, value in weights.items() if name == SPECTRUM}

    def work():
        trainer = SiteTrainer(declared, "a", datalist, TrainerSetup(hooks=hooks, simulated=True))
        for number in range(2):
            trainer.train_round(weights, number, 2, shared)

    return training_bytes(declared, 2, hooks), most_held(work)


@pytest.mark.parametrize(
    ("network", "method"), [*((name, "none") for name in NETWORKS), *(("residual_unet", name) for name in METHODS)][1:]
)
@pytest.mark.parametrize(("size", "batch"), [((32, 32, 32), 2), ((16, 16, 16), 1)])
def test_the_estimate_is_what_training_takes_within_a_factor(network, method, datalist, size, batch):
    """Where activations are most of it, and where weights are."""
    estimate, held = measured(NETWORKS[network], method, datalist, size, batch)
    assert held / FACTOR <= estimate <= held * FACTOR, f"{estimate / 2**20:.1f} MiB for {held / 2**20:.1f} MiB"


@pytest.mark.parametrize(
    ("name", "size"),
    [pytest.param("swin_unetr", (32, 32, 64), marks=pytest.mark.full), ("unetr", (32, 32, 32))],
)
def test_the_estimate_holds_for_transformers(name, size, datalist):
    estimate, held = measured(small(name), "none", datalist, size, 1)
    assert held / FACTOR <= estimate <= held * FACTOR, f"{estimate / 2**20:.1f} MiB for {held / 2**20:.1f} MiB"
