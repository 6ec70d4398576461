"""Batch transform: objects are asked of a model record by record or as a whole, and each gets an answer of its own.

Contract: docs.aws.amazon.com, "Use Batch Transform" and "Associate Prediction Results with Input Records", and
botocore's shapes TransformInput, TransformOutput and DataProcessing.
"""

# Pathlib would cost every job milliseconds to import.
# ruff: noqa: PTH103, PTH112, PTH118, PTH120, PTH123

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from . import formats, values

OUTPUT = "output"
SUFFIX = ".out"
WHOLE = "$"
MAX_TOLD = 500
_TOKEN = re.compile(r"\.([^.\[\]]+)|\[([^\[\]]+)\]")
_SLICE = re.compile(r"(-?\d*):(-?\d*)")


class TransformError(ValueError):
    """The objects cannot be transformed; the message says which, and why."""


def transform(call: dict[str, Any], folder: str) -> dict[str, Any]:
    """The manifest of the answers to all files below ``call["input"]``: a folder of the same names, with ``.out``.

    ``call``: ``input``, ``model_dir``, ``code_dir`` or none, ``handler``, ``program``, and ``transform``, as of
    ``domain.scripts.Transform``. Raises ``TransformError``.
    """
    ask = _asker(call)
    target = f"{folder}/tmp/answers"  # noqa: S108 - of the attempt
    objects = records = 0
    for directory, _, names in sorted(os.walk(call["input"])):
        for name in sorted(names):
            inside = os.path.relpath(os.path.join(directory, name), call["input"])
            os.makedirs(os.path.dirname(f"{target}/{inside}"), exist_ok=True)
            with open(f"{directory}/{name}", "rb") as source, open(f"{target}/{inside}{SUFFIX}", "wb") as out:
                try:
                    records += _transform(source, out, ask, call["transform"])
                except TransformError as error:
                    raise TransformError(f"{inside}: {error}") from error
            objects += 1
            print(f"[loopline] {inside}: answered", flush=True)
    from pathlib import Path

    report = {"metrics": {}, "metric_times": {}, "message": f"{objects} objects, {records} requests", "warnings": []}
    return {
        "report": values.save("report", report, folder),
        f"files.{OUTPUT}": values.save(f"files.{OUTPUT}", Path(target), folder),
    }


Ask = Callable[[bytes], Any]


def _asker(call: dict[str, Any]) -> Ask:
    """What answers a body: the model's own reading and writing, or those of every model that has none."""
    loading = import_module("loopline.runtime.loading")
    inner = f"{call['model_dir']}/code"
    code = call.get("code_dir") or call.get("tree") or (inner if os.path.isdir(inner) else None)
    spec = {name: call.get(name) for name in ("handler", "program", "model_dir", "signature")}
    model = loading.load_model({**spec, "code_dir": code})
    kind, accept = call["transform"]["content_type"], call["transform"]["accept"]

    def plainly(body: bytes) -> Any:
        rows = formats.decode(body, kind or formats.JSON)
        result = model.predict(rows.tolist() if hasattr(rows, "tolist") else rows)
        return loading.Told(200, accept or formats.JSON, formats.encode(result, accept or formats.JSON))

    def ask(body: bytes) -> Any:
        told = plainly(body) if model.whole is None else model.whole(loading.Asked(kind, accept, {}, body))
        if told.status >= 400:
            raise TransformError(f"the model answered {told.status}: {told.body[:MAX_TOLD].decode('utf-8', 'replace')}")
        return told

    return ask


def _transform(source: io.BufferedReader, out: Any, ask: Ask, options: dict[str, Any]) -> int:
    """Answer one object; gives the number of requests."""
    filters = [JsonPath(options[name]) for name in ("input_filter", "output_filter")]
    plain = options["join"] == "None" and not any(path.steps for path in filters)
    count = 0
    for batch in _batches(source, options):
        count += 1
        if plain:
            told = ask(b"\n".join(batch))
            out.write(told.body)
            if options["assemble"] == "Line" and not told.body.endswith(b"\n"):
                out.write(b"\n")
        else:
            for line in _associated(batch, ask, filters, options):
                out.write(line.encode() + b"\n")
    return count


def _batches(source: io.BufferedReader, options: dict[str, Any]) -> Iterator[list[bytes]]:
    """The records of an object as requests: one each, or as many as a payload holds."""
    most = options["max_payload_mb"] * 1048576 or None
    if options["split"] == "None":
        data = source.read()
        _check_size(data, most)
        yield [data]
        return
    held: list[bytes] = []
    size = 0
    for line in source:
        record = line.rstrip(b"\r\n")
        if not record:
            continue
        _check_size(record, most)
        full = most is not None and size + len(record) + 1 > most
        if held and (full or options["strategy"] == "SingleRecord"):
            yield held
            held, size = [], 0
        held.append(record)
        size += len(record) + 1
    if held:
        yield held


