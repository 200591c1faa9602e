"""Keys of simulated runs: one for all sites, none for the server, readable for nobody else."""

import stat

import pytest

from fedseg.cli import main
from fedseg.contract.plan import parse_plan
from fedseg.files.digest import model_digest
from fedseg.models.encrypted_file import read_encrypted_file, write_encrypted_file
from fedseg.models.model_file import read_model
from fedseg.models.note import ModelNote, check_against_note, note_path, write_note
from fedseg.networks.weights import get_weights
from fedseg.privacy.encryption.context import KEY_NAME_FILE, make_contexts, public_context, secret_context
from fedseg.privacy.encryption.encrypted_model import EncryptedModel, first_id
from fedseg.simulation.encryption import give_contexts
from tiny import PLAN

CLIENT, SERVER = "client_context.tenseal", "server_context.tenseal"


def test_all_sites_have_one_key_and_the_server_has_none(tmp_path):
    give_contexts(tmp_path, ["a", "b"], "server")
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {f"a/{CLIENT}", f"b/{CLIENT}", f"server/{SERVER}", f"server/{KEY_NAME_FILE}"}
    contents = {(tmp_path / site / CLIENT).read_bytes() for site in "ab"}
    assert len(contents) == 1
    assert (
        secret_context(contents.copy().pop()).parameters
        == public_context((tmp_path / "server" / SERVER).read_bytes()).parameters
    )
    assert (tmp_path / "server" / KEY_NAME_FILE).read_text() == secret_context(contents.copy().pop()).key
    for path in found:
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o600


def test_a_run_that_goes_on_keeps_its_key_and_a_new_site_gets_it(tmp_path):
    give_contexts(tmp_path, ["a"], "server")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "server" / KEY_NAME_FILE).unlink()
    give_contexts(tmp_path, ["a", "b"], "server")
    assert {path: path.read_bytes() for path in before} == before
    assert (tmp_path / "b" / CLIENT).read_bytes() == (tmp_path / "a" / CLIENT).read_bytes()


# ------------------------------------------------------------ fedseg decrypt-model


@pytest.fixture
def model(tmp_path):
    """An encrypted model without rounds, and the contexts."""
    plan = parse_plan(PLAN)
    weights = get_weights(plan.build_network())
    for name, content in zip((CLIENT, SERVER), make_contexts(), strict=True):
        (tmp_path / name).write_bytes(content)
    return write_encrypted_file(tmp_path / "last.encrypted", plan, EncryptedModel(first_id(weights), (), weights), -1)


def decrypt(model, *more, context=CLIENT, out="model.safetensors"):
    folder = model.parent
    return main(["decrypt-model", str(model), "--context", str(folder / context), "--out", str(folder / out), *more])


def noted(model, digest):
    """Write the provenance of an encrypted model, as the server would."""
    return write_note(model, ModelNote(digest, "run", "job", "id", -1, "p" * 64, 2, "h" * 64, {}, ("a", "b")))


def test_an_opened_model_says_where_it_comes_from(model):
    name = read_encrypted_file(model).model.ids()[-1]
    noted(model, name)
    assert decrypt(model) == 0
    opened = model.parent / "model.safetensors"
    note = check_against_note(opened, model_digest(read_model(opened).weights))
    assert (note.opened_from, note.run_id, note.line) == (name, "run", 2)
    assert opened.stat().st_mode & 0o077 == 0


def test_an_encrypted_model_that_was_exchanged_is_not_opened_unless_told(model, capsys):
    noted(model, "0" * 64)
    assert decrypt(model) == 1
    assert "is not the one that its provenance file is about" in " ".join(capsys.readouterr().err.split())
    assert not (model.parent / "model.safetensors").exists()
    noted(model.parent / "model.safetensors", "1" * 64)
    assert decrypt(model, "--accept-changed-model") == 0
    assert not note_path(model.parent / "model.safetensors").exists(), "nothing says where this one comes from"


def test_a_site_opens_a_model(model, capsys):
    assert decrypt(model) == 0
    assert "tiny, residual_unet, after 0 round(s)" in " ".join(capsys.readouterr().out.split())
    assert read_model(model.parent / "model.safetensors").task.name == "tiny"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ({"context": SERVER}, 1, "holds no secret key"),
        ({"context": "nothing"}, 1, "No such file"),
        ({"context": "last.encrypted"}, 1, "cannot be read"),
        ({"out": CLIENT}, 2, "exists. Name a new file."),
    ],
)
def test_what_cannot_be_opened_is_explained(model, capsys, arguments, code, said):
    assert decrypt(model, **arguments) == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (model.parent / "model.safetensors").exists()
