"""Version vectors: only newer models travel, versions never go back, and whoever dies stops nobody."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.errors import RefusalError
from fedseg.site.peer_versions import PeerVersions, shares

SITES = ("a", "b", "c", "d")


def exchange(vectors, initiator, reached, dies=""):
    """One turn of BrainTorrent over vectors by site; returns which models travelled. ``dies`` says before what."""
    own = vectors[initiator]
    newer = own.newer({peer: vectors[peer].own for peer in reached})
    if dies == "merge":
        return newer
    merged = own.merged({peer: vectors[peer].own for peer in newer})
    if dies == "train":
        return newer
    vectors[initiator] = merged.trained()
    return newer


turns = st.lists(
    st.tuples(
        st.sampled_from(SITES),
        st.lists(st.sampled_from(SITES), unique=True),
        st.sampled_from(["", "", "merge", "train"]),
    ),
    max_size=30,
)


@given(turns)
def test_versions_only_go_up_and_nobody_knows_more_than_there_is(played):
    vectors = {site: PeerVersions(site) for site in SITES}
    for initiator, reached, dies in played:
        before = dict(vectors)
        exchange(vectors, initiator, reached, dies)
        for site in SITES:
            assert vectors[site].own >= before[site].own
            assert all(vectors[site].known.get(peer, 0) >= version for peer, version in before[site].known.items())
            assert all(version <= vectors[peer].own for peer, version in vectors[site].known.items())
            assert vectors[site] == before[site] or (site == initiator and not dies)
        assert vectors[initiator].own == before[initiator].own + (not dies)


@given(turns)
def test_a_model_travels_to_a_site_once_unless_its_initiator_died(played):
    vectors, sent = {site: PeerVersions(site) for site in SITES}, set()
    for initiator, reached, dies in played:
        at = {peer: vectors[peer].own for peer in SITES}
        for peer in exchange(vectors, initiator, reached, dies):
            assert (initiator, peer, at[peer]) not in sent
            assert at[peer] > 0, "the model with which all start is everywhere"
            if not dies:
                sent.add((initiator, peer, at[peer]))


@given(turns, st.sampled_from(SITES))
def test_a_site_that_is_gone_stops_nobody(played, gone):
    vectors = {site: PeerVersions(site) for site in SITES}
    others = [turn for turn in played if turn[0] != gone]
    for initiator, reached, _ in others:
        exchange(vectors, initiator, [peer for peer in reached if peer != gone])
    assert sum(vector.own for vector in vectors.values()) == len(others)


def test_by_hand():
    one = PeerVersions("a", 3, {"b": 2, "c": 5})
    assert one.newer({"b": 3, "c": 5, "d": 1, "a": 9}) == ("b", "d")
    assert one.merged({"b": 3, "d": 1}) == PeerVersions("a", 3, {"b": 3, "c": 5, "d": 1})
    assert one.trained() == PeerVersions("a", 4, {"b": 2, "c": 5})
    assert [one.is_newer_for("b", known) for known in (0, 2, 3)] == [True, True, False]
    with pytest.raises(RefusalError, match="merged version 4 of the model of the site a, which has version 3"):
        one.is_newer_for("b", 4)


@pytest.mark.parametrize("taken", [{"b": 2}, {"b": 1}, {"b": 3, "c": 5}, {"a": 4}])
def test_what_is_not_newer_is_not_merged(taken):
    with pytest.raises(RefusalError, match="is not newer than what was merged"):
        PeerVersions("a", 3, {"b": 2, "c": 5}).merged(taken)


@given(st.dictionaries(st.sampled_from(SITES), st.integers(1, 10**6), min_size=1), st.integers(1, 50))
def test_shares_are_those_of_fedavg(cases, factor):
    """If every peer is newer, one exchange is FedAvg: the mean of all models, weighted by cases."""
    found = shares(cases)
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)
    assert shares({site: factor * count for site, count in cases.items()}) == pytest.approx(found)
    models = {site: np.array([float(place), -1.0]) for place, site in enumerate(SITES)}
    merged = sum(found[site] * models[site] for site in cases)
    mean = np.average([models[site] for site in cases], axis=0, weights=list(cases.values()))
    np.testing.assert_allclose(merged, mean, rtol=1e-12, atol=1e-12)


@given(st.dictionaries(st.sampled_from(SITES[1:]), st.integers(0, 2**53)), st.integers(0, 2**53))
def test_it_is_read_as_it_was_written(known, own):
    vector = PeerVersions("a", own, known)
    assert PeerVersions.from_json(vector.to_json()) == vector


@pytest.mark.parametrize("content", [None, [], {}, {"site": "a", "own": 1}, {"site": "a", "own": 1, "known": []}])
@pytest.mark.parametrize("more", [{}, {"x": 1}])
def test_what_is_no_vector_is_refused(content, more):
    with pytest.raises(RefusalError):
        PeerVersions.from_json({**content, **more} if isinstance(content, dict) else content)


@pytest.mark.parametrize("value", [-1, 1.0, True, None, "1", 2**54, float("nan")])
def test_a_version_is_a_count(value):
    for make in (lambda: PeerVersions("a", value), lambda: PeerVersions("a", 0, {"b": value})):
        with pytest.raises(RefusalError, match="no whole number from 0 up"):
            make()
    with pytest.raises(RefusalError, match="no whole number from 0 up"):
        PeerVersions("a").newer({"b": value})
    with pytest.raises(RefusalError):
        shares({"a": value})


def test_a_site_is_no_peer_of_itself_and_a_model_needs_cases():
    with pytest.raises(RefusalError, match="name it among its peers"):
        PeerVersions("a", 1, {"a": 1})
    with pytest.raises(RefusalError, match="no site"):
        PeerVersions("../a")
    for cases in ({}, {"a": 0, "b": 3}):
        with pytest.raises(RefusalError, match="without training cases"):
            shares(cases)
