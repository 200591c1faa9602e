"""Partial sharing: the exact coordinates, on the wire as small as promised, and nothing forgotten with feedback."""

import math
from pathlib import Path

import numpy as np
import pytest
from nvflare.apis.dxo import MetaKey, from_shareable

from fedseg.contract.plan import parse_plan
from fedseg.contract.protocol import KEEP, LINEAGE, START
from fedseg.contract.shapes import update_shapes
from fedseg.contract.update import SPARSE, Update
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.filters.restore import restore
from fedseg.filters.share_fraction import FOLDER, ShareFraction
from fedseg.jobs.job import read_job
from fedseg.messages.sizes import message_size
from fedseg.messages.updates import write_update
from fedseg.simulation.in_process import InProcessFederation
from outgoing import REPORT, flat, make_context, make_message, make_update
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
SHAPES = update_shapes(parse_plan(PLAN))


def share(update, context, **arguments):
    """What the server restores of an update."""
    return restore(ShareFraction(**arguments).run(update, context), SHAPES)


def small(*values):
    return Update({"v": np.array(values, np.float32)}, REPORT)


def share_small(filter_, update, context):
    sent = filter_.run(update, context)
    return restore(sent, {"v": (update.arrays["v"].size,)}).arrays["v"].tolist()


def test_the_largest_by_hand(tmp_path):
    update = small(0.1, -0.5, 0.3, 0.2, -0.05)
    # ceil(0.4 * 5) = 2: -0.5 and 0.3; with the bound 0.25 each is cut, and still those two are sent.
    assert share_small(ShareFraction(0.4), update, make_context(tmp_path)) == pytest.approx([0, -0.5, 0.3, 0, 0])
    clipped = share_small(ShareFraction(0.4, clip=0.25), update, make_context(tmp_path))
    assert clipped == pytest.approx([0, -0.25, 0.25, 0, 0])


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.1, 0.4, 0.999, 1])
@pytest.mark.parametrize("per_layer", [False, True])
def test_exactly_the_ceiling_is_sent_and_it_is_the_top(tmp_path, fraction, per_layer):
    """Against a full sort."""
    update = make_update()
    restored = share(update, make_context(tmp_path), fraction=fraction, per_layer=per_layer).arrays
    parts = [[n] for n in update.arrays] if per_layer else [list(update.arrays)]
    for names in parts:
        before = flat({n: update.arrays[n] for n in names})
        after = flat({n: restored[n] for n in names})
        count = math.ceil(round(fraction * before.size, 9))
        assert np.count_nonzero(after) == count
        threshold = np.sort(np.abs(before))[-count]
        np.testing.assert_array_equal(after, np.where(np.abs(before) >= threshold, before, 0))


@pytest.mark.parametrize("per_layer", [False, True])
def test_everything_without_a_bound_is_the_update_bit_for_bit(tmp_path, per_layer):
    update = make_update()
    restored = share(update, make_context(tmp_path), fraction=1, per_layer=per_layer)
    assert restored.form == "dense"
    assert list(restored.arrays) == list(update.arrays)
    for name, value in update.arrays.items():
        assert restored.arrays[name].tobytes() == value.tobytes()
        assert (restored.arrays[name].dtype, restored.arrays[name].shape) == (value.dtype, value.shape)


def test_a_federation_that_shares_everything_is_fedavg(tmp_path):
    """Two rounds of two sites through filter and restoration: bit for bit."""
    data = make_sites(tmp_path, {"alpha": (3, 1), "beta": (2, 1)})
    models = []
    for name in ("hippocampus_fedavg", "hippocampus_partial"):
        job = read_job(ROOT / "jobs" / name)
        for key, value in (("task", PLAN["task"]), ("network", PLAN["network"]), ("workflow.num_rounds", 2)):
            job.set(key, value)
        if name == "hippocampus_partial":
            job.set("filter.ShareFraction.fraction", 1)
        federation = InProcessFederation(job, {site: read_datalist(data / site) for site in ("alpha", "beta")})
        federation.run()
        models.append(federation.model.weights)
    for name, value in models[0].items():
        np.testing.assert_array_equal(models[1][name], value)


