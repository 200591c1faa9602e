"""Swin UNETR and UNETR: the networks of MONAI, and what else of this software they go with."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.nets import UNETR, SwinUNETR

from fedseg import memory
from fedseg.cli import main
from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.evaluation.routing import mixed
from fedseg.filters.layers import PrivateLayers, SharedLayers
from fedseg.jobs.job import read_job
from fedseg.models.foreign_weights import match_weights, read_foreign
from fedseg.models.model_file import read_model, write_model
from fedseg.networks.demand import demand
from fedseg.networks.parts.deep_supervision import take_coarser
from fedseg.networks.registry import parse_network
from fedseg.networks.split.stages import stages_of
from fedseg.networks.weights import get_weights
from fedseg.training.trainer import SiteTrainer
from in_process_runs import SITES, simulated
from tiny import EXCLUSIVE, PLAN, make_sites, small

ROOT = Path(__file__).parents[2]
SIZES = {"swin_unetr": (32, 32, 64), "unetr": (32, 16, 16)}
EACH = pytest.mark.parametrize("name", SIZES)
NORM = ("instance", {"affine": True})


def theirs(name, size, norm=NORM):
    """MONAI's own, with the arguments of ``tiny.TRANSFORMERS``."""
    if name == "swin_unetr":
        return SwinUNETR(
            2,
            3,
            depths=(2, 1, 1, 1),
            num_heads=(3, 3, 6, 6),
            window_size=(4, 4, 2),
            feature_size=12,
            norm_name=norm,
        )
    return UNETR(2, 3, size, feature_size=4, hidden_size=24, mlp_dim=32, num_heads=3, norm_name=norm)


def plan_of(name, size=None, parts=(), training=(), **arguments):
    task = {**PLAN["task"], "patch_size": size or SIZES[name]}
    network = small(name, parts=list(parts), **arguments)
    return parse_plan({**PLAN, "task": task, "network": network, "training": {**PLAN["training"], **dict(training)}})


