"""``fedseg describe-split``, as somebody types it."""

import json

import pytest
import torch

from fedseg.cli import main
from fedseg.networks.registry import parse_network
from fedseg.networks.split.parts import split_network
from fedseg.networks.split.stages import cut_names
from fedseg.tasks.registry import get_task

SMALL = {"name": "dynunet", "filters": [4, 6, 8], "strides": [1, 2, 2]}


def describe(*arguments):
    return main(["describe-split", *(str(argument) for argument in arguments)])


def content(capsys, *arguments):
    assert describe(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_every_size_is_that_of_actual_tensors(capsys):
    found = content(capsys, "brats", "--network", json.dumps(SMALL), "--patch", "16,8,8")
    network = parse_network(SMALL)
    assert found["network"] == network.to_dict()
    assert [cut["cut"] for cut in found["cuts"]] == list(cut_names(network))
    kinds = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
    for cut in found["cuts"]:
        site, server = split_network(network, 4, 3, cut["cut"], seed=0)
        received = {n: v.detach().requires_grad_() for n, v in site(torch.zeros(1, 4, 16, 8, 8)).items()}
        logits = server(received)
        logits.sum().backward()
        assert cut["tensors"] == {name: list(value.shape[1:]) for name, value in received.items()}
        for name, kind in kinds.items():
            back = sum(v.grad.to(kind).numpy().nbytes for v in received.values())
            assert cut["features_up_bytes"][name] == sum(v.detach().to(kind).numpy().nbytes for v in received.values())
            assert cut["gradients_down_bytes"][name] == back
            assert found["prediction_bytes"][name] == logits.detach().to(kind).numpy().nbytes
        mine, rest = (sum(p.numel() for p in part.parameters()) for part in (site, server))
        assert (cut["site_parameters"], found["parameters"]) == (mine, mine + rest)
        assert cut["site_parameter_share"] == mine / (mine + rest)
    assert found["label_bytes"] == 16 * 8 * 8
    assert found["image_values"] == 4 * 16 * 8 * 8
    work = [cut["site_flop_share"] for cut in found["cuts"]]
    assert work[0] > 0
    assert work == sorted(work)
    assert work[-1] < 1


def test_the_default_is_the_tasks_patch_and_the_default_network(capsys):
    found = content(capsys, "hippocampus")
    assert found["patch"] == list(get_task("hippocampus").patch_size)
    assert found["network"] == parse_network("residual_unet").to_dict()


def test_a_job_folder_brings_its_network(tmp_path, capsys):
    plan = tmp_path / "app" / "config" / "fedseg.json"
    plan.parent.mkdir(parents=True)
    plan.write_text(json.dumps({"task": {"name": "pancreas", "patch_size": [16, 16, 8]}, "network": SMALL}))
    found = content(capsys, tmp_path, "--cut", "encoder2")
    assert (found["patch"], found["network"]["filters"]) == ([16, 16, 8], [4, 6, 8])
    assert [cut["cut"] for cut in found["cuts"]] == ["encoder2"]
    assert content(capsys, tmp_path, "--network", "segresnet")["network"]["name"] == "segresnet"


def test_the_table(capsys):
    assert describe("hippocampus", "--cut", "encoder2") == 0
    shown = capsys.readouterr().out
    # 16 x 20 x 28 x 20 + 32 x 10 x 14 x 10 numbers of 4 bytes are 0.896 MB; the patch has 89600 numbers.
    row, further = (line.split() for line in shown.splitlines() if " encoder" in line)
    assert row[:7] == ["encoder2", "encoder1", "16x20x28x20", "0.896", "0.448", "0.224", "2.50"]
    assert further == ["encoder2", "32x10x14x10"]
    assert all(cell.endswith("%") for cell in row[7:])
    assert "0.0896 MB of labels" in shown
    assert "forward only" in shown
    assert max(len(line) for line in shown.splitlines() if "encoder" in line) <= 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cut", "stem"], "--cut is 'stem', but must be one of ['encoder1', 'encoder2', 'encoder3', 'bottom'"),
        (["--network", "unet"], "--network.name is 'unet'"),
        (["--network", '{"name": "dynunet", "filters": [4]}'], "--network.filters"),
        (["--network", "{"], "--network is not JSON"),
        (
            ["--patch", "20,16,16"],
            "--patch 20,16,16: give three numbers of voxels such as 96,96,64, divisible by 8,8,8",
        ),
        (["--patch", "16,16"], "--patch 16,16: give three"),
        (["--patch", "a,b,c"], "--patch a,b,c: give three"),
        (["--patch", "8,8,8"], "--patch 8,8,8: give three"),
        (["--patch", "0,16,16"], "--patch 0,16,16: give three"),
        (
            ["--network", '{"name": "residual_unet", "channels": [2, 2, 2, 2, 2, 2], "strides": [2, 2, 2, 2, 2]}'],
            "The task's patch 40,56,40: give three numbers of voxels such as 96,96,64, divisible by 32,32,32",
        ),
    ],
)
def test_wrong_usage_is_told(arguments, said, capsys):
    assert describe("hippocampus", *arguments) == 2
    assert said in " ".join(capsys.readouterr().err.split())
