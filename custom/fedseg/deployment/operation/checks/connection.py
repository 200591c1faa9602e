"""Checks of the way to the server: name, port, TLS with the kit's certificate, FLARE behind it, and the clock.

FLARE's own preflight check is not used: for the transport of these kits it opens the port without TLS, and then starts
the site for five seconds and ends every process with the same command line, a site that works among them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import Generator, Iterator

from cryptography import x509
from cryptography.x509.oid import NameOID

from fedseg.deployment.kits.installed_kit import InstalledKit
from fedseg.deployment.operation.checks.flare import ask_flare, no_clock, reason_of
from fedseg.deployment.operation.checks.kit import ENDS_SOON
from fedseg.deployment.operation.checks.result import CheckOptions, CheckResult, green, red, yellow
from fedseg.deployment.operation.kit_processes import find_processes


def check_connection(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """One step after the other, as far as they lead."""
    if not kit.is_site:
        yield from _check_port(kit)
        return
    with contextlib.ExitStack() as stack:
        plain = yield from _open_port(kit, options)
        if plain is None:
            yield no_clock()
            return
        stack.enter_context(plain)
        tls = yield from _shake_hands(kit, plain)
        if tls is None:
            yield no_clock()
            return
        stack.enter_context(tls)
        yield from _server_certificate(kit, options, tls)
        yield from ask_flare(kit, options, tls)


def _check_port(kit: InstalledKit) -> Iterator[CheckResult]:
    """At the server's own machine: whether its port is free, or taken by the server itself."""
    if find_processes(kit).main is not None:
        yield green("port", f"The server of this kit runs; `fedseg site status` says whether it listens at {kit.port}.")
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", kit.port))
        except OSError as error:
            remedy = "End the other program, or let the coordinator provision the server with another port."
            yield red("port", f"Port {kit.port} cannot be used ({error.strerror}).", remedy)
            return
    found = f"Port {kit.port} is free. The firewall must let TCP connections to it come in."
    yield green("port", found)


def _open_port(kit: InstalledKit, options: CheckOptions) -> Generator[CheckResult, None, socket.socket | None]:
    allow = (
        f"Ask for outgoing TCP connections to {kit.address} to be allowed; nothing incoming is needed. If they are, "
        "ask the coordinator whether the server runs."
    )
    try:
        found = socket.getaddrinfo(kit.host, kit.port, type=socket.SOCK_STREAM)
    except OSError as error:
        why = getattr(error, "strerror", None) or error
        remedy = "Ask the network's administrator for name service, or the coordinator whether the name is right."
        yield red("server: name", f"{kit.host} does not resolve ({why}).", remedy)
        return None
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    yield green("server: name", f"{kit.host} is {', '.join(addresses)}.")
    plain, refused = _connect(addresses, kit.port, options.timeout)
    if plain is None:
        why = f"{kit.address} does not answer within {options.timeout:g} s: blocked."
        if refused is not None:
            why = f"{kit.address} cannot be reached ({refused})."
        yield red("server: port", why, f"{allow}{_proxy()}")
        return None
    yield green("server: port", f"{kit.address} is open.")
    return plain


def _connect(addresses: list[str], port: int, timeout: float) -> tuple[socket.socket | None, str | None]:
    """The first address that opens, all of them together within the time; or why they refused, None if one was silent.

    A name often has two addresses, of which a machine can use one only: what is said is then about the other.
    """
    refused, silent = None, False
    for address in addresses:
        try:
            plain = socket.create_connection((address, port), timeout=timeout / len(addresses))
        except TimeoutError:
            silent = True
        except OSError as error:
            refused = refused or str(error.strerror)
        else:
            plain.settimeout(timeout)
            return plain, None
    return None, None if silent else refused


def _proxy() -> str:
    names = [name for name in ("HTTPS_PROXY", "https_proxy") if os.environ.get(name)]
    return f" FLARE connects directly: {names[0]}, which is set here, does not help." if names else ""


def _shake_hands(kit: InstalledKit, plain: socket.socket) -> Generator[CheckResult, None, ssl.SSLSocket | None]:
    context = ssl.create_default_context(cafile=str(kit.root))
    # FLARE compares the name in the certificate with the one in the kit, not with the host; so does the next check.
    context.check_hostname = False
    try:
        context.load_cert_chain(kit.certificate, kit.key)
    except (OSError, ssl.SSLError):
        yield red("TLS", "The kit's certificate and key cannot be used.", "See the lines about them above.")
        return None
    try:
        tls = context.wrap_socket(plain, server_hostname=kit.host)
    except ssl.SSLCertVerificationError as error:
        yield red("TLS", f"The server's certificate is not accepted: {error.verify_message}.", _about(error))
        return None
    except (OSError, ssl.SSLError) as error:
        remedy = "Ask the coordinator whether FLARE's server runs at this port, and for a firewall that opens TLS."
        yield red("TLS", f"{kit.address} does not speak TLS ({reason_of(error)}).", remedy)
        return None
    yield green("TLS", f"{tls.version()} with the kit's certificate and root.")
    return tls


def _about(error: ssl.SSLCertVerificationError) -> str:
    if "expired" in error.verify_message or "not yet valid" in error.verify_message:
        return "Is the clock of this machine right? If so, tell the coordinator: the server needs a new certificate."
    return (
        "Is the kit of this federation? Compare the root's fingerprint with the coordinator's by telephone. A firewall "
        "that opens TLS connections does this too: it must let these through unopened."
    )


def _server_certificate(kit: InstalledKit, options: CheckOptions, tls: ssl.SSLSocket) -> Iterator[CheckResult]:
    der = tls.getpeercert(binary_form=True)
    if der is None:
        yield red("server: certificate", "The server showed none.", "Tell the coordinator.")
        return
    certificate = x509.load_der_x509_certificate(der)
    names = [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    end = certificate.not_valid_after_utc
    if names != [kit.server_name]:
        remedy = "FLARE would refuse it. Is the address in startup/fed_client.json right? Ask the coordinator."
        found = f"{kit.address} is {', '.join(names)}, but the kit wants {kit.server_name}."
        yield red("server: certificate", found, remedy)
    elif end - options.now() <= ENDS_SOON:
        yield yellow("server: certificate", f"Ends on {end:%Y-%m-%d}.", "Tell the coordinator.")
    else:
        yield green("server: certificate", f"Of {kit.server_name}, valid until {end:%Y-%m-%d}.")
