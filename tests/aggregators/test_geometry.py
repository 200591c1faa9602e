import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedseg.aggregators.geometry import measure
from fedseg.aggregators.spool import sums
from fedseg.aggregators.spool.updates import UpdateSpool


def fill(updates):
    spool = UpdateSpool()
    for site, update in updates.items():
        spool.put(site, update)
    return spool


def random_updates(sites, sizes=((3, 4), (50,), (), (0,)), seed=0, kind=np.float32):
    generator = np.random.default_rng(seed)
    return {
        f"s{j}": {f"w{i}": generator.normal(size=size).astype(kind) for i, size in enumerate(sizes)}
        for j in range(sites)
    }


def vectors(updates):
    """Each site's update as one long float64 vector, zeros for what it did not send."""
    names = sorted({name for update in updates.values() for name in update})
    shapes = {name: next(u[name].shape for u in updates.values() if name in u) for name in names}
    return np.stack(
        [
            np.concatenate([updates[s].get(n, np.zeros(shapes[n])).ravel().astype(np.float64) for n in names])
            for s in sorted(updates)
        ]
    )


def test_by_hand():
    spool = fill({"b": {"w": np.array([3.0, 4.0], np.float32)}, "a": {"w": np.array([1.0, 0.0], np.float32)}})
    geometry = measure(spool)
    assert geometry.sites == ["a", "b"]
    # <a, b> = 3; |a - b|^2 = 4 + 16
    assert geometry.inner.tolist() == [[1.0, 3.0], [3.0, 25.0]]
    assert geometry.squared.tolist() == [[0.0, 20.0], [20.0, 0.0]]
    assert geometry.norms.tolist() == [1.0, 5.0]


def test_equals_a_slow_loop():
    updates = random_updates(4, ((2, 3), (5,)))
    geometry, rows = measure(fill(updates)), vectors(updates)
    for i in range(4):
        for j in range(4):
            inner = squared = 0.0
            for one, other in zip(rows[i], rows[j], strict=True):
                inner += one * other
                squared += (one - other) ** 2
            assert geometry.inner[i, j] == pytest.approx(inner, rel=1e-12, abs=1e-12)
            assert geometry.squared[i, j] == pytest.approx(squared, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("strip", [10, 333, 2**20])
@pytest.mark.parametrize("kinds", ["44444", "88888", "48424"])
def test_equals_numpy_on_whole_vectors_with_arrays_missing(strip, kinds, monkeypatch):
    monkeypatch.setattr(sums, "_STRIP", strip)
    updates = random_updates(5)
    for kind, update in zip(kinds, updates.values(), strict=True):
        for name in update:
            update[name] = update[name].astype(f"f{kind}")
    del updates["s1"]["w0"], updates["s3"]["w0"], updates["s0"]["w1"], updates["s4"]["w2"]
    geometry, rows = measure(fill(updates)), vectors(updates)
    np.testing.assert_allclose(geometry.inner, rows @ rows.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(geometry.squared, ((rows[:, None] - rows[None]) ** 2).sum(-1), rtol=1e-12)


def test_sites_without_a_common_array_are_orthogonal():
    spool = fill({"a": {"v": np.array([3.0], np.float32)}, "b": {"w": np.array([4.0], np.float32)}})
    geometry = measure(spool)
    assert geometry.inner.tolist() == [[9.0, 0.0], [0.0, 16.0]]
    assert geometry.squared.tolist() == [[0.0, 25.0], [25.0, 0.0]]


def test_equal_updates_have_the_distance_zero_and_near_ones_their_own():
    base = random_updates(1, ((1000,),))["s0"]["w0"] * np.float32(1e4)
    near = base.copy()
    near[17] = np.nextafter(near[17], np.float32(np.inf))
    step = float(near[17]) - float(base[17])
    geometry = measure(fill({"a": {"w": base}, "b": {"w": base.copy()}, "c": {"w": near}}))
    assert geometry.squared[0, 1] == 0.0
    assert geometry.squared[0, 2] == geometry.squared[1, 2] == step**2
    # From inner products it would have drowned.
    assert step**2 < np.finfo(float).eps * geometry.inner[0, 0]


@given(arrays(np.float32, (4, 6), elements=st.floats(-1e6, 1e6, width=32)))
@settings(max_examples=50)
def test_is_a_geometry(rows):
    geometry = measure(fill({f"s{j}": {"w": row} for j, row in enumerate(rows)}))
    assert (geometry.inner == geometry.inner.T).all()
    assert (geometry.squared == geometry.squared.T).all()
    assert (np.diag(geometry.squared) == 0).all()
    norms, distances = geometry.norms, np.sqrt(geometry.squared)
    assert (np.abs(geometry.inner) <= np.outer(norms, norms) * (1 + 1e-9)).all()
    assert (distances[:, None] <= (distances[:, :, None] + distances[None]).transpose(0, 2, 1) * (1 + 1e-9)).all()


def test_neither_threads_nor_arrival_change_a_bit(monkeypatch):
    monkeypatch.setattr(sums, "_STRIP", 200)
    updates = random_updates(6, ((1000,), (33, 7)))
    del updates["s2"]["w1"]
    expected = measure(fill(updates), 1)
    generator = np.random.default_rng(2)
    for threads in (1, 2, 5):
        shuffled = {site: updates[site] for site in generator.permutation(list(updates))}
        geometry = measure(fill(shuffled), threads)
        assert geometry.inner.tobytes() == expected.inner.tobytes()
        assert geometry.squared.tobytes() == expected.squared.tobytes()


def test_one_site_and_updates_without_elements():
    geometry = measure(fill({"a": {"w": np.zeros((0, 3), np.float32)}}))
    assert (geometry.inner.tolist(), geometry.squared.tolist(), geometry.norms.tolist()) == ([[0.0]], [[0.0]], [0.0])