def _check_size(record: bytes, most: int | None) -> None:
    if most is not None and len(record) > most:
        raise TransformError(f"a record of {len(record)} bytes is larger than the largest payload, {most} bytes")


# -- records, their answers, and parts of both ------------------------------------------------------------------------


def _associated(batch: list[bytes], ask: Ask, filters: list["JsonPath"], options: dict[str, Any]) -> Iterator[str]:
    """The lines of the output: of each record what is wanted of its answer, and of itself where they are joined."""
    as_csv = formats.plain(options["content_type"]) == formats.CSV
    records = [_read(record.decode(), as_csv=as_csv) for record in batch]
    sent = [_write(filters[0].of(record), as_csv=as_csv) for record in records]
    told = ask("\n".join(sent).encode())
    answers = _answers(told, len(records))
    csv_told = formats.plain(told.content_type) == formats.CSV
    for record, answer in zip(records, answers, strict=True):
        if options["join"] == "None":
            yield _write(filters[1].of(answer), as_csv=csv_told)
        else:
            yield _write(filters[1].of(_joined(record, answer)), as_csv=as_csv)


def _joined(record: Any, answer: Any) -> Any:
    if isinstance(record, dict):
        return {**record, "SageMakerOutput": answer}
    if isinstance(record, list):
        return [*record, *(answer if isinstance(answer, list) else [answer])]
    return {"SageMakerInput": record, "SageMakerOutput": answer}


def _answers(told: Any, count: int) -> list[Any]:
    """The answer to each of so many records. Raises ``TransformError`` when they cannot be told apart."""
    text = told.body.decode()
    as_csv = formats.plain(told.content_type) == formats.CSV
    if count == 1:
        return [_read(text.strip("\r\n"), as_csv=as_csv)]
    lines = [line for line in text.splitlines() if line]
    if len(lines) == count:
        return [_read(line, as_csv=as_csv) for line in lines]
    if not as_csv:
        found = json.loads(text)
        found = found.get("predictions", found) if isinstance(found, dict) else found
        if isinstance(found, list) and len(found) == count:
            return found
    raise TransformError(f"the answer to {count} records has {len(lines)} lines: which belongs to which cannot be told")


def _read(text: str, *, as_csv: bool) -> Any:
    if as_csv:
        return next(csv.reader([text]), [])
    try:
        return json.loads(text)
    except ValueError as error:
        raise TransformError(f"{text[:80]!r} is not JSON: {error}") from None


def _write(value: Any, *, as_csv: bool) -> str:
    if not as_csv:
        return json.dumps(value, ensure_ascii=False)
    out = io.StringIO()
    cells = value if isinstance(value, list) else [value]
    csv.writer(out, lineterminator="").writerow(
        [cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False) for cell in cells]
    )
    return out.getvalue()


class JsonPath:
    """A JSONPath of the kind that filters take: ``$.a['b'][0]``, ``$[1:]``, ``$[0,-1]``, ``$['a','b']``."""

    def __init__(self, text: str) -> None:
        rest = text.strip()
        if not rest.startswith(WHOLE):
            raise TransformError(f"{text!r} is not a JSONPath: it begins with $")
        self._text = text
        self.steps: list[list[Any]] = []
        place = 1
        while place < len(rest):
            found = _TOKEN.match(rest, place)
            if found is None:
                raise TransformError(f"{text!r} is not a JSONPath that filters take")
            name, inner = found.groups()
            self.steps.append([name] if name is not None else [self._part(part) for part in inner.split(",")])
            place = found.end()

    def _part(self, text: str) -> Any:
        part = text.strip()
        if part[:1] in "'\"" and part[-1:] == part[:1] and len(part) > 1:
            return part[1:-1]
        ends = _SLICE.fullmatch(part)
        if ends is not None:
            return slice(*(int(end) if end else None for end in ends.groups()))
        if part == "*":
            return slice(None)
        if not re.fullmatch(r"-?\d+", part):
            raise TransformError(f"{self._text!r}: {part!r} is no index, slice or quoted name")
        return int(part)

    def of(self, value: Any) -> Any:
        """The part of a value. Raises ``TransformError`` when it has none."""
        for parts in self.steps:
            try:
                found = [value[part] for part in parts]
            except (KeyError, IndexError, TypeError):
                raise TransformError(f"a record has no {self._text}") from None
            if len(parts) == 1:
                value = found[0]
            elif isinstance(value, dict):
                value = dict(zip(parts, found, strict=True))
            else:
                value = [item for part, each in zip(parts, found, strict=True) for item in _listed(part, each)]
        return value


def _listed(part: Any, found: Any) -> list[Any]:
    return list(found) if isinstance(part, slice) else [found]
