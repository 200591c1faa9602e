"""Checks of what answers behind the server's port: whether it is FLARE, whether it accepts the kit, and its clock."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator
from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime

from fedseg.deployment.kits.installed_kit import InstalledKit
from fedseg.deployment.operation.checks.result import CheckOptions, CheckResult, green, red, yellow

SKEW_NOTED, SKEW_REFUSED = timedelta(seconds=60), timedelta(seconds=300)
FLARE_PATH = "/f3"
_HTTP = ("http", "https")
_KEY = base64.b64encode(b"fedseg sitecheck").decode("ascii")  # WebSocket asks for any 16 bytes.


def ask_flare(kit: InstalledKit, options: CheckOptions, tls: ssl.SSLSocket) -> Iterator[CheckResult]:
    """Open FLARE's channel and close it again; nobody is registered by that."""
    if kit.scheme not in _HTTP:
        found = f"Not checked: this federation speaks {kit.scheme}."
        yield yellow("FLARE", found, "Start the site and see its status.")
        yield no_clock()
        return
    try:
        tls.settimeout(options.timeout)
        tls.sendall(_request(kit))
        status, headers = _answer(tls)
    except (OSError, ValueError) as error:
        yield _no_answer(error, options)
        yield no_clock()
        return
    if " 101 " in f"{status} ":
        yield green("FLARE", "The server's FLARE answers.")
    else:
        remedy = "Ask the coordinator what runs at this port; a proxy between would answer like this too."
        yield red("FLARE", f"{kit.address} answers, but not as FLARE does ({status}).", remedy)
    yield _clock(headers.get("date"), options)


def _request(kit: InstalledKit) -> bytes:
    """What a client of FLARE asks first: to speak WebSocket."""
    lines = (
        f"GET {FLARE_PATH} HTTP/1.1",
        f"Host: {kit.address}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {_KEY}",
        "Sec-WebSocket-Version: 13",
    )
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def _no_answer(error: Exception, options: CheckOptions) -> CheckResult:
    if isinstance(error, TimeoutError):
        remedy = "Ask the coordinator how the server is; a firewall that lets no data through does this too."
        return red("FLARE", f"The server accepts TLS, but does not answer within {options.timeout:g} s.", remedy)
    # With TLS 1.3 the server says only after the handshake whether it accepts the site's certificate.
    remedy = "Is the kit of this federation and still valid? Ask the coordinator to look at the server's log."
    return red("FLARE", f"The server ended the connection ({reason_of(error)}): it refuses this kit.", remedy)


def _answer(tls: ssl.SSLSocket) -> tuple[str, dict[str, str]]:
    """Status line and header fields of an answer in HTTP."""
    text = b""
    while b"\r\n\r\n" not in text:
        part = tls.recv(4096)
        if not part:
            raise ConnectionResetError("closed without an answer")
        text += part
        if len(text) > 65536:
            raise ValueError("an answer without end")
    first, *rest = text.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    return first, {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}


def _clock(date: str | None, options: CheckOptions) -> CheckResult:
    """The server's time against this machine's; the server tells whole seconds."""
    try:
        theirs = parsedate_to_datetime(date or "")
    except ValueError:
        return no_clock()
    theirs = theirs if theirs.tzinfo else theirs.replace(tzinfo=UTC)
    ahead = options.now() - theirs
    found = f"{abs(ahead).total_seconds():.0f} s {'ahead of' if ahead > timedelta(0) else 'behind'} the server."
    remedy = "Set the clock by a time server (timedatectl set-ntp true), or tell the coordinator to set the server's."
    if abs(ahead) > SKEW_REFUSED:
        return red("clock", found, f"{remedy} Certificates are valid by the clock.")
    if abs(ahead) > SKEW_NOTED:
        return yellow("clock", found, remedy)
    return green("clock", "As the server's, to the second or nearly so.")


def no_clock() -> CheckResult:
    """What is said where no time was heard."""
    return yellow("clock", "Not checked: the server told no time.", "Compare the clock with a time server.")


def reason_of(error: Exception) -> str:
    """What an exception says, in one short line."""
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error).replace("_", " ").lower()
