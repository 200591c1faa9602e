"""An encrypted model: what it leads to, from where one may start to read it, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from encrypted_sums import round_of, terms_of
from fedseg.contract.plan import parse_plan
from fedseg.errors import DataError, RefusalError
from fedseg.models.encrypted_file import read_encrypted_file, write_encrypted_file
from fedseg.models.model_file import read_model, write_model
from fedseg.networks.weights import get_weights, is_averaged
from fedseg.privacy.encryption.context import make_contexts, secret_context
from fedseg.privacy.encryption.encrypted_model import (
    EncryptedModel,
    first_id,
    next_id,
    read_encrypted_model,
    read_round,
)
from tiny import PLAN

KEY = secret_context(make_contexts()[0])
PLAIN = parse_plan(PLAN)
SCALE = 0.5


def start():
    weights = get_weights(PLAIN.build_network())
    return {**weights, "counter": np.array(7)}


def change(seed):
    draw = np.random.default_rng(seed)
    return {n: draw.uniform(-SCALE, SCALE, w.shape).astype(np.float32) for n, w in start().items() if is_averaged(w)}


SITES = {"a": 0.5, "b": 0.25, "c": 0.25}


def make_round(seed, before, sites="abc"):
    """The sum of a round: the same change at each of ``sites``, of the three that were asked."""
    terms = terms_of(SITES, before, scale=SCALE)
    return round_of(dict.fromkeys(sites, change(seed)), terms, KEY)


def chain(*rounds):
    """A model of rounds that follow on one another: seed, and the sites whose ciphertexts arrived."""
    model = EncryptedModel(first_id(start()), (), start())
    for each in rounds:
        model = replace(model, rounds=(*model.rounds, make_round(each[0], model.ids()[-1], *each[1:])))
    return model


WHOLE = chain((1,), (2, "ab"), (3,))
ROUNDS = WHOLE.rounds


def plain(*seeds):
    """Start plus the changes of these rounds, in float64; the weights of a sum divide out."""
    changes = [change(seed) for seed in seeds]
    return {
        name: value + sum(c[name].astype(np.float64) for c in changes) if is_averaged(value) else value
        for name, value in start().items()
    }


def assert_close(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == start()[name].dtype
        np.testing.assert_allclose(found[name], value, rtol=0, atol=3e-6)


def test_a_model_is_its_start_and_the_sums_divided_by_their_weights():
    identity, weights = WHOLE.decrypt(KEY)
    assert identity == WHOLE.ids()[-1]
    assert_close(weights, plain(1, 2, 3))


def test_whoever_has_a_model_on_the_way_gets_the_same_bits():
    ids, (_, last) = WHOLE.ids(), WHOLE.decrypt(KEY)
    for number in range(4):
        own = (ids[number], replace(WHOLE, rounds=ROUNDS[:number]).decrypt(KEY)[1])
        for model in (WHOLE, EncryptedModel(ids[min(number, 1)], ROUNDS[min(number, 1) :])):
            identity, weights = model.decrypt(KEY, own=own)
            assert identity == ids[-1]
            for name, value in last.items():
                np.testing.assert_array_equal(weights[name], value)


def test_whoever_has_another_model_starts_anew_or_says_so():
    own = ("f" * 64, {name: value + 1 for name, value in start().items()})
    assert_close(WHOLE.decrypt(KEY, own=own)[1], plain(1, 2, 3))
    for stranger in (own, None):
        with pytest.raises(RefusalError, match="needs all rounds") as refusal:
            replace(WHOLE, initial=None).decrypt(KEY, own=stranger)
        assert refusal.value.reason == "history"


def test_ids_name_everything_that_a_model_depends_on():
    base = first_id(start())
    assert base == first_id(dict(reversed(start().items())))
    assert base != first_id({**start(), "counter": np.array(8)})
    assert base != first_id({**start(), "counter": np.array(7, np.int32)})
    assert base != first_id({**start(), "counter": np.array([7])})
    one, other = ({"weights": {**SITES, "c": 0.125}}, {"scale": 1.0})
    ids = {next_id(base, replace(ROUNDS[0], terms=replace(ROUNDS[0].terms, **each))) for each in (one, other)}
    ids |= {next_id(base, ROUNDS[0]), next_id(ids.copy().pop(), ROUNDS[0]), next_id(base, ROUNDS[1]), base}
    assert len(ids) == 6


def test_another_key_is_named_and_refused():
    other = secret_context(make_contexts()[0])
    with pytest.raises(RefusalError, match=f"key {KEY.key}, but this site has the key {other.key}") as refusal:
        WHOLE.decrypt(other)
    assert refusal.value.reason == "privacy"


def test_a_model_that_would_not_stay_finite_is_refused():
    terms = terms_of(dict.fromkeys("ab", 1e-6), WHOLE.base, scale=1e39)
    huge = {name: np.full(np.shape(value), 1e39) for name, value in change(1).items()}
    with pytest.raises(RefusalError, match="not finite"):
        replace(WHOLE, rounds=(round_of({"a": huge, "b": huge}, terms, KEY),)).decrypt(KEY)


def altered(**terms):
    return replace(ROUNDS[0], terms=replace(ROUNDS[0].terms, **terms))


def test_rounds_of_another_network_or_too_many_sites_are_refused():
    twice = replace(ROUNDS[0].ciphertexts, blocks=ROUNDS[0].ciphertexts.blocks * 2)
    for broken, said in (
        (replace(ROUNDS[0], ciphertexts=twice), "size"),
        (altered(weights={**SITES, **{f"site-{number}": 0.0 for number in range(45)}}), "from 1 to 47"),
        (altered(mode="small"), "mode"),
    ):
        with pytest.raises(RefusalError, match=said):
            replace(WHOLE, rounds=(broken,)).decrypt(KEY)


def test_the_form_in_which_models_travel():
    read = read_encrypted_model(WHOLE.to_arrays(), json.loads(json.dumps(WHOLE.facts())))
    assert (read.base, read.rounds) == (WHOLE.base, WHOLE.rounds)
    assert first_id(read.initial) == WHOLE.base
    part = EncryptedModel(WHOLE.ids()[2], ROUNDS[2:])
    assert read_encrypted_model(part.to_arrays(), part.facts()) == part


def facts(**changes):
    return {**WHOLE.facts(), **changes}


@pytest.mark.parametrize(
    ("arrays", "told", "said"),
    [
        ({}, None, "does not say"),
        ({}, facts(base=3), "does not say"),
        ({}, facts(rounds=7), "does not say"),
        ({}, facts(more=1), "does not say"),
        ({"surprise": np.zeros(1)}, facts(), "nothing is known of"),
        ({}, facts(rounds=WHOLE.facts()["rounds"][:2]), "nothing is known of"),
        ({}, facts(rounds=[*WHOLE.facts()["rounds"], ROUNDS[0].facts()]), "not those of ciphertexts"),
        ({}, facts(base="f" * 64), "other weights than it says"),
        ({"initial/counter": np.array(8)}, facts(), "other weights than it says"),
    ],
)
def test_messages_that_do_not_fit_are_refused(arrays, told, said):
    with pytest.raises(RefusalError, match=said) as refusal:
        read_encrypted_model({**WHOLE.to_arrays(), **arrays}, told)
    assert refusal.value.reason == "privacy"


@pytest.mark.parametrize(
    "changes",
    [{"weights": {**SITES, "c": 1.1}}, {"weights": {**SITES, "c": float("nan")}}, {"weights": {**SITES, "c": 0}},
     {"weights": None}, {"weights": {"a": 0.5}}, {"weights": {**SITES, 1: 0.0}}, {"nonces": {}}, {"nonces": {"a": 1}},
     {"scale": 0.0}, {"scale": float("inf")}, {"scale": 1}, {"run": None}, {"before": 1}, {"mode": None},
     {"key": b"x"}, {"more": 1}],
)  # fmt: skip
def test_facts_of_a_round_that_do_not_fit_are_refused(changes):
    with pytest.raises(RefusalError, match="encrypted round"):
        read_round({**ROUNDS[0].facts(), **changes}, ROUNDS[0].ciphertexts.to_arrays())


# ----------------------------------------------------------------------- files


def encrypted_file(folder, **changes):
    weights = start()
    del weights["counter"]
    whole = EncryptedModel(first_id(weights), (make_round(1, first_id(weights)),), weights)
    return write_encrypted_file(folder / "last.encrypted", PLAIN, whole, 2), whole


def test_a_file_opens_to_the_model_that_an_ordinary_run_would_have_written(tmp_path):
    path, whole = encrypted_file(tmp_path)
    opened = read_encrypted_file(path).decrypt(KEY, tmp_path / "opened.safetensors")
    write_model(tmp_path / "plain.safetensors", PLAIN, whole.decrypt(KEY)[1], 2)
    assert (tmp_path / "opened.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
    assert opened.notes["round"] == 2
    assert opened.task == PLAIN.task


def test_files_that_are_none_are_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_encrypted_file(tmp_path / "nothing")
    (tmp_path / "text").write_text("nothing of the kind")
    with pytest.raises(DataError, match="cannot be read as an encrypted model"):
        read_encrypted_file(tmp_path / "text")
    write_model(tmp_path / "plain", PLAIN, start(), 0)
    with pytest.raises(DataError, match="lacks the format 'fedseg-encrypted-1'"):
        read_encrypted_file(tmp_path / "plain")
    path, _ = encrypted_file(tmp_path)
    with pytest.raises(DataError, match="not a model of fedseg"):
        read_model(path)


def test_a_changed_file_is_refused(tmp_path):
    path, whole = encrypted_file(tmp_path)
    arrays = load_file(path)
    first = next(name for name in arrays if name.startswith("initial/"))
    arrays[first] = arrays[first] + 1
    header = {"format": "fedseg-encrypted-1", "rounds": json.dumps(whole.facts())}
    save_file(arrays, path, header | dict.fromkeys(("fedseg", "task", "network", "notes"), "{}"))
    with pytest.raises(DataError, match="other weights than it says"):
        read_encrypted_file(path)
