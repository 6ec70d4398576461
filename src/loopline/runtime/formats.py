"""What an inference script need not say: how a request's body becomes the model's input, and an answer a body.

As the SageMaker Inference Toolkit's default decoder and encoder do it (JSON, CSV and npy), with numpy where the
environment has it and with lists where it has not.
"""

import csv
import importlib
import importlib.util
import io
import json
from typing import Any

JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"
TEXTS = frozenset((JSON, CSV))  # whose bodies scripts get as text


class Unsupported(ValueError):
    """A content type that nothing here reads or writes."""


def plain(content_type: str) -> str:
    """The content type without its parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def decode(body: str | bytes, content_type: str) -> Any:
    """The input that a body means: an array, or lists. Raises ``Unsupported``, and ``ValueError`` for no such body."""
    kind = plain(content_type)
    if kind == JSON:
        return _array(json.loads(body))
    if kind == CSV:
        text = body.decode() if isinstance(body, bytes) else body
        return _array([[_number(cell) for cell in row] for row in csv.reader(io.StringIO(text)) if row])
    if kind == NPY:
        return importlib.import_module("numpy").load(io.BytesIO(_bytes(body)), allow_pickle=False)
    raise Unsupported(f"the content type {kind!r} is not known; send one of {JSON}, {CSV}, {NPY}, or define input_fn")


def encode(value: Any, accept: str) -> bytes:
    """A prediction as a body of the type that is accepted. Raises ``Unsupported``, and ``TypeError`` for no JSON."""
    kind = plain(accept)
    if kind == JSON:
        return json.dumps(value, default=_listed).encode()
    if kind == CSV:
        out = io.StringIO()
        rows = _listed(value) if hasattr(value, "tolist") else value
        listed = rows if isinstance(rows, list | tuple) else [rows]
        csv.writer(out, lineterminator="\n").writerows(
            row if isinstance(row, list | tuple) else (row,) for row in listed
        )
        return out.getvalue().encode()
    if kind == NPY:
        numpy = importlib.import_module("numpy")
        buffer = io.BytesIO()
        numpy.save(buffer, numpy.asarray(value), allow_pickle=False)
        return buffer.getvalue()
    raise Unsupported(f"the answer cannot be {kind!r}; accept one of {JSON}, {CSV}, {NPY}, or define output_fn")


def _bytes(body: str | bytes) -> bytes:
    return body.encode() if isinstance(body, str) else body


def _array(value: Any) -> Any:
    """Lists of numbers as an array where there is numpy; whatever is no table stays as it is."""
    if not isinstance(value, list) or importlib.util.find_spec("numpy") is None:
        return value
    array = importlib.import_module("numpy").array
    try:
        return array(value)
    except ValueError:  # rows of different lengths
        return value


def _number(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell


def _listed(value: Any) -> Any:
    for name in ("tolist", "item"):
        method = getattr(value, name, None)
        if callable(method):
            return method()
    raise TypeError(f"a {type(value).__name__} is not JSON")
