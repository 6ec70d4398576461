"""AWS's service models, as botocore ships them, turned round: what is input to a client's serializer is output here.

For each operation the mirrored one has the output shape where a client expects the input, so that botocore's
serializers write answers; its parsers read requests by the true input shape. Models are read when a service is first
asked, without their documentation.
"""

import functools
import gc
import gzip
import threading
from pathlib import Path
from typing import Any

import msgspec
from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel, Shape
from botocore.parsers import ResponseParser, create_parser
from botocore.serialize import Serializer, create_serializer

JSON, QUERY, REST_JSON, REST_XML, CBOR = "json", "query", "rest-json", "rest-xml", "smithy-rpc-v2-cbor"
_lock = threading.Lock()

# What S3 calls the root of answers whose shape is not named so.
_ROOTS = {
    "CreateMultipartUpload": "InitiateMultipartUploadResult",
    "DeleteObjects": "DeleteResult",
    "GetBucketAcl": "AccessControlPolicy",
    "GetBucketNotificationConfiguration": "NotificationConfiguration",
    "GetBucketTagging": "Tagging",
    "GetBucketVersioning": "VersioningConfiguration",
    "GetObjectAcl": "AccessControlPolicy",
    "GetObjectAttributes": "GetObjectAttributesResponse",
    "GetObjectTagging": "Tagging",
    "ListBuckets": "ListAllMyBucketsResult",
    "ListObjects": "ListBucketResult",
    "ListObjectsV2": "ListBucketResult",
    "ListObjectVersions": "ListVersionsResult",
}


class _Files:
    """Reads the model files; what only explains is dropped, which is most of them."""

    def exists(self, path: str) -> bool:
        return Path(f"{path}.json.gz").is_file() or Path(f"{path}.json").is_file()

    def load_file(self, path: str) -> Any:
        packed, plain = Path(f"{path}.json.gz"), Path(f"{path}.json")
        if packed.is_file():
            return _undocumented(msgspec.json.decode(gzip.decompress(packed.read_bytes())))
        return _undocumented(msgspec.json.decode(plain.read_bytes())) if plain.is_file() else None


def _undocumented(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _undocumented(v) for k, v in value.items() if k != "documentation" or not isinstance(v, str)}
    return [_undocumented(item) for item in value] if isinstance(value, list) else value


class Wire:
    """One operation, both ways."""

    def __init__(self, service: "Service", name: str) -> None:
        self.service = service
        self.model: OperationModel = service.model.operation_model(name)
        self.name = name
        self.input: Shape | None = self.model.input_shape
        self.output: Shape | None = self.model.output_shape
        self.status = int(self.model.http.get("responseCode", 200))
        self.streams_in = _streams(self.input)
        self.streams_out = _streams(self.output)
        self.is_raw_out = _is_raw(self.output)
        described = service.description["operations"][name]
        turned = {"name": name, "http": {"method": "POST", "requestUri": "/"}, "output": described.get("input")}
        if "output" in described:
            turned["input"] = self._rooted(described["output"])
        self.mirror = OperationModel(turned, service.model, name)

    def _rooted(self, reference: dict[str, Any]) -> dict[str, Any]:
        """The output with the root element that XML needs: the wrapper of the query protocol, a result's name else."""
        name = reference.get("resultWrapper") or _ROOTS.get(self.name, f"{self.name}Result")
        return {"locationName": name, **reference}


def _streams(shape: Any) -> str | None:
    """The name of the member that is streamed, if there is one."""
    payload = shape.serialization.get("payload") if shape is not None else None
    if payload is None:
        return None
    member = shape.members[payload]
    return payload if member.type_name == "blob" and member.serialization.get("streaming") else None


def _is_raw(shape: Any) -> bool:
    """Whether the body is one member's bytes or text, and no document."""
    payload = shape.serialization.get("payload") if shape is not None else None
    return payload is not None and shape.members[payload].type_name in ("blob", "string")


class Service:
    """One service: its model and its operations."""

    def __init__(self, name: str) -> None:
        loader = Loader(
            extra_search_paths=[Loader.BUILTIN_DATA_PATH], file_loader=_Files(), include_default_search_paths=False
        )
        self.name = name
        self.description: dict[str, Any] = loader.load_service_model(name, "service-2")
        _name_payloads(self.description)
        self.model = ServiceModel(self.description, name)
        self.signing_name: str = self.model.signing_name
        self._wires: dict[str, Wire] = {}

    @property
    def names(self) -> list[str]:
        """Every operation that AWS has."""
        return list(self.description["operations"])

    def wire(self, name: str) -> Wire | None:
        """The operation, None where AWS has none by that name."""
        if name not in self._wires and name in self.description["operations"]:
            self._wires[name] = Wire(self, name)
        return self._wires.get(name)


def _name_payloads(description: dict[str, Any]) -> None:
    """Give structures that are a whole XML body the name of their element, where the model leaves it to the shape."""
    for operation in description["operations"].values():
        shape = description["shapes"].get(operation.get("output", {}).get("shape"), {})
        member = shape.get("members", {}).get(shape.get("payload"))
        if member is not None and "locationName" not in member:
            member["locationName"] = member["shape"]


_services: dict[str, Service] = {}


def service(name: str) -> Service:
    """The service by botocore's name; read once."""
    found = _services.get(name)
    if found is None:
        with _lock:
            found = _services.get(name)
            if found is None:
                found = _services[name] = Service(name)
                gc.freeze()  # it stays, and is large: no collection need look at it again
    return found


@functools.cache
def parser(protocol: str) -> ResponseParser:
    """Reads a request as a client reads an answer."""
    return create_parser(protocol)


@functools.cache
def serializer(protocol: str) -> Serializer:
    """Writes an answer as a client writes a request. Query answers are XML."""
    form = REST_XML if protocol == QUERY else protocol
    return create_serializer(form, include_validation=False, timestamp_precision="millisecond")
