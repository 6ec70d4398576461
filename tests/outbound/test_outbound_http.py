"""What goes out reaches checked addresses only, and cannot hold the sender longer than its deadline."""

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from loopline.errors import InvalidInput, Timeout, Unavailable
from loopline.outbound.addresses import is_public
from loopline.outbound.http import MAX_ANSWER_BYTES, Sender, parse_url
from loopline.testing.live import free_port

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nRetry-After: 7\r\n\r\nok"


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def receiver(
    answer: Callable[[socket.socket], None], tls: ssl.SSLContext | None = None
) -> Iterator[tuple[int, list[bytes]]]:
    """A server on loopback; each connection's request is kept and ``answer`` writes what it likes."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                if tls:
                    connection = tls.wrap_socket(connection, server_side=True)
                seen.append(read_request(connection))
                answer(connection)
            except (OSError, IndexError):
                pass
            finally:
                connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(60)


def test_a_post_arrives_with_the_name_in_host_and_the_answer_comes_back() -> None:
    asked: list[str] = []

    def resolver(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    with receiver(lambda c: c.sendall(OK)) as (port, seen):
        sender = Sender((f"hook.example:{port}",), resolver=resolver)
        answer = sender.post(f"http://hook.example:{port}/a/b?c=d", {"X-One": "1"}, b"{}", 60)
    assert (answer.status, answer.body, answer.headers["retry-after"]) == (200, b"ok", "7")
    assert seen[0].startswith(b"POST /a/b?c=d HTTP/1.1\r\n")
    assert f"\r\nHost: hook.example:{port}\r\n".encode() in seen[0]
    assert seen[0].endswith(b"\r\n\r\n{}")
    assert asked == ["hook.example"]  # once: nothing is looked up again between check and connection


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001:db8::1",
        "not an address",
    ],
)
def test_private_and_reserved_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


def test_a_private_address_is_refused_and_the_setting_is_named() -> None:
    with receiver(lambda c: c.sendall(OK)) as (port, seen):
        with pytest.raises(InvalidInput, match=rf"outbound_allow = 127\.0\.0\.1:{port}"):
            Sender().post(f"http://127.0.0.1:{port}/", {}, b"", 60)
        with pytest.raises(InvalidInput, match="outbound_allow"):
            Sender((f"127.0.0.1:{port + 1}",)).post(f"http://127.0.0.1:{port}/", {}, b"", 60)
    assert seen == []


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "[::ffff:7f00:1]"])
def test_other_spellings_of_loopback_are_refused(host: str) -> None:
    with pytest.raises((InvalidInput, Unavailable), match=r"private or reserved|no address|no host"):
        Sender().post(f"http://{host}:9/", {}, b"", 60)


@pytest.mark.parametrize("answer", [["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"], ["2606:4700::1", "::1"]])
def test_a_name_with_public_and_private_addresses_is_refused(answer: list[str]) -> None:
    with pytest.raises(InvalidInput, match="private or reserved"):
        Sender(resolver=lambda host, port: answer).post("http://mixed.example/", {}, b"", 60)


def test_a_name_that_changes_its_address_after_the_check_gains_nothing() -> None:
    answers = [["192.0.2.9"], ["127.0.0.1"]]
    with receiver(lambda c: c.sendall(OK)) as (port, seen), pytest.raises(InvalidInput):
        Sender(resolver=lambda host, _: answers.pop(0)).post(f"http://rebind.example:{port}/", {}, b"", 60)
    assert seen == [] and answers == [["127.0.0.1"]]


def test_a_redirect_is_an_answer_and_not_followed() -> None:
    with receiver(lambda c: c.sendall(OK)) as (inner, inner_seen):
        moved = f"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:{inner}/\r\nContent-Length: 0\r\n\r\n".encode()
        with receiver(lambda c: c.sendall(moved)) as (port, _):
            answer = Sender((f"127.0.0.1:{port}",)).post(f"http://127.0.0.1:{port}/", {}, b"", 60)
    assert answer.status == 307
    assert inner_seen == []


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver(lambda c: c.sendall(OK)) as (proxy, proxy_seen), receiver(lambda c: c.sendall(OK)) as (port, seen):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        assert Sender((f"127.0.0.1:{port}",)).post(f"http://127.0.0.1:{port}/", {}, b"", 60).status == 200
    assert len(seen) == 1 and proxy_seen == []


def test_a_long_answer_is_cut() -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with receiver(endless) as (port, _):
        answer = Sender((f"127.0.0.1:{port}",)).post(f"http://127.0.0.1:{port}/", {}, b"", 60)
    assert answer.body == b"x" * MAX_ANSWER_BYTES


def test_a_receiver_that_drips_cannot_pass_the_deadline() -> None:
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        for _ in range(1200):  # a minute long, and then it ends: who had waited for it would not tell of a deadline
            if stop.wait(0.05):
                return
            connection.sendall(b"x")

    with receiver(drip) as (port, _):
        with pytest.raises(Timeout):
            Sender((f"127.0.0.1:{port}",)).post(f"http://127.0.0.1:{port}/", {}, b"", 0.6)
        stop.set()


def test_a_slow_name_service_cannot_pass_the_deadline() -> None:
    release = threading.Event()
    with pytest.raises(Timeout, match="not resolved"):
        Sender(resolver=lambda host, port: [str(release.wait(60))]).post("http://slow.example/", {}, b"", 0.2)
    release.set()


def test_no_connection_and_no_http_are_unavailable() -> None:
    port = free_port()
    with pytest.raises(Unavailable, match="takes no connection"):
        Sender((f"127.0.0.1:{port}",)).post(f"http://127.0.0.1:{port}/secret-path", {}, b"", 60)
    with (
        receiver(lambda c: c.sendall(b"220 smtp ready\r\n")) as (port, _),
        pytest.raises(Unavailable, match="no HTTP answer") as caught,
    ):
        Sender((f"127.0.0.1:{port}",)).post(f"http://127.0.0.1:{port}/secret-path", {}, b"", 60)
    assert "secret-path" not in str(caught.value)


@pytest.mark.parametrize(
    "headers", [{"X-A": "1\r\nX-B: 2"}, {"X-A\r\n": "1"}, {"X A": "1"}, {"X-A": "é"}, {"Host": "x"}, {"": "x"}]
)
def test_headers_that_inject_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="header"):
        Sender(("127.0.0.1:9",)).post("http://127.0.0.1:9/", headers, b"", 1)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "example.com",
        "http://",
        "http://user:pa55@example.com/",
        "http://exa mple.com/",
        "http://example.com\r\nX: 1/",
        "http://example.com:0/",
        "http://example.com:99999/",
        "http://example.com\\@127.0.0.1/",
        "http://exämple.com/",
        "https://x/" + "a" * 3000,
    ],
)
def test_urls_that_are_no_plain_http_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_url(url)
    assert "pa55" not in str(caught.value)


def test_only_the_place_of_a_url_is_shown() -> None:
    assert parse_url("https://hooks.example/services/T0/SECRET?x=1").place == "https://hooks.example"
    assert parse_url("http://[::1]:81/").place == "http://[::1]:81"


def test_the_allow_list_wants_a_port() -> None:
    with pytest.raises(InvalidInput, match="outbound_allow"):
        Sender(("localhost",))


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server's context, context of a client that trusts it) for a fresh self-signed certificate of ``name``."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("192.0.2.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / f"{name}.pem"
    pem.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cafile=str(pem))


def test_tls_is_verified_against_the_name_and_the_authority(tmp_path: Path) -> None:
    server, trusting = certificate(tmp_path, "hook.example")

    def sender(port: int, name: str, tls: ssl.SSLContext | None) -> Sender:
        return Sender((f"{name}:{port}",), resolver=lambda host, _: ["127.0.0.1"], tls=tls)

    with receiver(lambda c: c.sendall(OK), tls=server) as (port, seen):
        url = f"https://hook.example:{port}/"
        assert sender(port, "hook.example", trusting).post(url, {}, b"x", 60).status == 200
        with pytest.raises(Unavailable, match="certificate is not valid"):
            sender(port, "hook.example", None).post(url, {}, b"x", 60)
        with pytest.raises(Unavailable, match="certificate is not valid"):
            sender(port, "other.example", trusting).post(f"https://other.example:{port}/", {}, b"x", 60)
    assert len(seen) == 1
