"""A site's own profile: when a simulation's variables count, and budgets that no job can choose between."""

import json

import pytest

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.site.profile import read_profile, read_state_folder

SMALL, LARGE = {"epsilon": 2, "delta": 1e-5}, {"epsilon": 8, "delta": 1e-5}


def test_a_provisioned_site_never_falls_into_simulation(tmp_path, monkeypatch):
    """Noise of a simulation follows from a seed; a lost profile must not turn a hospital into one."""
    monkeypatch.setenv("FEDSEG_DATA", str(tmp_path / "data"))
    local, startup = tmp_path / "kit" / "local", tmp_path / "kit" / "startup"
    startup.mkdir(parents=True)
    assert read_profile("a", local, tmp_path).simulated, "the simulator has a startup folder, too"
    (startup / "fed_client.json").write_text("{}")
    with pytest.raises(RefusalError, match="no data configured") as caught:
        read_profile("a", local, tmp_path)
    assert caught.value.reason == "data"
    local.mkdir()
    (local / "fedseg.json").write_text(json.dumps({"datasets": {"*": "d.json"}, "state": "s"}))
    assert not read_profile("a", local, tmp_path).simulated


def test_a_site_says_how_much_memory_a_job_may_take(tmp_path):
    content = {"datasets": {"*": "d"}, "state": "s"}
    for more, expected in (({}, None), ({"memory_gb": 1.5}, 3 * 2**29), ({"memory_gb": 64}, 2**36)):
        (tmp_path / "fedseg.json").write_text(json.dumps({**content, **more}))
        assert read_profile("a", tmp_path, tmp_path).memory == expected
    for wrong in (0, -1, "64", True, 10**400, [1]):
        (tmp_path / "fedseg.json").write_text(json.dumps({**content, "memory_gb": wrong}))
        with pytest.raises(ConfigurationError, match=r"fedseg\.json: memory_gb"):
            read_profile("a", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"state": "~/fedseg"}, "state is '~/fedseg', .*~ and \\$ are not replaced here"),
        ({"datasets": {"brats": "~anna/d.json"}}, "datasets.brats is '~anna/d.json'"),
        ({"cache": "$HOME/cache"}, "cache is '\\$HOME/cache'"),
        ({"cache": 5}, "cache is 5, but must be the path"),
        ({"cache": None}, "cache is missing, but must be the path"),
        ({"datasets": {"brats": ["d.json"]}}, r"datasets.brats is \['d.json'\]"),
        ({"datasets": []}, "datasets is"),
        ({"state": " "}, "state is ' '"),
        ({"state": "a\0b"}, "state is"),
        ({"device": 0}, "device is 0, but must be a text"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(tmp_path, changes, named):
    content = {"datasets": {"brats": "d.json"}, "state": "s", **changes}
    (tmp_path / "fedseg.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=f"fedseg.json: {named}"):
        read_profile("a", tmp_path, tmp_path)
    if "state" in changes:
        with pytest.raises(ConfigurationError, match=f"fedseg.json: {named}"):
            read_state_folder("server", tmp_path, tmp_path)


def test_a_profile_of_windows_is_read(tmp_path):
    (tmp_path / "fedseg.json").write_text(json.dumps({"datasets": {}, "state": "s"}), "utf-8-sig")
    assert read_profile("a", tmp_path, tmp_path).state == tmp_path / "s"


@pytest.mark.parametrize(
    ("datasets", "budgets", "name"),
    [
        ({"brats": "d", "glioma": "d"}, {"brats": SMALL, "glioma": LARGE}, "glioma"),
        ({"brats": "d", "glioma": "x/../d/datalist.json"}, {"brats": SMALL, "*": LARGE}, "glioma"),
        ({"brats": "d", "*": "link"}, {"brats": SMALL, "*": LARGE}, "brats"),
        ({"*": "d"}, {"brats": SMALL, "*": LARGE}, "brats"),
        ({"*": "d"}, {"brats": SMALL, "glioma": LARGE}, "glioma"),
    ],
)
def test_one_datalist_has_one_budget_under_all_its_names(tmp_path, datasets, budgets, name):
    (tmp_path / "d").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "d")
    content = {"datasets": datasets, "state": "s", "policy": {"epsilon_budget": budgets}}
    (tmp_path / "fedseg.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=f"epsilon_budget.{name} .*every other name of the same datalist"):
        read_profile("a", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("datasets", "budgets"),
    [
        ({"brats": "d", "pancreas": "p"}, {"brats": SMALL, "pancreas": LARGE}),
        ({"brats": "d", "pancreas": "p"}, {"brats": SMALL, "*": LARGE}),
        ({"brats": "d", "glioma": "d"}, {"*": LARGE}),
        ({"brats": "d", "*": "d"}, {"brats": SMALL}),
        ({"brats": "d"}, {"brats": SMALL, "unused": LARGE}),
    ],
)
def test_other_datalists_may_have_other_budgets(tmp_path, datasets, budgets):
    content = {"datasets": datasets, "state": "s", "policy": {"epsilon_budget": budgets}}
    (tmp_path / "fedseg.json").write_text(json.dumps(content))
    policy = read_profile("a", tmp_path, tmp_path).policy
    assert set(policy.epsilon_budget) == set(budgets)
