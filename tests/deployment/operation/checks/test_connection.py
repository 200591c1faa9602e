"""The way to the server: name, port, TLS, and the server's certificate."""

import re
import socket
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from nvflare.lighter.utils import Identity, generate_cert, generate_keys, serialize_cert, serialize_pri_key

from checked_site import check, found
from fedseg.deployment.kits.authority import authority_of
from fedseg.deployment.kits.installed_kit import read_kit
from fedseg.deployment.operation.checks import connection as site_checks_connection
from fedseg.deployment.operation.checks.result import Colour


def test_a_closed_port_is_named_with_what_the_firewall_must_let_out(kit):
    reds = found(check(kit))
    port = read_kit(kit).port
    assert set(reds) == {"server: port"}
    assert f"localhost:{port} cannot be reached (Connection refused)" in reds["server: port"]
    assert f"outgoing TCP connections to localhost:{port} to be allowed; nothing incoming" in reds["server: port"]


def test_a_port_that_swallows_everything_is_called_blocked(kit, monkeypatch):
    def silent(address, timeout):
        raise TimeoutError

    monkeypatch.setattr(site_checks_connection.socket, "create_connection", silent)
    assert "does not answer within 5 s: blocked" in found(check(kit))["server: port"]


def test_a_server_without_tls_is_found(kit):
    port = read_kit(kit).port

    def answer(listener):
        plain, _ = listener.accept()
        with plain:
            plain.recv(4096)
            plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("localhost", port)) as listener:
        thread = threading.Thread(target=answer, args=[listener])
        thread.start()
        reds = found(check(kit))
        thread.join(10)
    assert set(reds) == {"TLS"}
    assert "does not speak TLS" in reds["TLS"]


def issued(federation, name, folder, not_after):
    """A certificate of the federation for a server of this name, that ends at a moment."""
    authority = authority_of(federation / "authority")
    root = x509.load_pem_x509_certificate(authority.root)
    key, public = generate_keys()
    issuer = root.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    certificate = generate_cert(
        Identity(name),
        Identity(issuer),
        authority.key,
        public,
        server_default_host=name,
        not_valid_before=not_after - timedelta(days=30),
        not_valid_after=not_after,
    )
    folder.mkdir()
    (folder / "server.crt").write_bytes(serialize_cert(certificate))
    (folder / "server.key").write_bytes(serialize_pri_key(key))
    return folder / "server.crt", folder / "server.key"


def test_a_server_whose_certificate_has_expired_is_found(kit, server, federation, tmp_path):
    server.certificate = issued(federation, "localhost", tmp_path / "old", datetime.now(UTC) - timedelta(days=1))
    reds = found(check(kit))
    assert set(reds) == {"TLS"}
    assert re.search(r"certificate has expired.*clock.*needs a new certificate", reds["TLS"])


def test_a_server_whose_certificate_ends_soon_is_yellow(kit, server, federation, tmp_path):
    server.certificate = issued(federation, "localhost", tmp_path / "old", datetime.now(UTC) + timedelta(days=20))
    page = check(kit)
    assert found(page) == {}
    assert "Tell the coordinator" in found(page, Colour.YELLOW)["server: certificate"]


def test_the_time_of_a_blocked_name_does_not_grow_with_its_addresses(kit, monkeypatch):
    asked = []

    def silent(address, timeout):
        asked.append((address[0], timeout))
        raise TimeoutError if address[0] != "::1" else OSError(101, "Network is unreachable")

    both = [(0, 0, 0, "", (name, 1)) for name in ("192.0.2.1", "::1", "192.0.2.1", "192.0.2.2")]
    monkeypatch.setattr(site_checks_connection.socket, "getaddrinfo", lambda *more, **named: both)
    monkeypatch.setattr(site_checks_connection.socket, "create_connection", silent)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    text = found(check(kit))["server: port"]
    assert [name for name, _ in asked] == ["192.0.2.1", "::1", "192.0.2.2"]
    assert sum(timeout for _, timeout in asked) == pytest.approx(5)
    assert "does not answer within 5 s: blocked" in text, "not the unreachable network of an address that is not used"
    assert "HTTPS_PROXY, which is set here, does not help" in text


def test_one_of_two_addresses_is_enough(kit, server, monkeypatch):
    real = socket.getaddrinfo

    def both(host, port, *more, **named):
        found = real(host, port, *more, **named)
        return [(0, 0, 0, "", ("192.0.2.1.invalid", port)), *found] if host == "localhost" else found

    monkeypatch.setattr(site_checks_connection.socket, "getaddrinfo", both)
    assert found(check(kit)) == {}
