"""HAProxy and nginx, configured as loopline prints it, in front of a gateway that is killed meanwhile."""

import http.client
import json
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from loopline.domain import proxies
from loopline.domain.proxies import Proxy
from loopline.errors import InvalidInput
from loopline.testing.live import free_port

ECHO = """
    def load(model_dir): return None
    def predict(model, rows): return [row[0] for row in rows]
"""
KINDS = {"haproxy": proxies.haproxy, "nginx": proxies.nginx}


def certificate(folder: Path) -> Path:
    """A PEM file with a key and a certificate for localhost."""
    pem = folder / "proxy.pem"
    key, own = folder / "key.pem", folder / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run(
        [*made, "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(own)],
        check=True,
        capture_output=True,
    )
    pem.write_bytes(own.read_bytes() + key.read_bytes())
    return pem


class Front:
    """A running proxy."""

    def __init__(self, kind: str, text: str, port: int, folder: Path, trusted: Path | None) -> None:
        self.port, self.trusted = port, trusted
        self._log = (folder / f"{kind}.log").open("wb")
        file = folder / f"{kind}.conf"
        if kind == "nginx":  # what belongs to the place where it runs: everything else is as printed
            text = f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;\n{text}"
            places = "".join(f"{name}_temp_path {folder}/{name};" for name in NGINX_FOLDERS)
            text = text.replace("http {", f"http {{ {places}", 1).replace("/dev/stdout", f"{folder}/access.log")
        file.write_text(text)
        program = shutil.which(kind, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
        assert program is not None
        argv = [program, "-db", "-f", str(file)] if kind == "haproxy" else [program, "-p", str(folder), "-c", str(file)]
        self._process = subprocess.Popen(argv, stdout=self._log, stderr=self._log)

    def client(self) -> http.client.HTTPConnection:
        if self.trusted is None:
            return http.client.HTTPConnection("localhost", self.port, timeout=60)
        context = ssl.create_default_context(cafile=str(self.trusted))
        return http.client.HTTPSConnection("localhost", self.port, timeout=60, context=context)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()


NGINX_FOLDERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@pytest.fixture
def start(rig, tmp_path):
    fronts: list[Front] = []

    def start(kind: str, trusted: Path | None = None, **fields: object) -> Front:
        if shutil.which(kind, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is None:
            pytest.skip(f"{kind} is not installed: apt-get install {kind}")
        listen = free_port()
        given = {"host": "127.0.0.1", "port": int(rig.address.split(":")[1]), "names": ("localhost",), "max_body_mb": 1}
        proxy = Proxy(**{**given, "certificate": str(trusted) if trusted else None, "listen": listen, **fields})
        render = proxies.haproxy_passthrough if fields.get("names") == () else KINDS[kind]
        fronts.append(Front(kind, render(proxy), listen, tmp_path, trusted))
        return fronts[-1]

    yield start
    for front in fronts:
        front.close()


def serve(rig, make_variant, front_port: int) -> None:
    rig.publish(make_variant("v1", rig.start_server("a", ECHO)), wait=False, max_body_bytes=1 << 20)
    document = json.loads((rig.folder / "snapshot.json").read_text())
    document["allowed_hosts"] += [f"localhost:{front_port}", f"127.0.0.1:{front_port}"]
    rig.write_snapshot(json.dumps(document))
    rig.start_gateway()


def answers(front: Front) -> bool:
    client = front.client()
    try:
        client.request("GET", "/healthz")
        return client.getresponse().status == 200
    except OSError:
        return False
    finally:
        client.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_predictions_go_through_and_survive_a_gateway(rig, make_variant, until, start, tmp_path, kind, tls):
    front = start(kind, certificate(tmp_path) if tls else None)
    serve(rig, make_variant, front.port)
    until(lambda: answers(front))
    client = front.client()
    status, document, answer = rig.ask({"x": 7}, client)
    assert (status, document) == (200, {"predictions": [7.0]})
    assert answer.getheader("x-request-id").startswith("rq_")
    assert rig.ask({"x": 7}, client, authorization="Bearer nobody")[0] == 401
    large = front.client()
    large.putrequest("POST", "/endpoints/e/invocations")
    large.putheader("content-length", str(2 << 20))
    large.endheaders()
    assert large.getresponse().status == 413

    for _ in range(3):  # between two requests on one connection
        rig.kill("gateway")
        restart = threading.Timer(0.2, rig.start_gateway)
        restart.start()
        assert rig.ask({"x": 1}, client)[0] == 200
        restart.join()

    ended, statuses = threading.Event(), []

    def load() -> None:
        own = front.client()
        while not ended.is_set():
            try:
                statuses.append(rig.ask({"x": 1}, own)[0])
            except (OSError, http.client.HTTPException):
                statuses.append(0)
                own = front.client()
            except ValueError:  # the proxy's own page: 502
                statuses.append(502)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        before = len(statuses)
        until(lambda before=before: len(statuses) > before + 40)
        rig.kill("gateway")
        rig.start_gateway()
    before = len(statuses)
    until(lambda: len(statuses) > before + 40)
    ended.set()
    for thread in threads:
        thread.join()
    lost = [status for status in statuses if status != 200]
    assert len(lost) <= 3 * len(threads), "more was lost than what was in flight when a gateway was killed"
    assert set(lost) <= {0, 502, 503, 504}


def test_tls_may_be_passed_through(rig, make_variant, until, start):
    front = start("haproxy", names=())
    serve(rig, make_variant, front.port)
    until(lambda: answers(front))
    assert rig.ask({"x": 7}, front.client())[:2] == (200, {"predictions": [7.0]})


def test_a_name_that_is_not_the_installations_is_refused(rig, make_variant, until, start):
    front = start("haproxy")
    serve(rig, make_variant, front.port)
    until(lambda: answers(front))
    client = front.client()
    client.request("GET", "/healthz", headers={"host": "evil.example"})
    assert client.getresponse().status == 421


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "a b"},
        {"host": "127.0.0.1;\n"},
        {"names": ("x{y",)},
        {"names": ("ok.example", "-bad")},
        {"certificate": "relative.pem"},
        {"certificate": "/a b.pem"},
        {"certificate": "/etc/../x.pem"},
        {"certificate": "/x.pem;include /y"},
        {"port": 0},
        {"listen": 70000},
    ],
    ids=str,
)
def test_what_would_be_more_than_a_value_is_refused(fields):
    given = {"host": "127.0.0.1", "port": 8600, "listen": 8443, "names": (), "certificate": None, "max_body_mb": 6}
    with pytest.raises(InvalidInput):
        Proxy(**{**given, **fields})


def test_health_is_the_gateways_own_and_needs_no_name(rig, make_variant, until):
    serve(rig, make_variant, 1)
    for host in ("10.0.0.7", rig.address):
        client = rig.client()
        client.request("GET", "/healthz", headers={"host": host})
        assert client.getresponse().status == 200
