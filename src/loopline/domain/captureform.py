"""A captured request as one line of JSON, in the form of SageMaker's data capture, and the key of the object it is in.

Source: the SageMaker Developer Guide, "Capture data from real-time endpoint" (model-monitor-data-capture-endpoint).
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from loopline.domain.blueprints import Capture
from loopline.domain.capture import CaptureRecord

JSON_TYPE = "application/json"


def wants(capture: Capture, record: CaptureRecord) -> bool:
    """Whether a record is one of those that are captured: answered well, asked by a caller, and of the sample.

    The sample goes by the request's id, so that whoever looks again finds the same.
    """
    meta = record.meta
    if meta.get("purpose") or not 200 <= int(meta["status"]) < 300 or not (record.body or record.answer):
        return False
    share = int.from_bytes(hashlib.sha256(str(meta["id"]).encode()).digest()[:4], "big") / 2**32
    return share * 100 < capture.percent


def line(capture: Capture, record: CaptureRecord) -> bytes:
    """The record as a line."""
    meta = record.meta
    sides = {
        "input": ("endpointInput", "INPUT", record.body, meta.get("content_type") or JSON_TYPE),
        "output": ("endpointOutput", "OUTPUT", record.answer, meta.get("answer_type") or JSON_TYPE),
    }
    data = {}
    for side in capture.sides:
        name, mode, body, kind = sides[side]
        encoding, text = _encoded(capture, str(kind), body)
        data[name] = {"observedContentType": kind, "mode": mode, "data": text, "encoding": encoding}
    moment = datetime.fromtimestamp(float(meta["at"]), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    event = {"eventId": str(meta["id"]), "inferenceTime": moment}
    if meta.get("join"):
        event["inferenceId"] = str(meta["join"])
    return json.dumps({"captureData": data, "eventMetadata": event, "eventVersion": "0"}).encode() + b"\n"


def _encoded(capture: Capture, kind: str, body: bytes) -> tuple[str, str]:
    """(how, what): text where the content type is listed and the bytes are text, base 64 else."""
    plain = kind.partition(";")[0].strip().lower()
    for name, listed in (("CSV", capture.texts), ("JSON", capture.jsons)):
        if plain in {each.lower() for each in listed}:
            try:
                return name, body.decode()
            except UnicodeDecodeError:
                break
    return "BASE64", base64.b64encode(body).decode()


def key(prefix: str, endpoint: str, variant: str, hour: float, place: Mapping[str, Any]) -> str:
    """The object that the records of an hour (seconds since the epoch) go to which were read from ``place`` on."""
    moment = datetime.fromtimestamp(hour, UTC)
    name = hashlib.sha256(json.dumps(place, sort_keys=True).encode()).hexdigest()[:32]
    folder = f"{prefix.rstrip('/')}/" if prefix else ""
    return f"{folder}{endpoint}/{variant}/{moment:%Y/%m/%d/%H}/{moment:%M-%S}-{name}.jsonl"
