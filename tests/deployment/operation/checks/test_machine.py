"""The machine: user, versions, packages, GPU."""

import importlib
import re
from importlib import metadata

import torch

from checked_site import check, edit, found
from fedseg.deployment.kits.manifest import read_manifest
from fedseg.deployment.operation.checks import machine as site_checks_machine
from fedseg.deployment.operation.checks.result import Colour


def test_another_version_of_fedseg_is_found(kit, server, monkeypatch):
    monkeypatch.setattr(site_checks_machine, "__version__", "0.0.1")
    reds = found(check(kit))
    assert set(reds) == {"fedseg"}
    wanted = read_manifest(kit).fedseg_version
    assert f"Version 0.0.1 is installed, but the federation uses {wanted}" in reds["fedseg"]
    # Without the list of files the wheel says which version is wanted.
    (kit / "fedseg-9.9.9-py3-none-any.whl").touch()
    (kit / "fedseg_kit.json").unlink()
    assert "the federation uses 9.9.9" in found(check(kit))["fedseg"]
    (kit / "fedseg-9.9.9-py3-none-any.whl").unlink()
    assert "does not say which one it needs" in found(check(kit), Colour.YELLOW)["fedseg"]


def test_packages_of_another_version_missing_ones_and_broken_ones_are_found(kit, server, monkeypatch):
    real = metadata.version
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch==2.13.0", "no-such==1.0", "nibabel==0.1", "x>=2"])
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cu130" if name == "torch" else real(name))
    text = found(check(kit))["packages"]
    assert re.search(r"no-such 1\.0 \(missing\), nibabel 0\.1 \(found [\d.]+\)", text)
    assert "torch" not in text
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch==2.13.0"])

    real_import = importlib.import_module

    def broken(name):
        if name == "torch":
            raise ImportError("libcudart.so is missing")
        return real_import(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    assert "torch (ImportError: libcudart.so is missing)" in found(check(kit))["packages"]
    monkeypatch.setattr(metadata, "requires", lambda name: None)
    assert "its requirements are not known" in found(check(kit))["packages"]


def test_the_requirements_are_those_of_the_installed_package():
    pinned = site_checks_machine.pinned_packages()
    assert pinned["nvflare"] == "2.9.0"
    assert {"torch", "monai", "numpy"} <= set(pinned)


def test_no_gpu_is_yellow_unless_the_cpu_is_meant(kit, server, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "GPU" not in found(check(kit), Colour.YELLOW)
    edit(kit / "local" / "fedseg.json", lambda c: {k: v for k, v in c.items() if k != "device"})
    assert "trains on the CPU" in found(check(kit), Colour.YELLOW)["GPU"]


def test_root_is_a_remark(kit, server, monkeypatch):
    monkeypatch.setattr(site_checks_machine, "is_root", lambda: True)
    assert "You are root" in found(check(kit), Colour.YELLOW)["user"]


def test_a_device_that_is_none_is_found(kit, server):
    edit(kit / "local" / "fedseg.json", lambda c: {**c, "device": "gpu"})
    assert "wants 'gpu', which is no device" in found(check(kit))["GPU"]


def test_a_wheel_that_came_later_counts_in_place_of_the_kits_version(kit, server, monkeypatch):
    """So a federation is upgraded: the new wheel into the kit, and into the environment."""
    (kit / "fedseg-99.0-py3-none-any.whl").touch()
    text = found(check(kit))["fedseg"]
    assert "but the federation uses 99.0" in text
    assert text.endswith(f"pip install {kit}/fedseg-99.0-py3-none-any.whl")
    monkeypatch.setattr(site_checks_machine, "__version__", "99.0")
    page = check(kit)
    assert "fedseg" not in found(page)
    assert "Version 99.0, as the federation." in [result.found for result in page.results]
