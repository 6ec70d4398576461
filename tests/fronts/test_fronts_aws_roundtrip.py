"""For every operation that is served: what a real client sends arrives as it was meant, and what a handler gives comes
back as it was given. Input and output are random, and valid by AWS's own models. Another reader of AWS's requests,
moto's, has to read the same."""

import base64
import io
import json
import random
import re
import string
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config

from loopline.control import access, access_keys
from loopline.domain.access import Permission
from loopline.fronts.aws import models
from loopline.fronts.aws.app import Front
from loopline.fronts.aws.call import Call, Operation
from loopline.fronts.aws.table import TABLE
from loopline.testing.asgi import ask
from loopline.testing.world import ADMIN, World

TRIALS = 3
PLAIN = string.ascii_letters + string.digits
RICH = PLAIN + " \"'<>&%+/=;:,é中😀\\"
# What clients add or change by themselves: encryption keys, checksums, and what a list or a body says of itself.
CLIENTS_OWN = re.compile("^(EncodingType|Content(Length|MD5|Type)|Expires(String)?)$|SSECustomer|Checksum")
OPERATIONS = sorted((service, name) for service, table in TABLE.items() for name in table)


class Sender:
    """Clients whose requests go to a front in this process, and whose answers come from ``result``."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.given: Any = None
        self.result: dict[str, Any] = {}
        access.bootstrap(self.world.ctx, "http://127.0.0.1:8600")
        self._key = access_keys.create(self.world.ctx, ADMIN, user="admin", name="test")
        table = {
            service: {name: Operation(self._handle, Permission.PUBLIC) for name in names}
            for service, names in TABLE.items()
        }
        self._front = Front(self.world.ctx, table)
        self._clients: dict[str, Any] = {}
        self.sent: dict[str, Any] = {}

    def _handle(self, _call: Call, given: dict[str, Any]) -> dict[str, Any]:
        self.given = {name: _drained(value) for name, value in given.items()}
        return self.result

    def client(self, service: str) -> Any:
        if service not in self._clients:
            made = boto3.client(
                service,
                endpoint_url="http://127.0.0.1:8600",
                region_name="us-east-1",
                aws_access_key_id=self._key["id"],
                aws_secret_access_key=self._key["secret_key"],
                config=Config(
                    retries={"total_max_attempts": 1},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
            made.meta.events.register("before-send", self._send)
            self._clients[service] = made
        return self._clients[service]

    def _send(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        body = request.body.read() if hasattr(request.body, "read") else request.body or b""
        data = body.encode() if isinstance(body, str) else bytes(body)
        parts = urlsplit(request.url)
        sent = {
            name.lower(): value.decode("latin-1") if isinstance(value, bytes) else str(value)
            for name, value in {"host": parts.netloc, **request.headers}.items()
        }
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        self.sent = {
            "method": request.method,
            "path": parts.path,
            "query": parts.query,
            "headers": sent,
            "body": base64.b64encode(data).decode(),
        }
        answer = ask(self._front, request.method, path, data, headers=sent, chunks=3)
        return AWSResponse(request.url, answer.status, answer.headers, _Raw(answer.body))


class _Raw(io.BytesIO):
    """What botocore reads an answer's body from."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


def _drained(value: Any) -> Any:
    return b"".join(value) if isinstance(value, Iterator) else value


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if not CLIENTS_OWN.search(key) and (key, item) != ("Metadata", {})}


@pytest.fixture(scope="module")
def sender(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sender]:
    made = Sender(tmp_path_factory.mktemp("front") / "data")
    yield made
    made.world.close()


