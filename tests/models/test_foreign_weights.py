"""Weights of other programs: which arrays find a partner, and what is said of the others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fedseg.cli import main
from fedseg.contract.plan import parse_plan
from fedseg.errors import DataError, UsageError
from fedseg.jobs.job import read_job
from fedseg.models.foreign_weights import match_weights, parse_renames, read_foreign
from fedseg.models.model_file import initial_weights, read_model
from fedseg.networks.weights import get_weights
from tiny import PLAN

PLAN_HERE = parse_plan(PLAN)
OURS = get_weights(PLAN_HERE.build_network())
OTHER = {name: np.full_like(value, number) for number, (name, value) in enumerate(OURS.items())}


def test_names_change_at_their_beginning_and_everything_else_is_told():
    last = list(OURS)[-1]
    given = {f"net.{name}": value for name, value in OTHER.items() if name != last}
    given |= {"net.head.weight": np.zeros(3), f"net.{last}": np.zeros((7, 7))}
    found = match_weights(PLAN_HERE, given, [("net.", "")])
    assert found.fresh == (last,)
    assert found.unused == ("net.head.weight", f"net.{last}")
    assert list(found.weights) == list(OURS)
    for name, value in found.weights.items():
        np.testing.assert_array_equal(value, OURS[name] if name == last else OTHER[name])
    assert str(found) == (
        f"{len(OURS) - 1} of {len(OURS)} arrays come from the file; these begin as the seed makes them: {last}; "
        f"these of the file are not used: net.head.weight, net.{last}."
    )


def test_all_of_it_says_so_in_one_sentence():
    assert str(match_weights(PLAN_HERE, OTHER)) == f"{len(OURS)} of {len(OURS)} arrays come from the file."


def test_what_cannot_be_is_refused():
    with pytest.raises(DataError, match="No array of the file has a name and a shape of the network residual_unet"):
        match_weights(PLAN_HERE, {"a": np.zeros(3)})
    name, value = next(iter(OTHER.items()))
    with pytest.raises(DataError, match=f"Both {name} and x.{name} of the file would become {name}"):
        match_weights(PLAN_HERE, {name: value, f"x.{name}": value}, [("x.", "")])
    with pytest.raises(UsageError, match="--rename is 'net', but must be OLD=NEW"):
        parse_renames(["net"])


@pytest.mark.parametrize("nested", [False, True])
def test_files_of_torch_and_of_safetensors_are_read(nested, tmp_path):
    tensors = {name: torch.from_numpy(value) for name, value in OTHER.items()}
    torch.save({"state_dict": tensors, "epoch": 3} if nested else tensors, tmp_path / "a.pt")
    save_file(OTHER, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        found = read_foreign(tmp_path / name)
        assert set(found) == set(OTHER)
        assert all(np.array_equal(found[n], OTHER[n]) for n in OTHER)
    (tmp_path / "b.pt").write_bytes(b"nothing")
    for name, said in (("b.pt", "holds no weights that can be read"), ("c.pt", "does not exist")):
        with pytest.raises(DataError, match=said):
            read_foreign(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "d.pt")
    with pytest.raises(DataError, match="holds no arrays by name"):
        read_foreign(tmp_path / "d.pt")


class Anything:
    """What only a program that executes a file could make of it."""


def test_a_file_of_torch_with_code_is_refused(tmp_path):
    torch.save({"state_dict": Anything()}, tmp_path / "a.pt")
    with pytest.raises(DataError, match="holds no weights that can be read"):
        read_foreign(tmp_path / "a.pt")


def test_the_command_makes_a_model_to_start_from(tmp_path, capsys):
    job = read_job(Path(__file__).parents[2] / "jobs" / "hippocampus_fedavg")
    for key in ("task", "network"):
        job.set(key, PLAN[key])
    folder, out = job.write(tmp_path / "job"), tmp_path / "start.safetensors"
    save_file({f"net.{name}": value for name, value in OTHER.items()}, tmp_path / "a.safetensors")
    command = ["import-weights", str(tmp_path / "a.safetensors"), "--job", str(folder), "--out", str(out)]
    assert main([*command, "--rename", "net.="]) == 0
    assert f"{len(OURS)} of {len(OURS)} arrays come from the file." in " ".join(capsys.readouterr().out.split())
    assert read_model(out).notes["round"] == -1
    start = initial_weights(job.plan, out)
    assert all(np.array_equal(start[name], value) for name, value in OTHER.items())
    assert main([*command, "--rename", "net.="]) == 2
    assert "exists. Name a new file" in capsys.readouterr().err
