"""Handler ``sagemaker``: an inference script with ``model_fn``, ``input_fn``, ``predict_fn``, ``output_fn``, or
``transform_fn`` in place of the last three; each may take the request's context as one argument more.

The contract is that of the SageMaker Inference Toolkit (``transformer.py``, ``default_inference_handler.py``): the
script is ``code/inference.py`` among the model files unless the servable names another; JSON and CSV bodies are given
as text, others as bytes; what the script does not define is done as is usual for its model (``_frameworks``). An
answer is a body, or (body, content type).
"""

import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import formats
from ..answers import ModelError
from ..loading import Asked, CannotServe, Model, Told, explain
from ..signature import InputError
from . import _frameworks as frameworks

SCRIPT = "inference.py"
ANY = "*/*"
ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
_PARTS = ("input_fn", "predict_fn", "output_fn")


class Context:
    """What a script may know of the request and say of its answer, by the names of the toolkit's own context."""

    def __init__(self, model_dir: str, asked: Asked) -> None:
        self.system_properties = {"model_dir": model_dir, "gpu_id": None}
        self.model_name = "model"
        self.manifest: dict[str, Any] = {}
        self._types: list[str | None] = [None]
        self._headers: list[dict[str, str]] = [{}]
        self._statuses = [200]
        self._asked = asked

    @property
    def status(self) -> int:
        """What the script has said about how it went."""
        return self._statuses[0]

    def get_request_header(self, idx: int, key: str) -> str | None:
        """A header of the request, whatever its letter case. ``idx``, here and below: 0, for there is one request."""
        return self.get_all_request_header(idx).get(key.lower())

    def get_all_request_header(self, idx: int) -> dict[str, str]:
        """The headers that reach a model: the types, and what the caller passes on."""
        asked = (self._asked,)[idx]
        return {"content-type": asked.content_type, "accept": asked.accept, **asked.headers}

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Say something beside the answer; callers are told ``X-Amzn-SageMaker-Custom-Attributes`` and no other."""
        self._headers[idx][key.lower()] = value

    def get_response_headers(self, idx: int) -> dict[str, str]:
        """What the script has said beside its answer, names in lower case."""
        return self._headers[idx]

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Say what the answer is."""
        self._types[idx] = value

    def get_response_content_type(self, idx: int) -> str | None:
        """What the script has said that the answer is."""
        return self._types[idx]

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Say how it went; the ``phrase`` is printed."""
        self._statuses[idx] = code
        if phrase:
            print(phrase)


def load(spec: dict[str, Any]) -> Model:
    """Import the script, if there is one, and load the model with it. Raises ``CannotServe``."""
    model_dir = str(spec["model_dir"])
    code_dir = spec.get("code_dir")
    module = _module(Path(code_dir), spec.get("program")) if code_dir else None
    own = {name: function for name in ("model_fn", "transform_fn", *_PARTS) if callable(function := _get(module, name))}
    if "transform_fn" in own and any(name in own for name in _PARTS):
        raise CannotServe("the script defines transform_fn, and input_fn, predict_fn or output_fn, which it replaces")
    nothing = Asked("", "", {}, b"")
    try:
        loader = own.get("model_fn")
        if loader is None:
            model = frameworks.read_model(model_dir, code_dir)
        else:
            model = _call(loader, (model_dir,), Context(model_dir, nothing))
    except CannotServe as error:
        raise CannotServe(f"{error}; or define model_fn(model_dir) in {SCRIPT}") from error
    except (Exception, SystemExit) as error:
        raise CannotServe(explain(error, "model_fn(model_dir)")) from error
    transform = _transform_of(own, model)

    def whole(asked: Asked) -> Told:
        return _answer(transform, Context(model_dir, asked), asked)

    return Model(rows=lambda rows: _rows(whole, rows), whole=whole)


def _get(module: ModuleType | None, name: str) -> Any:
    return getattr(module, name, None)


def _module(folder: Path, program: str | None) -> ModuleType | None:
    """The script; None where none is named and there is none by the usual name."""
    path = folder / (program or SCRIPT)
    if not path.is_file():
        if program is None:
            return None
        raise CannotServe(f"the code has no file {program}")
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CannotServe(f"{path.name} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    if path.parent != folder:
        sys.path.insert(0, str(folder))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise CannotServe(explain(error, f"importing {path.name}")) from error
    return module


Transform = Callable[[Any, str, str, Context], Any]


def _transform_of(own: dict[str, Callable[..., Any]], model: Any) -> Transform:
    """From body and types to what the script answers."""
    whole = own.get("transform_fn")
    if whole is not None:
        return lambda body, kind, accept, context: _call(whole, (model, body, kind, accept), context)
    usual = frameworks.usual(model)
    read = own.get("input_fn", usual.read)
    ask = own.get("predict_fn", usual.ask)
    write = own.get("output_fn", usual.write)

    def transform(body: Any, kind: str, accept: str, context: Context) -> Any:
        given = _call(read, (body, kind), context)
        return _call(write, (_call(ask, (given, model), context), accept), context)

    return transform


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], context: Context) -> Any:
    """Call with as many arguments as the function takes: the context is for those that take one more."""
    try:
        count = len(inspect.signature(function).parameters)
    except ValueError:  # a built-in without a signature
        count = len(arguments)
    return function(*arguments, context) if count == len(arguments) + 1 else function(*arguments)


def _answer(transform: Transform, context: Context, asked: Asked) -> Told:
    kind = asked.content_type or formats.JSON
    usual = os.environ.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", formats.JSON)
    accept = usual if not asked.accept or ANY in asked.accept else asked.accept
    body: str | bytes = asked.body
    if formats.plain(kind) in formats.TEXTS:
        try:
            body = asked.body.decode()
        except UnicodeDecodeError:
            raise InputError("the body is not UTF-8") from None
    try:
        result = transform(body, kind, accept, context)
    except formats.Unsupported as error:
        return Told(415, formats.JSON, json.dumps({"error": {"code": "unsupported", "message": str(error)}}).encode())
    told = context.get_response_content_type(0) or accept
    if isinstance(result, tuple) and len(result) == 2:
        result, told = result
    said = str(context.get_response_headers(0).get(ATTRIBUTES, ""))
    return Told(context.status, str(told), _body(result, str(told)), said)


def _body(result: Any, kind: str) -> bytes:
    if isinstance(result, str):
        return result.encode()
    if isinstance(result, bytes | bytearray | memoryview):
        return bytes(result)
    return formats.encode(result, kind)


def _rows(whole: Callable[[Asked], Told], rows: list[Any]) -> Any:
    """Rows as a request would carry them, for whoever has no request: one prediction for each."""
    told = whole(Asked(formats.JSON, formats.JSON, {}, json.dumps(rows).encode()))
    if told.status >= 400:
        raise ModelError(told.body.decode("utf-8", "replace")[:500])
    found = json.loads(told.body)
    return found["predictions"] if isinstance(found, dict) and "predictions" in found else found