class Maker:
    """Random values of shapes."""

    def __init__(self, seed: str, protocol: str) -> None:
        self.random = random.Random(seed)
        self.query = protocol == "query"

    def value(self, shape: Any, name: str = "", depth: int = 0, located: bool = False) -> Any:
        maker = getattr(self, f"_{shape.type_name}", self._string)
        return maker(shape, name, depth, located)

    def structure(self, shape: Any) -> dict[str, Any]:
        payload, kept = shape.serialization.get("payload"), {}
        for name, member in shape.members.items():
            if CLIENTS_OWN.search(name):
                continue
            located = "location" in member.serialization
            required = name in shape.required_members or name == payload or "idempotencyToken" in member.metadata
            if required or self.random.random() < 0.6:
                kept[name] = self.value(member, name, 1, located)
        return kept

    def _structure(self, shape: Any, _name: str, depth: int, _located: bool) -> Any:
        if getattr(shape, "is_document_type", False):
            return {"a": [1, "b", None]}
        names = list(shape.members)
        if getattr(shape, "is_tagged_union", False):
            names = [self.random.choice(names)]
        else:
            names = [n for n in names if n in shape.required_members or (depth < 4 and self.random.random() < 0.5)]
            if self.query and not names:
                names = list(shape.members)[:1]  # an empty structure cannot be told in a form
        return {name: self.value(shape.members[name], name, depth + 1) for name in names}

    def _list(self, shape: Any, _name: str, depth: int, located: bool) -> list[Any]:
        least = max(1, shape.metadata.get("min", 0))
        count = least if depth > 3 else least + self.random.randrange(2)
        return [self.value(shape.member, "", depth + 1, located) for _ in range(count)]

    def _map(self, shape: Any, _name: str, depth: int, located: bool) -> dict[str, Any]:
        if located:
            return {"x-" + self._text(6, PLAIN).lower(): self._text(6, PLAIN) for _ in range(2)}
        count = max(1, shape.metadata.get("min", 0))
        return {
            self.value(shape.key, "", depth + 1) + str(n): self.value(shape.value, "", depth + 1) for n in range(count)
        }

    def _string(self, shape: Any, name: str, _depth: int, located: bool) -> str:
        if name == "Bucket":
            return self._text(8, string.ascii_lowercase)
        if shape.metadata.get("enum"):
            return str(self.random.choice(shape.metadata["enum"]))
        least = shape.metadata.get("min", 0)
        if name in ("CopySource",):
            return f"bucket/{self._text(8, PLAIN)}"
        if located and shape.serialization.get("location") == "header":
            return self._text(max(least, 6), PLAIN)
        inner = self._text(max(least - 2, self.random.randrange(12)), RICH)
        return f"{self._text(1, PLAIN)}{inner}{self._text(1, PLAIN)}"[: max(least, shape.metadata.get("max", 1000))]

    def _text(self, size: int, letters: str) -> str:
        return "".join(self.random.choice(letters) for _ in range(size))

    def _integer(self, shape: Any, _name: str, _depth: int, _located: bool) -> int:
        least = shape.metadata.get("min", 0)
        return int(least) + self.random.randrange(100)

    _long = _integer

    def _float(self, shape: Any, _name: str, _depth: int, _located: bool) -> float:
        return float(shape.metadata.get("min", 0)) + self.random.randrange(8) / 8

    _double = _float

    def _boolean(self, *_: Any) -> bool:
        return self.random.random() < 0.5

    def _timestamp(self, *_: Any) -> datetime:
        return datetime.fromtimestamp(1_600_000_000 + self.random.randrange(10**8), UTC)

    def _blob(self, *_: Any) -> bytes:
        return self.random.randbytes(self.random.randrange(1, 50))


@pytest.mark.parametrize(("service", "name"), OPERATIONS, ids=[f"{s}.{n}" for s, n in OPERATIONS])
def test_an_operation_survives_the_way_there_and_back(sender: Sender, service: str, name: str) -> None:
    wire = models.service(service).wire(name)
    assert wire is not None, "AWS has no such operation"
    client = sender.client(service)
    method = {operation: python for python, operation in client.meta.method_to_api_mapping.items()}[name]
    for trial in range(TRIALS):
        maker = Maker(f"{service} {name} {trial}", wire.service.model.metadata["protocol"])
        asked = maker.structure(wire.input) if wire.input else {}
        sender.result = maker.structure(wire.output) if wire.output else {}
        meant = dict(sender.result)

        answered = getattr(client, method)(**asked)

        answered.pop("ResponseMetadata")
        read = {key: value.read() if hasattr(value, "read") else value for key, value in answered.items()}
        assert _plain(sender.given) == asked, f"the way there, trial {trial}"
        assert _plain(read) == meant, f"the way back, trial {trial}"


