"""A function: a project's ``handler(event, context)``, one request at a time, behind a route of its own.

``event``: {"method", "path", "query", "headers", "body", "body_base64"}: JSON bodies are decoded, texts are texts, and
everything else is in ``body_base64`` with ``body`` None. ``context``: ``request_id``, ``function``, ``deadline``
(seconds since the epoch), ``remaining_seconds()`` and ``invoke(endpoint, payload)``.

What the handler returns is the answer: JSON, bytes, or {"statusCode", "headers", "body", "isBase64Encoded"}. What it
raises is a 502 that names the error. A request's body is ``u32 length | JSON head | body``, and so is an answer's.
"""

import base64
import importlib.util
import inspect
import json
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from . import printed
from .answers import error_body
from .loading import CannotServe, explain

LENGTH = struct.Struct(">I")
JSON_TYPE = "application/json"
_TEXTS = ("text/", "application/x-www-form-urlencoded", "application/xml")

Answer = tuple[int, bytes]
Ask = Callable[[str, str, float, bytes], tuple[int, str, bytes]]  # endpoint, content type, seconds, body


class InvokeError(RuntimeError):
    """An endpoint answered an error: ``status`` and ``body`` are what it said."""

    def __init__(self, endpoint: str, status: int, body: Any) -> None:
        said = body.get("error", {}).get("message") if isinstance(body, dict) else None
        super().__init__(f"the endpoint {endpoint} answered {status}" + (f": {said}" if said else ""))
        self.status = status
        self.body = body


class Context:
    """What a handler may know and do beside its event."""

    def __init__(self, function: str, request_id: str, deadline: float, ask: Ask) -> None:
        self.function = function
        self.request_id = request_id
        self.deadline = deadline
        self._ask = ask

    def remaining_seconds(self) -> float:
        """How long the caller still waits."""
        return max(0.0, self.deadline - time.time())

    def invoke(self, endpoint: str, payload: Any, content_type: str | None = None) -> Any:
        """An endpoint's answer: decoded where it is JSON, else bytes. ``payload``: bytes, or anything that is JSON.

        The endpoint must be one that the function's declaration names. Raises ``InvokeError`` for an answer that is an
        error, ``TimeoutError`` when the caller's time is over.
        """
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        kind = content_type or ("application/octet-stream" if isinstance(payload, bytes) else JSON_TYPE)
        status, kind, body = self._ask(endpoint, kind, self.remaining_seconds(), raw)
        answer: Any = body
        if kind.partition(";")[0].strip() == JSON_TYPE:
            answer = json.loads(body)
        if status >= 400:
            raise InvokeError(endpoint, status, answer)
        return answer


class Function:
    """A handler that was loaded."""

    def __init__(self, name: str, handler: Callable[[dict[str, Any], Context], Any]) -> None:
        self._name = name
        self._handler = handler

    def answer(self, calls: Sequence[printed.Call], ask: Ask) -> list[Answer]:
        """The answers to requests, one after the other. Never raises for what a handler does."""
        return [self._answer(call, ask) for call in calls]

    def _answer(self, call: printed.Call, ask: Ask) -> Answer:
        _, request_id, envelope = call
        size = LENGTH.unpack_from(envelope)[0]
        head = json.loads(envelope[LENGTH.size : LENGTH.size + size])
        event = _event(head, envelope[LENGTH.size + size :])
        context = Context(self._name, request_id.decode(), float(head["deadline"]), ask)
        printed.begin([call])
        try:
            return _encode(self._handler(event, context))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises is its answer
            traceback.print_exc(file=sys.stderr)
            body = error_body("function_failed", f"{type(error).__name__}: {error}"[:500])
            return 502, _envelope({"failed": True}, body)
        finally:
            printed.end()


def load(spec: dict[str, Any]) -> Function:
    """Import the file and find the handler that ``spec["function"]`` names. Raises ``CannotServe``."""
    wanted = spec["function"]
    folder = Path(spec["code_dir"])
    path = folder / wanted["file"]
    if not path.is_file():
        raise CannotServe(f"the project has no {wanted['file']}")
    module_spec = importlib.util.spec_from_file_location("function", path)
    if module_spec is None or module_spec.loader is None:
        raise CannotServe(f"{wanted['file']} cannot be imported")
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(folder))
    sys.modules["function"] = module
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise CannotServe(explain(error, f"importing {wanted['file']}")) from error
    handler = getattr(module, wanted["handler"], None)
    if not callable(handler):
        raise CannotServe(f"{wanted['file']} defines no function {wanted['handler']}(event, context)")
    try:
        inspect.signature(handler).bind(None, None)
    except TypeError:
        message = f"{wanted['handler']} of {wanted['file']} must be callable as handler(event, context)"
        raise CannotServe(message) from None
    except ValueError:  # a built-in without a signature
        pass
    return Function(wanted["name"], handler)


def _event(head: dict[str, Any], body: bytes) -> dict[str, Any]:
    headers = dict(head["headers"])
    kind = headers.get("content-type", JSON_TYPE).partition(";")[0].strip().lower()
    event: dict[str, Any] = {
        "method": head["method"],
        "path": head["path"],
        "query": dict(parse_qsl(head["query"], keep_blank_values=True)),
        "headers": headers,
        "body": None,
        "body_base64": None,
    }
    if not body:
        return event
    try:
        if kind == JSON_TYPE or kind.endswith("+json"):
            event["body"] = json.loads(body)
        elif kind.startswith(_TEXTS):
            event["body"] = body.decode()
        else:
            event["body_base64"] = base64.b64encode(body).decode()
    except ValueError:  # not what it says it is
        event["body_base64"] = base64.b64encode(body).decode()
    return event


def _encode(value: Any) -> Answer:
    """What a handler returned as an answer. Raises for what is none."""
    status, headers, body = 200, {}, value
    if isinstance(value, dict) and "statusCode" in value:
        status, headers, body = int(value["statusCode"]), dict(value.get("headers") or {}), value.get("body")
        if not 200 <= status <= 599:
            raise ValueError(f"statusCode must lie between 200 and 599, not {status}")
        if value.get("isBase64Encoded"):
            body = base64.b64decode(str(body), validate=True)
        elif isinstance(body, str):
            body = body.encode()
            headers = {"content-type": "text/plain; charset=utf-8", **{n.lower(): v for n, v in headers.items()}}
    if isinstance(body, bytes | bytearray):
        headers = {"content-type": "application/octet-stream", **{n.lower(): v for n, v in headers.items()}}
        return status, _envelope({"headers": {str(n): str(v) for n, v in headers.items()}}, bytes(body))
    text = json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    headers = {"content-type": JSON_TYPE, **{n.lower(): v for n, v in headers.items()}}
    return status, _envelope({"headers": {str(n): str(v) for n, v in headers.items()}}, text)


def _envelope(head: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(head).encode()
    return LENGTH.pack(len(text)) + text + body
