import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedseg.aggregators.spool import sums
from fedseg.aggregators.spool.sums import Strip, in_threads, strips, weighted_sums
from fedseg.aggregators.spool.updates import UpdateSpool


def fill(updates):
    spool = UpdateSpool()
    for site, update in updates.items():
        spool.put(site, update)
    return spool


def add_up(updates, factors, threads=None):
    with fill(updates).columns() as reader:
        return weighted_sums(reader, factors, threads)


def slow_sum(updates, factors, name):
    """The definition: products and sums rounded to float64, in the order of the names; the last to the widest type."""
    senders = sorted(site for site in updates if name in updates[site])
    total = np.zeros(updates[senders[0]][name].shape, np.float64)
    for site in senders:
        if factors[name].get(site):
            total = total + np.float64(factors[name][site]) * updates[site][name].astype(np.float64)
    return total.astype(np.result_type(np.float32, *(updates[site][name].dtype for site in senders)))


def random_updates(sites, shapes, seed=0, kind=np.float32):
    generator = np.random.default_rng(seed)
    return {
        f"s{j:03d}": {f"w{i}": generator.normal(size=shape).astype(kind) for i, shape in enumerate(shapes)}
        for j in range(sites)
    }


def test_by_hand():
    updates = {
        "a": {"w": np.array([1.0, 2.0], np.float32), "b": np.array(8.0, np.float32)},
        "b": {"w": np.array([3.0, -4.0], np.float32)},
        "c": {"w": np.array([3e38, -3e38], np.float32), "b": np.array(2.0, np.float32)},
    }
    # w: 0.25 * 1 + 2 * 3 = 6.25 and 0.25 * 2 - 2 * 4 = -7.5, the third site has no part; b: 0.5 * 8 + 0.5 * 2 = 5
    result = add_up(updates, {"w": {"a": 0.25, "b": 2.0, "c": 0.0}, "b": {"a": 0.5, "c": 0.5}})
    assert result["w"].tolist() == [6.25, -7.5]
    assert (result["b"].item(), result["b"].shape) == (5.0, ())


def test_only_the_arrays_asked_for_are_summed_and_none_is_zero():
    updates = random_updates(2, [(3,), (2, 2)])
    result = add_up(updates, {"w1": {"s000": 0.0, "s001": 0.0}})
    assert list(result) == ["w1"]
    assert result["w1"].tolist() == [[0.0, 0.0], [0.0, 0.0]]


# Arrays reach beyond the block of the compiled loop, and sites beyond its groups of four; small strips cut across all.
@pytest.mark.parametrize("width", [1, 64, 513, 2**20])
@pytest.mark.parametrize("kinds", ["444", "888", "482", "4444", "444444444", "48444244"])
def test_equals_the_slow_sum_to_the_last_bit(width, kinds, monkeypatch):
    monkeypatch.setattr(sums, "_STRIP", len(kinds) * width)
    shapes = [(), (0,), (3, 5), (513,), (2500,)] if width >= 64 else [(), (0,), (3, 5)]
    updates = {
        site: {name: array.astype(f"f{kind}") for name, array in update.items()}
        for kind, (site, update) in zip(kinds, random_updates(len(kinds), shapes).items(), strict=True)
    }
    del updates["s001"]["w2"]
    factors = {f"w{i}": {site: (-1) ** j / (j + 3) for j, site in enumerate(updates)} for i in range(len(shapes))}
    result = add_up(updates, factors)
    for name in factors:
        expected = slow_sum(updates, factors, name)
        assert (result[name].dtype, result[name].shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(result[name], expected)


@given(
    st.integers(1, 9).flatmap(lambda j: arrays(np.float32, (j, 5), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
)
@settings(max_examples=50)
def test_any_finite_numbers_equal_the_slow_sum(rows):
    updates = {f"s{j}": {"w": row} for j, row in enumerate(rows)}
    factors = {"w": {site: 1 / (j + 1) for j, site in enumerate(updates)}}
    np.testing.assert_array_equal(add_up(updates, factors)["w"], slow_sum(updates, factors, "w"))


def test_neither_threads_nor_arrival_nor_strips_change_a_bit(monkeypatch):
    updates = random_updates(7, [(3001,), (17, 41)])
    factors = {name: {site: 0.1 + 0.01 * j for j, site in enumerate(updates)} for name in ("w0", "w1")}
    expected = add_up(updates, factors, 1)
    generator = np.random.default_rng(1)
    for threads in (1, 2, 5):
        for strip in (7, 700, 2**20):
            monkeypatch.setattr(sums, "_STRIP", strip)
            shuffled = {site: updates[site] for site in generator.permutation(list(updates))}
            result = add_up(shuffled, factors, threads)
            for name in factors:
                assert result[name].tobytes() == expected[name].tobytes()


def test_a_hundred_sites_are_right_to_half_a_unit_in_the_last_place():
    updates = random_updates(100, [(4000,)])
    factors = {"w0": dict.fromkeys(updates, 0.01)}
    # Twice the digits of float64's sum, so that this reference is exact for the comparison.
    exact = sum(np.longdouble(0.01) * update["w0"].astype(np.longdouble) for update in updates.values())
    error = np.abs(add_up(updates, factors)["w0"].astype(np.longdouble) - exact)
    assert (error / np.spacing(exact.astype(np.float32)).astype(np.longdouble)).max() <= 0.5001


def test_the_result_is_the_callers_own():
    updates = random_updates(2, [(50,)])
    spool = fill(updates)
    factors = {"w0": dict.fromkeys(updates, 0.5)}
    with spool.columns() as reader:
        first = weighted_sums(reader, factors)
        first["w0"][:] = 7
        second = weighted_sums(reader, factors)
    spool.clear()
    assert (first["w0"] == 7).all()
    np.testing.assert_array_equal(second["w0"], slow_sum(updates, factors, "w0"))


@pytest.mark.parametrize(("senders", "widths"), [(1, [12, 8]), (4, [3] * 6 + [2]), (30, [1] * 20)])
def test_strips_cover_every_element_once_and_shrink_with_the_sites(senders, widths, monkeypatch):
    monkeypatch.setattr(sums, "_STRIP", 12)
    updates = {f"s{j}": {"e": np.zeros((0, 4), np.float32), "w": np.zeros(20, np.float32)} for j in range(senders)}
    with fill(updates).columns() as reader:
        found = list(strips(reader, ["e", "w"]))
    assert [strip.stop - strip.start for strip in found] == widths
    assert found[0] == Strip("w", 0, widths[0])
    assert [strip.start for strip in found[1:]] == [strip.stop for strip in found[:-1]]
    assert found[-1].stop == 20


@pytest.mark.parametrize("threads", [1, 2, 50])
def test_every_item_is_worked_on_once(threads):
    done, names = [], set()

    def work(item):
        done.append(item)
        names.add(threading.current_thread().name)

    in_threads(work, range(20), threads)
    assert sorted(done) == list(range(20))
    assert (names == {threading.current_thread().name}) == (threads == 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_a_thread_is_raised(threads):
    def work(item):
        if item == 3:
            raise ValueError("third")

    with pytest.raises(ValueError, match="third"):
        in_threads(work, range(8), threads)


def test_no_items_are_no_work():
    in_threads(lambda item: pytest.fail("called"), [])


def test_the_compiler_is_loaded_only_where_something_is_summed():
    # A site imports the rules to check a job, and should not pay for the server's compiler.
    code = (
        "import sys, fedseg.aggregators.spool.sums, fedseg.aggregators.geometry\n"
        "sys.exit('numba' in sys.modules or 'llvmlite' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