# Run by moto's own interpreter: requests from standard input, what its parsers read of them to standard output.
ORACLE = """
import base64, datetime, json, re, sys
from urllib.parse import parse_qs, parse_qsl, unquote
from botocore.loaders import Loader
from moto.core.model import ServiceModel
from moto.core.parse import PROTOCOL_PARSERS

class Values(dict):
    def get_list(self, name, default):
        found = self.get(name, default)
        return found if isinstance(found, list) else [found]

class Headers(dict):
    def __contains__(self, name):
        return super().__contains__(name.lower())
    def __getitem__(self, name):
        return super().__getitem__(name.lower())

def plain(value):
    if isinstance(value, datetime.datetime):
        return {"seconds": value.replace(tzinfo=datetime.timezone.utc).timestamp()}
    return {"bytes": base64.b64encode(value).decode()}

def read(asked):
    service = ServiceModel(Loader().load_service_model(asked["service"], "service-2"), asked["service"])
    operation = service.operation_model(asked["operation"])
    headers, body = Headers(asked["headers"]), base64.b64decode(asked["body"])
    protocol = service.metadata["protocol"]
    values = Values({k: v if len(v) > 1 else v[0] for k, v in parse_qs(asked["query"], True).items()})
    if "x-amz-target" in headers:
        protocol = "json"
    elif "x-www-form-urlencoded" in headers.get("content-type", ""):
        protocol, values = "query", Values(parse_qsl(body.decode(), True))
    uri = operation.http["requestUri"].partition("?")[0]
    pattern = re.sub(r"{(\\w+)([+]?)}", lambda m: f"(?P<{m[1]}>{'.+' if m[2] else '[^/]+'})", uri)
    labels = re.fullmatch(pattern + "/?", asked["path"]) if protocol.startswith("rest") else None
    params = {name: unquote(text) for name, text in (labels.groupdict() if labels else {}).items()}
    given = {"url_params": params, "url_path": asked["path"], "values": values}
    given |= {"method": asked["method"], "headers": headers, "body": body}
    return PROTOCOL_PARSERS[protocol](operation).parse(given)

json.dump([read(asked) for asked in json.load(sys.stdin)], sys.stdout, default=plain)
"""
MOTO = Path(__file__).resolve().parents[2] / ".clients" / "moto" / "bin" / "python"


def _written(value: Any) -> Any:
    """A value as the oracle writes it."""
    if isinstance(value, datetime):
        return {"seconds": value.timestamp()}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {name: _written(each) for name, each in value.items()}
    return [_written(each) for each in value] if isinstance(value, list) else value


@pytest.mark.skipif(not MOTO.exists(), reason="moto is not there: make clients")
def test_another_reader_reads_the_same(sender: Sender) -> None:
    asked, read = [], []
    for service, name in OPERATIONS:
        wire = models.service(service).wire(name)
        assert wire is not None
        maker = Maker(f"{service} {name} oracle", wire.service.model.metadata["protocol"])
        method = {made: python for python, made in sender.client(service).meta.method_to_api_mapping.items()}[name]
        sender.result = maker.structure(wire.output) if wire.output else {}
        getattr(sender.client(service), method)(**(maker.structure(wire.input) if wire.input else {}))
        streamed = {wire.streams_in} if wire.streams_in else set()
        asked.append({"service": service, "operation": name, **sender.sent, **({"body": ""} if streamed else {})})
        read.append({key: value for key, value in _plain(sender.given).items() if key not in streamed})

    done = subprocess.run(
        [str(MOTO), "-c", ORACLE], input=json.dumps(asked), capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]
    others = [_plain(found) for found in json.loads(done.stdout)]
    differing = [
        (service, name, _written(ours), other)
        for (service, name), ours, other in zip(OPERATIONS, read, others, strict=True)
        if _written(ours) != other
    ]
    assert differing == []
