from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedseg.contract.plan import parse_plan
from fedseg.contract.proposal import VOXELS, propose
from fedseg.version import __version__

SPLEEN = {
    "name": "spleen",
    "modality": "CT",
    "channels": ["ct"],
    "labels": {"spleen": 1},
    "normalisation": "window",
    "window": [-100, 240],
}


def plan(proposal):
    task = {**SPLEEN, **proposal["task"]}
    return parse_plan({"fedseg_version": __version__, "task": task, "network": proposal["network"]})


IMAGES = st.lists(
    st.tuples(
        st.tuples(st.integers(1, 600), st.integers(1, 600), st.integers(1, 300)),
        st.tuples(*[st.floats(0.2, 12.0, allow_subnormal=False)] * 3),
    ),
    min_size=1,
    max_size=5,
)


@given(IMAGES, st.sampled_from([32**3, VOXELS]))
def test_every_proposal_is_a_plan_within_its_voxels(images, voxels):
    shapes, spacings = zip(*images, strict=True)
    proposal = propose(shapes, spacings, voxels)
    assert prod(plan(proposal).task.patch_size) <= voxels


def test_equal_voxels_give_equal_strides():
    # By hand: 240 x 240 x 155 has 10 times too many voxels, and 96 x 112 x 80 is as near to its shape as 16s allow.
    proposal = propose([(240, 240, 155)] * 3, [(1.0, 1.0, 1.0)] * 3)
    assert proposal["task"] == {"spacing": [1.0, 1.0, 1.0], "patch_size": [96, 112, 80]}
    assert proposal["network"]["strides"] == [1, 2, 2, 2, 2]
    assert proposal["network"]["kernels"] == [3, 3, 3, 3, 3]


def test_thick_slices_are_met_when_voxels_have_become_as_long():
    # By hand: 1, 2, 4 mm within the slice against 6 mm across; at 4 mm the slice is less than twice as thick.
    network = propose([(256, 256, 20)], [(1.0, 1.0, 6.0)])["network"]
    assert network["strides"][:4] == [1, [2, 2, 1], [2, 2, 1], 2]
    assert network["kernels"] == [[3, 3, 1], [3, 3, 1], 3, 3, 3, 3]


def test_the_thinner_slices_among_thick_ones_decide():
    spacings = [(1.0, 1.0, z) for z in (3.0, *[6.0] * 9)]
    across = propose([(256, 256, 20)] * 10, spacings)["task"]["spacing"][2]
    assert across == pytest.approx(3.0 + 0.9 * 3.0)  # the tenth percentile of ten: nine tenths of the way to the second
    assert propose([(64, 64, 60)] * 10, spacings)["task"]["spacing"][2] == 6.0, "as many slices as rows are not thick"


def test_the_network_of_a_proposal_runs():
    made = plan(propose([(40, 44, 9)], [(1.0, 1.0, 4.0)], 16**3))
    network = made.network.build(1, 2, seed=0)
    assert network(torch.zeros(1, 1, *made.task.patch_size)).shape == (1, 2, *made.task.patch_size)