def stirred(network):
    """The network with other numbers in every array, so that none of them can stand for another."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in network.parameters():
            value += 0.1 * torch.randn(value.shape, generator=draw)
    return network.eval()


@EACH
def test_it_is_that_of_monai_to_the_bit(name):
    size = SIZES[name]
    ours, other = stirred(parse_network(small(name)).build(2, 3, 1, size)), theirs(name, size).eval()
    missing, unknown = other.load_state_dict(ours.state_dict(), strict=False)
    assert not unknown
    left_out = "relative_position_index" if name == "swin_unetr" else "norm_cross_attn."
    assert missing
    assert all(left_out in each for each in missing)
    unused = sum(other.state_dict()[each].numel() for each in missing if name == "unetr")
    assert unused == (12 * 2 * 24 if name == "unetr" else 0)
    counts = [sum(value.numel() for value in network.parameters()) for network in (ours, other)]
    assert counts[0] == counts[1] - unused
    image = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(image), other(image))
    other.load_state_dict(theirs(name, size).state_dict())
    with torch.no_grad():
        assert not torch.equal(ours(image), other(image))


@EACH
def test_fresh_it_is_that_of_monai_without_scales_to_the_bit(name):
    """As it is by default there, and in what is published: a scale of 1 and an offset of 0 change nothing."""
    size = SIZES[name]
    ours, other = parse_network(small(name)).build(2, 3, 1, size).eval(), theirs(name, size, "instance").eval()
    missing, unknown = other.load_state_dict(ours.state_dict(), strict=False)
    assert all(each.split(".")[-2] in ("norm1", "norm2", "norm3") for each in unknown)
    assert len(missing) > 0
    image = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(image), other(image))


@EACH
def test_its_bottleneck_is_the_coarsest_level_and_each_level_of_its_decoder_halves(name):
    part, size = {"name": "deep_supervision", "weights": [1, 1, 1, 1]}, SIZES[name]
    declared = parse_network(small(name, parts=[part]))
    network, seen = declared.build(2, 3, 0, size), []
    declared.arguments.bottleneck(network).register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.enable_grad():
        network.train()(torch.zeros(2, 2, *size))
    coarse = [length // factor for length, factor in zip(size, declared.arguments.divisor, strict=True)]
    assert [tuple(each.shape) for each in seen] == [(2, declared.arguments.bottleneck_features, *coarse)]
    levels = [tuple(each.shape) for _, each in take_coarser(network)[1]]
    assert levels == [(2, 3, *(length >> level for length in size)) for level in (1, 2, 3)]


@EACH
@pytest.mark.parametrize("norm", ["instance", "group", "batch"])
def test_a_site_trains_every_array_of_it(name, norm, tmp_path):
    datalist = read_datalist(make_sites(tmp_path / "data", {"a": (2, 1)}) / "a")
    plan = plan_of(name, norm=norm, parts=[{"name": "deep_supervision"}], training={"batch_size": 1})
    weights = get_weights(plan.build_network())
    update = SiteTrainer(plan, "a", datalist).train_round(weights, 0, 2).update
    assert set(update) == {each for each, value in weights.items() if value.dtype.kind == "f"}
    assert all(np.isfinite(value).all() and np.abs(value).max() > 0 for value in update.values())


@EACH
def test_gradients_are_the_same_where_stages_are_computed_twice_and_less_is_kept(name):
    declared, size = parse_network(small(name)), SIZES[name]
    image = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0))
    found, kept = [], []
    for twice in (False, True):
        network, held = declared.build(2, 3, 1, size, twice).train(), {}

        def keep(tensor, held=held):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = network(image).square().mean()
        loss.backward()
        kept.append(sum(held.values()))
        found.append({each: value.grad for each, value in network.named_parameters()})
    assert all(torch.equal(value, found[1][each]) for each, value in found[0].items())
    assert kept[1] < 0.6 * kept[0]
    needs = demand(declared, 2, 3, size)
    assert needs.kept_once < needs.kept


@EACH
def test_of_a_trained_one_a_site_trains_adapters_alone(name, tmp_path):
    datalist = read_datalist(make_sites(tmp_path / "data", {"a": (2, 1)}) / "a")
    part = {"name": "lora", "rank": 2, "fixed_down": True, "trained": ["*norm*.weight"]}
    plan = plan_of(name, parts=[part], training={"batch_size": 1})
    weights = get_weights(plan.build_network())
    update = SiteTrainer(plan, "a", datalist).train_round(weights, 0, 2).update
    scales = {each for each in weights if "norm" in each and each.endswith(".weight") and "parts." not in each}
    adapters = {each for each in weights if each.startswith("parts.lora.") and each.endswith(".up.weight")}
    assert any("qkv" in each for each in adapters)
    assert any("patch_embed" in each for each in adapters)
    assert set(update) == scales | adapters
    assert all(np.abs(value).max() > 0 for value in update.values())


@EACH
def test_scales_by_modality_are_those_of_every_normalisation(name):
    """With the scales and offsets of the first modality the second one is as that one to the bit."""
    part = {"name": "modality_norm", "sites": [["c*"], ["m*"]]}
    network = stirred(parse_network(small(name, parts=[part])).build(2, 3, 0, SIZES[name]))
    layers = [module for module in network.modules() if type(module).__name__ in ("InstanceNorm3d", "LayerNorm")]
    branches = network.get_submodule("parts.modality_norm")
    assert len(branches.scales) == len(layers) > 10
    image = torch.randn(1, 1, *SIZES[name], generator=torch.Generator().manual_seed(0))
    images = torch.cat([torch.cat([image, image * 0], 1), torch.cat([image * 0, image], 1)])
    first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv3d))
    with torch.no_grad():
        for value in network.parameters():
            if value.ndim == 5 and value.shape[1] == 2 and value.shape[2:] == first.weight.shape[2:]:
                value[:, 1] = value[:, 0]
        branches.take_over(layers)
        alone = torch.cat([network(each[None]) for each in images])
        together = network(images)
    assert torch.allclose(together, alone, atol=1e-4)


@EACH
def test_layers_are_private_or_shared_by_kind_and_place(name):
    plan = plan_of(name)
    weights = get_weights(plan.build_network())
    norms = PrivateLayers(kind="norm").kept_names(plan)
    assert {each for each in weights if "norm" in each} <= norms
    assert not any("qkv" in each or "position" in each for each in norms)
    assert PrivateLayers(last=1).kept_names(plan) == {"out.conv.conv.weight", "out.conv.conv.bias"}
    pattern = "swinViT.*" if name == "swin_unetr" else "vit.*"
    shared = set(weights) - SharedLayers(patterns=[pattern]).kept_names(plan)
    assert shared == {each for each in weights if each.startswith(pattern[:-1])}


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("swin_unetr", (32, 48, 64), r"task\.patch_size is .* but must be divisible by \(32, 32, 32\)"),
        ("swin_unetr", (32, 32, 32), r"task\.patch_size is .* but must be larger than \(32, 32, 32\) on some axis"),
        ("unetr", (32, 24, 16), r"task\.patch_size is .* but must be divisible by \(16, 16, 16\)"),
        ("unetr", (16, 16, 16), r"task\.patch_size is .* but must be larger than \(16, 16, 16\) on some axis"),
    ],
)
def test_patches_that_do_not_fit_are_refused(name, size, said):
    with pytest.raises(ConfigurationError, match=said):
        plan_of(name, size)


def test_unetr_takes_patches_of_one_size_and_swin_unetr_takes_several():
    sizes = {"patch_sizes": [{"size": [32, 32, 64], "share": 1}, {"size": [64, 32, 32], "share": 1}]}
    assert plan_of("swin_unetr", training=sizes).training.patch_sizes
    with pytest.raises(ConfigurationError, match=r"training\.patch_sizes is .* The network unetr is made for one size"):
        plan_of("unetr", training=sizes)


@EACH
def test_it_is_neither_cut_nor_routed(name, tmp_path, capsys):
    with pytest.raises(ConfigurationError, match=f"network.name is '{name}', but must be a network that can be cut"):
        stages_of(parse_network(small(name)))
    assert main(["describe-split", "hippocampus", "--network", name, "--cut", "all"]) == 2
    assert f"network.name is '{name}', but must be a network that can be cut" in " ".join(
        capsys.readouterr().err.split()
    )
    plan = plan_of(name)
    write_model(tmp_path / "m.safetensors", plan, get_weights(plan.build_network()), 1)
    with pytest.raises(ConfigurationError, match=f"network.name is '{name}', but must be a network of convolutions"):
        mixed([read_model(tmp_path / "m.safetensors")] * 2)


def test_tables_of_windows_count_as_memory(monkeypatch):
    declared = parse_network(small("swin_unetr", window=6))
    network = declared.build(2, 3, 0, SIZES["swin_unetr"])
    weights = sum(value.nbytes for value in network.state_dict().values())
    tables = [value.nbytes for name, value in network.named_buffers() if name.endswith("relative_position_index")]
    assert tables == [6**6 * 8] * 5
    for least, fits in ((weights + sum(tables), True), (weights + sum(tables) - 1, False)):
        monkeypatch.setattr(memory, "machine_memory", lambda least=least: least)
        if fits:
            declared.build(2, 3, 0, SIZES["swin_unetr"])
        else:
            with pytest.raises(ConfigurationError, match="The memory of the network swin_unetr is"):
                declared.build(2, 3, 0, SIZES["swin_unetr"])


def test_deep_supervision_has_no_more_levels_than_the_decoder():
    with pytest.raises(ConfigurationError, match=r"network\.parts\[0\]\.weights is .* but must be at most 4 numbers"):
        plan_of("unetr", parts=[{"name": "deep_supervision", "weights": [1] * 5}])


@EACH
def test_a_norm_of_batches_has_no_scales_by_modality(name):
    part = {"name": "modality_norm", "sites": [["c*"], ["m*"]]}
    with pytest.raises(ConfigurationError, match=r"network\.norm is 'batch', but must be instance or group"):
        parse_network(small(name, norm="batch", parts=[part])).build(2, 3, 0, SIZES[name])


@EACH
def test_weights_of_monai_find_their_places(name, tmp_path):
    """All of MONAI's own, which has no scales by default, given to a plan with two channels and three outputs."""
    task = {**EXCLUSIVE, "channels": ["a", "b"], "patch_size": SIZES[name]}
    plan = parse_plan({**PLAN, "task": task, "network": small(name)})
    other = theirs(name, SIZES[name], "instance")
    state = {f"module.{each}": value for each, value in other.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "a.pt")
    found = match_weights(plan, read_foreign(tmp_path / "a.pt"), [("module.", "")])
    assert all("norm_cross_attn" in each for each in found.unused)
    assert all(each.split(".")[-2] in ("norm1", "norm2", "norm3") for each in found.fresh)
    network = plan.build_network()
    network.load_state_dict({each: torch.from_numpy(value) for each, value in found.weights.items()})
    image = torch.randn(1, 2, *SIZES[name], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(network.eval()(image), other.eval()(image))


def _called_otherwise(name):
    """What the encoders that MONAI trained without labels call an array of ``swinViT``, see its ``load_from``."""
    return "module." + name.removeprefix("swinViT.").replace("mlp.linear", "mlp.fc")


def _called_by_autoencoders(name):
    """The reverse of MONAI's ``filter_swinunetr``: eight letters before, and two behind the stage."""
    rest = name.removeprefix("swinViT.")
    return f"encoder.{rest}" if rest.startswith("patch_embed") else f"encoder.{rest[:10]}0.{rest[10:]}"


@pytest.mark.parametrize("called", [_called_otherwise, _called_by_autoencoders])
def test_published_encoders_find_their_places(called):
    plan = plan_of("swin_unetr")
    fresh = get_weights(plan.build_network())
    encoder = {each: np.full_like(value, 2) for each, value in fresh.items() if each.startswith("swinViT.")}
    found = match_weights(plan, {called(each): value for each, value in encoder.items()})
    assert set(found.taken) == set(encoder)
    assert found.unused == ()
    assert all(np.array_equal(found.weights[each], value) for each, value in {**fresh, **encoder}.items())


def test_published_names_are_those_that_monai_itself_reads():
    """MONAI copies from such a file by itself; the same values get to the same places."""
    plan = plan_of("swin_unetr")
    network = SwinUNETR(
        1, 2, depths=(2, 1, 1, 1), num_heads=(3, 3, 6, 6), window_size=(4, 4, 2), feature_size=12, norm_name=NORM
    )
    state = {each: value for each, value in network.state_dict().items() if each.startswith("swinViT.")}
    draw = torch.Generator().manual_seed(3)
    given = {
        _called_otherwise(each): torch.randn(value.shape, generator=draw) if value.is_floating_point() else value
        for each, value in state.items()
    }
    network.load_from({"state_dict": given})
    floating = {each: value.numpy() for each, value in given.items() if value.is_floating_point()}
    found = match_weights(plan, floating)
    expected = {each: value.numpy() for each, value in network.state_dict().items()}
    assert len(found.taken) == len(floating)
    assert all(np.array_equal(found.weights[each], expected[each]) for each in found.taken)


def tiny_job(name, **settings):
    """The job for brain tumours with its own settings on a tiny task; UNETR in the place of its network."""
    job = read_job(ROOT / "jobs" / "brats_swin_unetr")
    declared = job.declaration["network"]
    assert declared["name"] == "swin_unetr"
    job.set("task", {**PLAN["task"], "patch_size": list(SIZES[name])})
    job.set("network", small(name, parts=declared.get("parts", [])))
    job.set("workflow.num_rounds", 1)
    for setting, value in settings.items():
        job.set(f"training.{setting}", value)
    return job


@EACH
def test_its_job_trains_it_and_its_model_predicts(name, tmp_path):
    data = make_sites(tmp_path / "data", dict.fromkeys(SITES, (1, 1)))
    job = tiny_job(name, batch_size=1, local_epochs=1, threads=1)
    summary, models = simulated(job, data, tmp_path / "run")
    assert len(summary["rounds"]) == 1
    assert set(models["last.safetensors"]) == set(get_weights(job.plan.build_network()))
    model, out = tmp_path / "run" / "models" / "last.safetensors", tmp_path / "predicted"
    command = ["predict", str(model), "--task", "tiny", "--data", str(data / "alpha"), "--split", "validation"]
    assert main([*command, "--out", str(out)]) == 0
    (found,) = out.rglob("*.nii.gz")
    values = np.asarray(nib.load(found).dataobj)
    assert values.shape == (20, 20, 20)
    assert set(np.unique(values)) <= {0, 1, 2}
    assert read_model(model).network == job.plan.network