@pytest.mark.parametrize("job", ["hippocampus_partial", "brats_partial"])
def test_ten_per_cent_take_a_seventh_of_the_dense_message(tmp_path, job):
    """Measured on the message that leaves, report and record included: at most 0.16 of the dense float32 bytes."""
    plan = read_job(ROOT / "jobs" / job).plan
    update = make_update(plan=plan)
    dense = sum(value.size * 4 for value in update.arrays.values())
    sent = ShareFraction(0.1).run(update, make_context(tmp_path, plan=plan))
    ratio = message_size(write_update(sent, make_message({"v": np.zeros(1)}))) / dense
    assert 0.13 < ratio <= 0.14


def test_the_record_says_what_was_done_and_nothing_of_the_data(tmp_path):
    sent = ShareFraction(0.1, clip=0.5).run(make_update(), make_context(tmp_path))
    total = sum(math.prod(shape) for shape in SHAPES.values())
    (step,) = sent.steps
    assert step.pop("seconds") >= 0
    assert step == {
        "filter": "ShareFraction",
        "stage": 40,
        "fraction": 0.1,
        "per_layer": False,
        "clip": 0.5,
        "error_feedback": False,
        "coordinates": total,
        "sent": math.ceil(total / 10),
    }
    message = from_shareable(write_update(sent, make_message({"v": np.zeros(1)})))
    assert message.get_meta_prop(MetaKey.PROCESSED_ALGORITHM) == f"fedseg.{SPARSE}"


# ------------------------------------------------------------------ error feedback


def test_what_was_not_sent_comes_later_by_hand(tmp_path):
    """One of two coordinates a round. Round 0: 3 of (3, 2), 2 stays. Round 1: (1, 1) + (0, 2): 3 is sent, 1 stays."""
    feedback = ShareFraction(0.5, error_feedback=True)
    assert share_small(feedback, small(3, 2), make_context(tmp_path, 0)) == [3, 0]
    assert share_small(feedback, small(1, 1), make_context(tmp_path, 1)) == [0, 3]
    assert share_small(feedback, small(0, 0), make_context(tmp_path, 2)) == [1, 0]


def test_what_the_bound_cuts_off_is_not_sent_either(tmp_path):
    feedback = ShareFraction(0.5, clip=2.0, error_feedback=True)
    assert share_small(feedback, small(5, 1), make_context(tmp_path, 0)) == [2, 0]
    # 3 and 1 are left.
    assert share_small(feedback, small(0, 0), make_context(tmp_path, 1)) == [2, 0]


def test_over_the_rounds_nothing_is_lost(tmp_path):
    """The sum of all that is sent and what is left is the sum of all updates, to float32's rounding."""
    feedback, sent, made = ShareFraction(0.1, error_feedback=True), 0.0, 0.0
    for number in range(6):
        update = make_update(seed=number)
        made = made + flat(update.arrays).astype(np.float64)
        sent = sent + flat(restore(feedback.run(update, make_context(tmp_path, number)), SHAPES).arrays)
    nothing = Update({n: np.zeros_like(v) for n, v in make_update().arrays.items()}, REPORT)
    everything = ShareFraction(1, error_feedback=True).run(nothing, make_context(tmp_path, 6))
    np.testing.assert_allclose(sent + flat(restore(everything, SHAPES).arrays), made, atol=1e-7)
    assert np.count_nonzero(sent) < made.size


def test_a_round_that_is_repeated_starts_from_the_round_before(tmp_path):
    """Also in a new process: a fresh filter reads what the killed one left."""
    share_small(ShareFraction(0.5, error_feedback=True), small(3, 2), make_context(tmp_path, 0))
    for _ in range(3):
        again = share_small(ShareFraction(0.5, error_feedback=True), small(1, 1), make_context(tmp_path, 1))
        assert again == [0, 3]


