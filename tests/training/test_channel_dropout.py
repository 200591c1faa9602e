"""Channel dropout: which channels a patch loses, how often, and that none of it happens without."""

from itertools import product
from math import sqrt

import numpy as np
import pytest
import torch

from fedseg.contract.plan import parse_plan
from fedseg.errors import ConfigurationError
from fedseg.tasks.task import parse_task
from fedseg.training.cache import CaseCache
from fedseg.training.channel_dropout import drop_channels
from fedseg.training.patches import PatchDataset
from tiny import PLAN, TASK

CHANNELS = ["t1", "t1ce", "t2"]


def task(optional=CHANNELS):
    return parse_task({**TASK, "channels": CHANNELS, "optional_channels": list(optional)})


def patch(there=(True, True, True)):
    values = torch.arange(1, 25, dtype=torch.float32).reshape(3, 2, 2, 2)
    return values * torch.tensor(there)[:, None, None, None]


def kept(image):
    return tuple(image.flatten(1).any(dim=1).tolist())


def test_without_dropout_nothing_is_drawn_and_the_patch_is_the_same():
    image, generator = patch(), np.random.default_rng(4)
    assert drop_channels(task(), image, 0.0, generator) is image
    assert generator.random() == np.random.default_rng(4).random()


def shares(optional, there, p):
    """The probability of every mask, by going through all losses; where none would be left, one stays."""
    open_ = [name in optional and here for name, here in zip(CHANNELS, there, strict=True)]
    found = dict.fromkeys(product((False, True), repeat=3), 0.0)
    for lost in product((False, True), repeat=3):
        if any(one and not may for one, may in zip(lost, open_, strict=True)):
            continue
        chance = float(np.prod([p if one else 1 - p for one, may in zip(lost, open_, strict=True) if may]))
        left = tuple(here and not one for here, one in zip(there, lost, strict=True))
        if any(left):
            found[left] += chance
            continue
        for place in np.flatnonzero(there):
            found[tuple(i == place for i in range(3))] += chance / sum(there)
    return found


@pytest.mark.parametrize(
    ("optional", "there"),
    [(CHANNELS, (True, True, True)), (["t1", "t2"], (True, True, True)), (CHANNELS, (True, False, True))],
)
def test_masks_come_as_often_as_independent_losses_of_which_one_channel_is_left(optional, there):
    count, p, generator = 4000, 0.4, np.random.default_rng(0)
    masks = [kept(drop_channels(task(optional), patch(there), p, generator)) for _ in range(count)]
    for mask, share in shares(optional, there, p).items():
        assert abs(masks.count(mask) / count - share) <= 4 * sqrt(share * (1 - share) / count)


def test_what_stays_is_as_it_was_and_one_channel_always_stays():
    image, generator = patch(), np.random.default_rng(1)
    for _ in range(200):
        left = drop_channels(task(), image, 0.99, generator)
        assert any(kept(left))
        assert all(torch.equal(left[i], image[i]) for i in np.flatnonzero(kept(left)))
    assert torch.equal(image, patch())
    assert not drop_channels(task(), torch.zeros(3, 2, 2, 2), 0.9, generator).any()


def test_patches_of_a_data_set_lose_channels_each_by_its_own_seed(make_case):
    cases = CaseCache(task(), [make_case(channels=3)], True)
    plain, losing = PatchDataset(cases.task, cases, "full"), PatchDataset(cases.task, cases, "full", 0.5)
    masks = set()
    for seed in range(12):
        whole, part = plain[(0, seed)]["image"], losing[(0, seed)]["image"]
        masks.add(kept(part))
        for channel in range(3):
            assert torch.equal(part[channel], whole[channel]) or not part[channel].any()
        assert torch.equal(losing[(0, seed)]["image"], part)
    assert len(masks) > 2


def test_a_task_without_optional_channels_has_no_dropout():
    declared = {**PLAN, "training": {**PLAN["training"], "channel_dropout": 0.1}}
    with pytest.raises(
        ConfigurationError, match=r"channel_dropout is 0.1, but must be 0 in this task.*optional_channels"
    ):
        parse_plan(declared)
    several = {**TASK, "channels": CHANNELS, "optional_channels": CHANNELS}
    assert parse_plan({**declared, "task": several}).training.channel_dropout == 0.1
    for wrong in (-0.1, 1, "0.1"):
        with pytest.raises(ConfigurationError, match="channel_dropout"):
            parse_plan({**declared, "task": several, "training": {"channel_dropout": wrong}})
