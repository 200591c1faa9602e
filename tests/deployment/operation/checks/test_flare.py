"""What answers behind the server's port, and its clock."""

import re
import shutil
from datetime import timedelta

import pytest

from checked_site import check, found
from fedseg.deployment.operation.checks import flare as site_checks_flare
from fedseg.deployment.operation.checks.result import Colour


@pytest.mark.parametrize(("hours", "colour"), [(-1, Colour.RED), (1, Colour.RED)])
def test_a_clock_that_is_off_is_found(hours, colour, kit, server):
    server.ahead = timedelta(hours=hours)
    text = found(check(kit), colour)["clock"]
    assert f"3600 s {'ahead of' if hours < 0 else 'behind'} the server" in text or "3599 s" in text or "3601 s" in text
    assert "time server" in text


def test_a_clock_that_is_a_little_off_is_yellow_and_one_that_is_not_told_too(kit, server):
    server.ahead = timedelta(seconds=120)
    assert re.search(r"1(19|20|21) s behind the server", found(check(kit), Colour.YELLOW)["clock"])
    server.tell_time = False
    page = check(kit)
    assert "Not checked: the server told no time" in found(page, Colour.YELLOW)["clock"]
    assert found(page) == {}


def test_a_server_that_accepts_and_then_is_silent_does_not_refuse_the_kit(kit, server, monkeypatch):
    def silent(tls):
        raise TimeoutError("The read operation timed out")

    monkeypatch.setattr(site_checks_flare, "_answer", silent)
    text = found(check(kit))["FLARE"]
    assert "accepts TLS, but does not answer within 5 s" in text
    assert "refuses" not in text


def test_another_program_at_the_port_is_found(kit, server):
    server.status = "404 Not Found"
    reds = found(check(kit))
    assert set(reds) == {"FLARE"}
    assert "not as FLARE does (HTTP/1.1 404 Not Found)" in reds["FLARE"]


def test_a_server_that_refuses_the_kit_is_found(kit, server, other):
    """It knows another root: with TLS 1.3 a site hears of that only after its own side of the handshake."""
    trusted = kit.parent / "trusted"
    trusted.mkdir()
    shutil.copyfile(other / "kits" / "alpha" / "startup" / "rootCA.pem", trusted / "rootCA.pem")
    server.startup = trusted
    reds = found(check(kit))
    assert set(reds) == {"FLARE"}
    assert "it refuses this kit" in reds["FLARE"]
