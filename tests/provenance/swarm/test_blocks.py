"""Blocks: one spelling, names and numbers of bounded length only, and nothing else is taken for one."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.errors import ConfigurationError
from fedseg.files.hash_chain_check import canonical
from fedseg.provenance.swarm.blocks import LONGEST_RULE, LONGEST_RUN_ID, MOST_SITES, Block, Opening, Part, majority
from fedseg.provenance.swarm.errors import SwarmLedgerError
from swarm_federation import of_text

PARTS = {"beta": Part(7, of_text("b")), "alpha": Part(5, of_text("a"))}
BLOCK = Block(
    "run-1", "start-1", 3, "alpha", PARTS, of_text("m"), "GeometricMedian", "2026-01-31T12:00:00Z", of_text("p")
)
OPENING = Opening("run-1", ("beta", "alpha"), 2)


def test_the_digest_can_be_computed_by_hand():
    parts = ",".join(
        f'"{site}":{{"cases":{n},"update":"{of_text(site[0])}"}}' for site, n in (("alpha", 5), ("beta", 7))
    )
    text = (
        f'{{"leader":"alpha","model":"{of_text("m")}","parts":{{{parts}}},"previous":"{of_text("p")}","round":3,'
        '"rule":"GeometricMedian","run_id":"run-1","schema":"fedseg-swarm-1","start":"start-1","time":"2026-01-31T12:00:00Z"}'
    )
    assert BLOCK.digest == hashlib.sha256(text.encode()).hexdigest()


def test_it_is_read_as_it_was_written():
    for value in (BLOCK, OPENING):
        again = type(value).from_json(json.loads(canonical(value.to_json())))
        assert again == value
        assert again.digest == value.digest


def test_the_order_of_sites_plays_no_part():
    assert replace(BLOCK, parts=dict(reversed(PARTS.items()))).digest == BLOCK.digest
    assert replace(OPENING, sites=("alpha", "beta")).digest == OPENING.digest


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "run-2"},
        {"start": "start-2"},
        {"round": 4},
        {"leader": "beta"},
        {"parts": {**PARTS, "beta": Part(8, of_text("b"))}},
        {"parts": {**PARTS, "beta": Part(7, of_text("c"))}},
        {"parts": {"alpha": PARTS["alpha"]}},
        {"model": of_text("n")},
        {"rule": "Mean"},
        {"time": "2026-01-31T12:00:01Z"},
        {"previous": of_text("q")},
    ],
)
def test_every_field_counts_in_the_digest(change):
    assert replace(BLOCK, **change).digest != BLOCK.digest


@pytest.mark.parametrize("change", [{"run_id": "run-2"}, {"sites": ("alpha",), "quorum": 1}, {"quorum": 1}])
def test_so_does_every_field_of_the_opening(change):
    assert replace(OPENING, **change).digest != OPENING.digest
    assert replace(OPENING, root=of_text("root")).digest != OPENING.digest


ARRAYS = [np.zeros(3), np.float32(1), [0.5] * 100, b"\0" * 64, "x" * 10**6, 1.5, float("nan"), None, True, {"a": 1}, ""]


@pytest.mark.parametrize("name", ["run_id", "start", "round", "leader", "parts", "model", "rule", "time", "previous"])
@pytest.mark.parametrize("value", ARRAYS, ids=lambda value: repr(value)[:20])
def test_no_field_takes_an_array_or_a_long_text(name, value):
    with pytest.raises((ConfigurationError, AttributeError, TypeError)):
        replace(BLOCK, **{name: value})
    with pytest.raises(SwarmLedgerError):
        Block.from_json({**BLOCK.to_json(), name: value})


@pytest.mark.parametrize("value", ARRAYS, ids=lambda value: repr(value)[:20])
def test_neither_does_what_a_site_had(value):
    for name in ("cases", "update"):
        with pytest.raises(ConfigurationError):
            replace(PARTS["beta"], **{name: value})
        content = BLOCK.to_json()
        content["parts"]["beta"][name] = value
        with pytest.raises(SwarmLedgerError):
            Block.from_json(content)


def test_the_largest_block_is_small():
    """Of a thousand sites with the longest names: what a block may take on disks and wires is bounded."""
    names = [f"{number:064d}" for number in range(MOST_SITES)]
    largest = Block(
        "r" * LONGEST_RUN_ID,
        "s" * LONGEST_RUN_ID,
        2**53,
        names[0],
        {name: Part(2**53, of_text(name)) for name in names},
        of_text("m"),
        "r" * LONGEST_RULE,
        "2026-01-31T12:00:00Z",
        of_text("p"),
    )
    assert len(canonical(largest.to_json())) < 200_000
    with pytest.raises(ConfigurationError, match="parts is 1001"):
        replace(largest, parts={**largest.parts, "another": Part(1, of_text("x"))})


@pytest.mark.parametrize(
    "content",
    [None, [], {}, "block", {**BLOCK.to_json(), "weights": [1, 2]}, {**BLOCK.to_json(), "schema": "fedseg-swarm-0"}],
)
def test_what_is_no_block_is_refused(content):
    with pytest.raises(SwarmLedgerError, match="swarm's ledger"):
        Block.from_json(content)
    with pytest.raises(SwarmLedgerError, match="swarm's ledger"):
        Opening.from_json(content)


@pytest.mark.parametrize(
    "time", ["2026-01-31", "2026-1-31T12:00:00Z", "2026-02-30T12:00:00Z", "2026-01-31T12:00:00+00:00"]
)
def test_a_time_has_one_spelling(time):
    with pytest.raises(ConfigurationError, match="a time in UTC such as"):
        replace(BLOCK, time=time)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sites": ()}, "1 to 1000 names"),
        ({"sites": ("alpha", "alpha")}, "each once"),
        ({"sites": ("server",)}, "the name of a site"),
        ({"quorum": 0}, "a whole number from 1 to 2"),
        ({"quorum": 3}, "a whole number from 1 to 2"),
        ({"root": 0}, "a SHA-256"),
        ({"run_id": "../x"}, "letters, digits"),
    ],
)
def test_an_opening_is_checked(change, words):
    with pytest.raises(ConfigurationError, match=words):
        replace(OPENING, **change)


@given(st.integers(1, 200))
def test_a_majority_is_the_least_number_of_which_no_two_are_apart(count):
    least = majority(map(str, range(count)))
    assert 2 * least > count >= 2 * (least - 1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(BLOCK.to_json())), json_values, min_size=1))
def test_whatever_stands_in_a_field_ends_in_a_sentence(change):
    content = {**BLOCK.to_json(), **change}
    try:
        found = Block.from_json(content)
    except SwarmLedgerError:
        return
    assert canonical(found.to_json()) == canonical(content), "what is taken is what was there"
