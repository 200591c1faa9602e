from importlib.metadata import version

from fedseg.version import __version__, versions


def test_versions_are_those_of_what_decides_about_results():
    found = versions()
    assert set(found) == {"fedseg", "python", "nvflare", "monai", "torch", "numpy", "nibabel", "SimpleITK"}
    assert "not installed" not in found.values()
    assert (found["fedseg"], found["torch"]) == (__version__, version("torch"))