def test_a_run_that_goes_back_forgets_the_later_rounds(tmp_path):
    feedback = ShareFraction(0.5, error_feedback=True)
    for number in range(3):
        share_small(feedback, small(3, 2), make_context(tmp_path, number))
    share_small(feedback, small(1, 1), make_context(tmp_path, 1))
    names = sorted(path.name for path in (tmp_path / "run" / FOLDER).iterdir())
    assert names == ["round-00000.safetensors", "round-00001.safetensors"]


def test_a_branch_that_is_no_longer_followed_is_passed_over(tmp_path):
    """Round 1 was made by another start of the server than the one that the run now goes on from."""
    feedback = ShareFraction(0.5, error_feedback=True)
    share_small(feedback, small(3, 2), make_context(tmp_path, 0, task_meta={START: "one"}))
    share_small(feedback, small(9, 8), make_context(tmp_path, 1, task_meta={START: "one"}))
    meta = {START: "two", LINEAGE: ["one", "two"]}
    assert share_small(feedback, small(1, 1), make_context(tmp_path, 2, task_meta=meta)) == [0, 3]


@pytest.mark.parametrize(("kept", "files"), [(2, [3, 4, 5]), (1, [4, 5]), (0, [0, 1, 2, 3, 4, 5])])
def test_as_many_rounds_are_kept_as_the_server_may_go_back(tmp_path, kept, files):
    feedback = ShareFraction(0.5, error_feedback=True)
    for number in range(6):
        share_small(feedback, small(3, 2), make_context(tmp_path, number, task_meta={KEEP: kept}))
    assert sorted(int(p.stem[-5:]) for p in (tmp_path / "run" / FOLDER).iterdir()) == files


def test_going_back_further_than_is_kept_is_refused(tmp_path):
    feedback = ShareFraction(0.5, error_feedback=True)
    for number in range(6):
        share_small(feedback, small(3, 2), make_context(tmp_path, number))
    with pytest.raises(RefusalError, match="round 3 is gone") as caught:
        share_small(feedback, small(3, 2), make_context(tmp_path, 2))
    assert caught.value.reason == "state"
    assert share_small(feedback, small(3, 2), make_context(tmp_path, 0)) == [3, 0], "round 0 starts from nothing"


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08" + bytes(7) + b"{}      "])
def test_a_damaged_residual_is_refused_without_naming_the_file(tmp_path, content):
    feedback = ShareFraction(0.5, error_feedback=True)
    share_small(feedback, small(3, 2), make_context(tmp_path, 0))
    (tmp_path / "run" / FOLDER / "round-00000.safetensors").write_bytes(content)
    with pytest.raises(RefusalError, match="damaged") as caught:
        share_small(feedback, small(3, 2), make_context(tmp_path, 1))
    assert str(tmp_path) not in str(caught.value)


def test_a_residual_of_other_arrays_is_refused(tmp_path):
    feedback = ShareFraction(0.5, error_feedback=True)
    share_small(feedback, small(3, 2), make_context(tmp_path, 0))
    with pytest.raises(RefusalError, match="other arrays"):
        share_small(feedback, small(3, 2, 1), make_context(tmp_path, 1))


def test_without_feedback_nothing_is_written(tmp_path):
    share(make_update(), make_context(tmp_path), fraction=0.1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"fraction": 0}, "fraction"),
        ({"fraction": 1.1}, "fraction"),
        ({"fraction": "0.1"}, "fraction"),
        ({"fraction": True}, "fraction"),
        ({"fraction": float("nan")}, "fraction"),
        ({"fraction": 0.1, "clip": 0}, "clip"),
        ({"fraction": 0.1, "clip": "1"}, "clip"),
        ({"fraction": 0.1, "clip": float("inf")}, "clip"),
        ({"fraction": 0.1, "per_layer": 1}, "per_layer"),
        ({"fraction": 0.1, "error_feedback": "yes"}, "error_feedback"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, named):
    with pytest.raises(ConfigurationError, match=rf"^ShareFraction\.{named} is"):
        ShareFraction(**arguments)
