"""Quantised updates: smaller on the wire, right in the mean, and the same for the same seed."""

import numpy as np
import pytest

from fedseg.contract.plan import parse_plan
from fedseg.contract.shapes import update_shapes
from fedseg.contract.update import QUANTISED
from fedseg.errors import ConfigurationError
from fedseg.filters.quantize import QuantizeUpdate
from fedseg.filters.restore import restore
from fedseg.filters.share_fraction import ShareFraction
from fedseg.messages.sizes import message_size
from fedseg.messages.updates import write_update
from fedseg.privacy.mechanisms.top_k import largest
from outgoing import flat, make_context, make_message, make_update
from tiny import PLAN

SHAPES = update_shapes(parse_plan(PLAN))


@pytest.mark.parametrize(("bits", "error"), [(16, 2.0**-10), (8, 1 / 127)])
def test_the_restored_update_is_within_a_step(tmp_path, bits, error):
    update = make_update()
    sent = QuantizeUpdate(bits).run(update, make_context(tmp_path))
    assert sent.form == QUANTISED
    restored = restore(sent, SHAPES)
    assert restored.form == "dense"
    for name, value in update.arrays.items():
        bound = np.abs(value).max() * error if bits == 8 else np.abs(value) * error
        assert np.all(np.abs(restored.arrays[name] - value) <= bound + 1e-9)


@pytest.mark.parametrize(("bits", "each"), [(16, 2), (8, 1)])
def test_the_message_shrinks_to_the_short_type(tmp_path, bits, each):
    plan = parse_plan({**PLAN, "network": "residual_unet"})
    update = make_update(plan=plan)
    count = sum(value.size for value in update.arrays.values())
    sent = QuantizeUpdate(bits).run(update, make_context(tmp_path, plan=plan))
    size = message_size(write_update(sent, make_message({"v": np.zeros(1)})))
    assert count * each < size < 1.02 * count * each


def test_after_partial_sharing_only_what_is_sent_is_rounded(tmp_path):
    update = make_update()
    context = make_context(tmp_path)
    restored = restore(QuantizeUpdate(8).run(ShareFraction(0.1).run(update, context), context), SHAPES)
    masks = largest(update.arrays, 0.1)
    chosen = flat(masks)
    assert np.count_nonzero(flat(restored.arrays)[~chosen]) == 0
    assert np.abs(flat(restored.arrays) - flat(update.arrays))[chosen].max() < np.abs(flat(update.arrays)).max() / 127
    assert [step["filter"] for step in restored.steps] == ["ShareFraction", "QuantizeUpdate"]


def test_the_rounding_follows_from_seed_site_and_round(tmp_path):
    update = make_update()
    first, again, later = (
        flat(restore(QuantizeUpdate(8).run(update, make_context(tmp_path, number)), SHAPES).arrays)
        for number in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, later)


@pytest.mark.parametrize("bits", [32, 4, "16", None, True])
def test_wrong_arguments_are_refused_by_name(bits):
    with pytest.raises(ConfigurationError, match=r"^QuantizeUpdate\.bits is"):
        QuantizeUpdate(bits)
