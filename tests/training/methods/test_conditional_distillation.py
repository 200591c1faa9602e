import contextlib
import itertools
import math
from dataclasses import replace

import pytest
import torch

from fedseg.contract.combinations import conflict
from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.tasks.segmentation.partial_loss import join_targets
from fedseg.tasks.task import parse_task
from fedseg.training.methods.class_weights import ClassWeights
from fedseg.training.methods.conditional_distillation import (
    ConditionalDistillation,
    distillation_term,
    group_matrix,
)
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from tiny import PLAN, TASK, make_sites

THREE = {**TASK, "labels": {"a": 1, "b": 2, "c": 3}, "sampling": {}, "regions": {"a": ["a"], "b": ["b"], "c": ["c"]}}
TASK3 = parse_task(THREE)
EXCLUSIVE = {**TASK, "regions": {"inner": ["inner"], "outer": ["outer"]}}
UNDRAWN = torch.tensor([[False, False, False], [False, True, True], [True, False, False]])
SHAPE = (3, 4, 3)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    own, teacher = (2 * torch.randn(3, 4, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    classes = torch.randint(0, 4, (3, 1, *SHAPE), generator=generator)
    for case, region in torch.nonzero(UNDRAWN).tolist():
        classes[case][classes[case] == region + 1] = 0
    return own, teacher, classes


def softmax(values, temperature):
    powers = [math.exp(float(v) / temperature) for v in values]
    return [p / sum(powers) for p in powers]


def slow(own, teacher, classes, groups, temperature):
    terms = []
    for case in range(3):
        undrawn = [r + 1 for r in range(3) if UNDRAWN[case, r]]
        if not undrawn:
            continue
        drawn = [r + 1 for r in range(3) if not UNDRAWN[case, r]]
        for group in [[0], *groups]:
            members = [c for c in group if c == 0 or c in undrawn]
            if not members:
                continue
            both = size = 0.0
            for voxel in itertools.product(*map(range, SHAPE)):
                logits = [[float(x[(case, c, *voxel)]) for c in range(4)] for x in (own, teacher)]
                if int(classes[(case, 0, *voxel)]) in drawn or max(range(4), key=logits[1].__getitem__) in drawn:
                    continue
                p, q = (softmax(values, temperature) for values in logits)
                s, t = (sum(x[c] for c in members) / (1 - sum(x[d] for d in drawn)) for x in (p, q))
                both, size = both + s * t, size + s + t
            terms.append(1 - (2 * both + 1e-5) / (size + 1e-5))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("names", [[], [["b", "c"]], [["a", "b"]]])
def test_the_term_against_a_slow_loop(names, temperature):
    own, teacher, classes = batch()
    grouped = {name for group in names for name in group}
    groups = [["abc".index(n) + 1 for n in g] for g in [*names, *([n] for n in "abc" if n not in grouped)]]
    found = distillation_term(own, teacher, classes, UNDRAWN, group_matrix(TASK3, names), temperature)
    assert float(found) == pytest.approx(slow(own, teacher, classes, groups, temperature), rel=1e-9)


def test_it_tells_nothing_about_drawn_classes_and_whole_cases():
    own, teacher, classes = batch()
    own.requires_grad_(True)
    distillation_term(own, teacher, classes, UNDRAWN, group_matrix(TASK3, []), 0.5).backward()
    drawn = torch.cat([torch.zeros(3, 1, dtype=torch.bool), ~UNDRAWN], dim=1)
    assert bool((own.grad[drawn] == 0).all())
    assert bool((own.grad[0] == 0).all())
    assert bool((own.grad[1] != 0).any())
    # What is left is split anew, and nothing is added to it.
    assert torch.allclose(own.grad.sum(dim=1), torch.zeros(3, *SHAPE, dtype=torch.float64), atol=1e-12)


def test_a_step_down_the_term_brings_the_network_to_the_teacher():
    own, teacher, classes = batch()
    teacher = 8 * teacher
    own.requires_grad_(True)
    term = [distillation_term(own, teacher, classes, UNDRAWN, group_matrix(TASK3, []), 1.0)]
    optimizer = torch.optim.Adam([own], lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        term[-1].backward()
        optimizer.step()
        term.append(distillation_term(own, teacher, classes, UNDRAWN, group_matrix(TASK3, []), 1.0))
    assert float(term[-1].detach()) < 0.1 < float(term[0].detach())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"strength": -1}, "strength"),
        ({"temperature": 0}, "temperature"),
        ({"groups": [["a"], ["a"]]}, "groups"),
        ({"groups": ["ab"]}, "groups"),
        ({"groups": [[]]}, "groups"),
    ],
)
def test_arguments_are_checked(arguments, named):
    with pytest.raises(ConfigurationError, match=named):
        ConditionalDistillation(**arguments)


def test_it_is_for_exclusive_regions_of_the_task():
    with pytest.raises(ConfigurationError, match="exclude each other"):
        ConditionalDistillation().check_plan(parse_plan(PLAN))
    with pytest.raises(ConfigurationError, match="liver"):
        ConditionalDistillation(groups=[["inner", "liver"]]).check_plan(parse_plan({**PLAN, "task": EXCLUSIVE}))
    assert "every region is drawn" in (conflict([ConditionalDistillation, ClassWeights], whole=False) or "")


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (3, 1)}) / "a")


def rounds(datalist, hooks):
    trainer = SiteTrainer(parse_plan({**PLAN, "task": EXCLUSIVE}), "a", datalist, TrainerSetup(hooks=hooks))
    weights = {n: v.numpy().copy() for n, v in trainer.plan.build_network().state_dict().items()}
    for number in range(2):
        weights = trainer.train_round(weights, number, 2).weights
    return weights


def equal(one, other):
    return all((one[name] == other[name]).all() for name in one)


def test_without_strength_or_undrawn_regions_it_is_plain_training_to_the_last_bit(datalist):
    first, *rest = datalist.training
    partial = replace(datalist, training=(replace(first, drawn=("inner",)), *rest))
    plain = rounds(partial, [])
    assert equal(rounds(partial, [ConditionalDistillation(0.0)]), plain)
    assert not equal(rounds(partial, [ConditionalDistillation()]), plain)
    assert equal(rounds(datalist, [ConditionalDistillation()]), rounds(datalist, []))


class _Step:
    """As much of a step as the hook sees: a task, and the network that the server sent."""

    total_rounds = 2

    def __init__(self, task, teacher):
        self.task, self.network = task, Fixed(teacher)

    @staticmethod
    def autocast():
        return contextlib.nullcontext()


class Fixed(torch.nn.Module):
    """Gives the same logits for every image."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, images):
        return self.logits


def test_the_order_of_regions_does_not_matter_to_the_term():
    """Channels follow the regions, labels the classes: turned round, the same voxels count."""
    own, teacher, classes = batch()
    order = {"c": ["c"], "a": ["a"], "b": ["b"]}
    channels, columns = [0, 3, 1, 2], [2, 0, 1]
    found = []
    for task, places, drawn in (
        (TASK3, [0, 1, 2, 3], [0, 1, 2]),
        (parse_task(THREE | {"regions": order}), channels, columns),
    ):
        hook, step = ConditionalDistillation(1.0, 0.5), _Step(task, teacher[:, places])
        hook.before_round(step, {}, 1)
        found.append(float(hook.loss(step, own, own[:, places], join_targets(classes, ~UNDRAWN[:, drawn]))))
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] > 0.01
