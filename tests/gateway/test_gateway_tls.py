"""TLS on the public port, with real clients."""

import datetime
import http.client
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import warnings

import pytest
from cryptography import x509

from loopline.config import load
from loopline.errors import InvalidInput, Unavailable
from loopline.gateway import tls
from loopline.sdk.client import Client

ECHO = "def load(d): pass\ndef predict(m, batch): return [row[0] for row in batch]"


@pytest.fixture
def secure(rig, make_variant):
    """An echo endpoint behind TLS with a certificate made for this machine."""
    rig.publish(make_variant("v1", rig.start_server("a", ECHO)), wait=False)
    rig.start_gateway(LOOPLINE_TLS="local", LOOPLINE_ALLOWED_HOSTS="model.example:8600")
    return rig


def trusting(rig):
    return ssl.create_default_context(cafile=str(rig.folder / "tls" / "ca.pem"))


def https(rig, context):
    return http.client.HTTPSConnection(rig.address, timeout=60, context=context)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_that_trusts_the_local_authority_is_answered(secure, version):
    context = trusting(secure)
    context.minimum_version = context.maximum_version = version
    client = https(secure, context)
    for number in range(5):
        assert secure.ask({"x": number}, client)[:2] == (200, {"predictions": [number]})
    client.close()


def test_a_client_that_does_not_trust_it_is_not_misled(secure):
    with pytest.raises(ssl.SSLCertVerificationError):
        secure.ask({"x": 1}, https(secure, ssl.create_default_context()))
    context = trusting(secure)
    with (
        pytest.raises(ssl.SSLCertVerificationError),
        socket.create_connection(("127.0.0.1", int(secure.address.split(":")[1]))) as plain,
    ):
        context.wrap_socket(plain, server_hostname="evil.example")


def test_old_versions_and_plain_http_are_refused(secure):
    context = trusting(secure)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that they are deprecated is the point
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        secure.ask({"x": 1}, https(secure, context))
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        secure.ask({"x": 1})
    assert secure.ask({"x": 2}, https(secure, trusting(secure)))[0] == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here")
def test_curl_is_answered(secure, until):
    url = f"https://localhost:{secure.address.split(':')[1]}/endpoints/e/invocations"
    document = json.loads((secure.folder / "snapshot.json").read_text())
    document["allowed_hosts"].append(url.split("/")[2])
    document["number"] += 1
    secure.write_snapshot(json.dumps(document))
    until(lambda: secure.state().get("number") == document["number"])
    argv = ["curl", "-sS", "--noproxy", "*", "--cacert", str(secure.folder / "tls" / "ca.pem")]
    argv += ["--fail", "-H", f"Authorization: Bearer {secure.key}", "-H", "Content-Type: application/json"]
    argv += ["-d", '{"x": 7}', url]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout) == {"predictions": [7.0]}


