"""``fedseg site check``: the page on the terminal and in a file, and wrong usage."""

import json

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from checked_site import command, prepared
from fedseg.commands import site
from fedseg.deployment.kits.installed_kit import read_kit
from fedseg.deployment.operation.checks.page import CheckPage
from fedseg.deployment.operation.checks.result import green, red
from tiny import TASK


def test_the_command_ends_with_the_verdict_and_never_prints_a_key(kit, server, tmp_path):
    (tmp_path / "task.json").write_text(json.dumps(TASK))
    arguments = [
        "site",
        "check",
        "--kit",
        kit,
        "--json",
        tmp_path / "check.json",
        "--task",
        f"tiny={tmp_path}/task.json",
    ]
    code, out, _ = command(*arguments)
    assert code == 0, out
    assert out.rstrip().endswith("GREEN: alpha is ready.")
    (kit / "startup" / "client.key").chmod(0o644)
    (kit / "local" / "resources.json").write_text("{}")
    code, out, _ = command(*arguments)
    assert code == 1
    assert out.rstrip().endswith("RED: alpha is not ready. To mend: key file, classes, jobs, logs.")
    content = json.loads((tmp_path / "check.json").read_text())
    assert content["colour"] == "red"
    assert {"about", "check", "colour", "found", "remedy"} == set(content["checks"][0])
    secret = (kit / "startup" / "client.key").read_text("ascii").splitlines()[1]
    number = format(load_pem_private_key((kit / "startup" / "client.key").read_bytes(), None).private_numbers().d, "x")
    for text in (out, (tmp_path / "check.json").read_text()):
        assert secret not in text
        assert number not in text


def test_a_fingerprint_is_printed_as_it_is(kit, monkeypatch):
    """Not as rich would have it, for which :AB: is the name of a picture, and [red] a colour."""
    text = "4E:AB:12:CD [red]x[/] :warning:"
    page = CheckPage(read_kit(kit), {"the kit": (green("certificate", text), red("key", "x.", f"Compare {text}"))})
    monkeypatch.setattr(site, "check_site", lambda kit, options: page)
    _, out, _ = command("site", "check", "--kit", kit)
    assert out.count(text) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kit", "{federation}"], "is no kit of a site or of the server"),
        (["--kit", "{federation}/kits/coordinator@example.org"], "is no kit of a site or of the server"),
        (["--kit", "{federation}/kits/alpha", "--task", "brats"], "write DATA_SET=TASK"),
        (["--kit", "{federation}/kits/alpha", "--json", "/no/where/x.json"], "the folder /no/where does not exist"),
    ],
)
def test_wrong_usage_ends_with_2(arguments, message, federation):
    code, _, err = command("site", "check", *(word.format(federation=federation) for word in arguments))
    assert code == 2
    assert message in err


@pytest.mark.parametrize("action", ["start", "status"])
def test_a_prepared_kit_says_how_it_is_started_and_seen(action, kit):
    prepared(kit)
    code, out, err = command("site", action, "--kit", kit)
    assert code == 1
    if action == "start":
        assert "alpha was made ready for Docker: start it by startup/start_docker.sh." in err
    else:
        assert "its processes are not seen from here: docker ps" in out