def test_many_requests_in_one_write_and_a_large_one_pass(secure):
    with (
        secure.raw() as plain,
        trusting(secure).wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        sock.sendall(secure.request_bytes({"x": 1}) * 100)
        received = b""
        while received.count(b'{"predictions":[1.0]}') < 100:
            part = sock.recv(65536)
            assert part
            received += part
    assert secure.ask(b'{"x": 1' + b" " * 90_000 + b"}", https(secure, trusting(secure)))[0] == 200


def test_keys_are_private_and_the_certificate_names_every_host(secure):
    folder = secure.folder / "tls"
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    certificate = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost", "model.example"}
    assert {str(address) for address in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1"}


def test_the_sdk_finds_the_authority_of_this_machines_server_by_itself(secure, monkeypatch):
    url = f"https://{secure.address}"
    (secure.folder / "client.json").write_text(json.dumps({"url": url, "key": secure.key}))
    monkeypatch.setenv("LOOPLINE_DIR", str(secure.folder))
    with pytest.raises(Unavailable, match="control plane is not running"):  # the gateway has answered
        Client().post("projects")
    monkeypatch.setenv("LOOPLINE_DIR", str(secure.folder / "elsewhere"))
    with pytest.raises(Unavailable, match="LOOPLINE_CA"):
        Client(url, secure.key).post("projects")
    monkeypatch.setenv("LOOPLINE_CA", str(secure.folder / "tls" / "ca.pem"))
    with pytest.raises(Unavailable, match="control plane is not running"):
        Client(url, secure.key).post("projects")
    monkeypatch.setenv("LOOPLINE_CA", str(secure.folder / "snapshot.json"))
    with pytest.raises(InvalidInput, match="LOOPLINE_CA"):
        Client(url, secure.key)


def test_a_client_that_ends_its_side_is_let_go_of(secure):
    with (
        secure.raw() as plain,
        trusting(secure).wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        sock.sendall(secure.request_bytes({"x": 1}))
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        sock.unwrap().close()


def test_a_restart_keeps_the_authority_and_the_certificate(secure):
    context = trusting(secure)
    before = (secure.folder / "tls" / "server.pem").read_bytes()
    secure.kill("gateway")
    (secure.folder / "gateway.log").unlink()
    secure.start_gateway(LOOPLINE_TLS="local", LOOPLINE_ALLOWED_HOSTS="model.example:8600")
    assert (secure.folder / "tls" / "server.pem").read_bytes() == before
    assert secure.ask({"x": 1}, https(secure, context))[0] == 200


def settings(folder, **given):
    return load(environ={}, dir=str(folder), **given)


def test_another_name_makes_another_certificate_by_the_same_authority(tmp_path):
    tls.Certificate(settings(tmp_path, tls="local"))
    authority = (tmp_path / "tls" / "ca.pem").read_bytes()
    first = (tmp_path / "tls" / "server.pem").read_bytes()
    tls.Certificate(settings(tmp_path, tls="local", allowed_hosts="other.example"))
    assert (tmp_path / "tls" / "server.pem").read_bytes() != first
    assert (tmp_path / "tls" / "ca.pem").read_bytes() == authority


def test_a_certificate_is_renewed_in_its_last_month_and_connections_see_the_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tls, "DAYS", tls.RENEW_DAYS - 1)
    certificate = tls.Certificate(settings(tmp_path, tls="local"))
    monkeypatch.undo()
    context = certificate.context
    assert certificate.refresh()
    assert certificate.context is context
    assert not certificate.refresh()
    found = x509.load_pem_x509_certificate((tmp_path / "tls" / "server.pem").read_bytes())
    assert found.not_valid_after_utc > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=300)


@pytest.mark.parametrize("name", ["ca.pem", "ca.key", "server.pem", "server.key"])
@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_a_file_that_was_lost_or_broken_is_made_again(tmp_path, name, content):
    tls.Certificate(settings(tmp_path, tls="local"))
    path = tmp_path / "tls" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    made = tls.Certificate(settings(tmp_path, tls="local"))
    assert not made.refresh()
    client = ssl.create_default_context(cafile=str(tmp_path / "tls" / "ca.pem"))
    _handshake(made.context, client)


def _handshake(server_context, client_context):
    """Shake hands in memory; raises what a client would."""
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(inward, outward, server_side=True)
    client = client_context.wrap_bio(outward, inward, server_hostname="localhost")
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.version() == "TLSv1.3"


def test_a_certificate_of_the_administrators_is_served_and_followed_when_it_changes(rig, make_variant, tmp_path, until):
    own = tmp_path / "own"
    tls.make_local(own / "first", ["127.0.0.1"])
    tls.make_local(own / "second", ["127.0.0.1"])
    for name in ("server.pem", "server.key"):
        shutil.copy(own / "first" / name, own / name)
    rig.publish(make_variant("v1", rig.start_server("a", ECHO)), wait=False)
    rig.start_gateway(LOOPLINE_TLS_CERTIFICATE=str(own / "server.pem"), LOOPLINE_TLS_KEY=str(own / "server.key"))
    first = ssl.create_default_context(cafile=str(own / "first" / "ca.pem"))
    second = ssl.create_default_context(cafile=str(own / "second" / "ca.pem"))
    assert rig.ask({"x": 1}, https(rig, first))[0] == 200
    open_one = https(rig, first)
    rig.ask({"x": 1}, open_one)
    for name in ("server.key", "server.pem"):
        (own / f"{name}.new").write_bytes((own / "second" / name).read_bytes())
        os.replace(own / f"{name}.new", own / name)  # noqa: PTH105 - over the old one

    def follows():
        try:
            return rig.ask({"x": 2}, https(rig, second))[0] == 200
        except ssl.SSLError:
            return False

    until(follows)
    assert rig.ask({"x": 3}, open_one)[0] == 200


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"tls": "yes"}, "tls must be local"),
        ({"tls_certificate": "a.pem"}, "go together"),
        ({"tls_key": "a.key"}, "go together"),
        ({"tls": "local", "tls_certificate": "a.pem", "tls_key": "a.key"}, "leave it out"),
        ({"behind_proxy": "yes"}, "behind_proxy must be trusted"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(tmp_path, given, told):
    with pytest.raises(InvalidInput, match=told):
        settings(tmp_path, **given)


def test_files_that_are_no_certificate_are_refused_with_their_names(tmp_path):
    (tmp_path / "a.pem").write_text("nonsense")
    given = {"tls_certificate": str(tmp_path / "a.pem"), "tls_key": str(tmp_path / "b.key")}
    with pytest.raises(InvalidInput, match=r"a\.pem and .*b\.key"):
        tls.Certificate(settings(tmp_path, **given))


def test_a_name_that_no_certificate_can_hold_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="allowed_hosts"):
        tls.Certificate(settings(tmp_path, tls="local", allowed_hosts="mödel.example"))


# -- beyond this machine


def test_a_gateway_does_not_start_in_the_clear_where_other_machines_reach_it(rig):
    argv = [sys.executable, "-m", "loopline.gateway", "--dir", str(rig.folder), "--bind", "0.0.0.0:0"]
    done = subprocess.run(argv, env=rig.environ, capture_output=True, timeout=60, check=False)
    assert done.returncode != 0
    assert b"--tls local" in done.stderr


@pytest.mark.parametrize("given", [{"LOOPLINE_TLS": "local"}, {"LOOPLINE_BEHIND_PROXY": "trusted"}])
def test_an_endpoint_without_keys_is_not_served_to_other_machines(rig, make_variant, given):
    rig.listening.close()
    rig.listening = socket.socket()
    rig.listening.bind(("0.0.0.0", 0))
    rig.listening.listen()
    rig.address = f"127.0.0.1:{rig.listening.getsockname()[1]}"
    rig.publish(make_variant("v1", rig.start_server("a", ECHO)), wait=False, auth=False)
    rig.start_gateway(**given)
    client = https(rig, trusting(rig)) if "LOOPLINE_TLS" in given else rig.client()
    for _ in range(4):
        status, document, _ = rig.ask({"x": 1}, client)
        assert (status, document["error"]["code"]) == (403, "forbidden")
        assert "auth = true" in document["error"]["message"]
    rig.publish(make_variant("v1", str(rig.run / "a.sock")), auth=True)
    assert rig.ask({"x": 1}, client)[0] == 200
