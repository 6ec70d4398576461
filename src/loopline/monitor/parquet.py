"""``python -m loopline.monitor.parquet --dir DIR``: finished segments of the request log as Parquet, for analysis.

Segments stay what every part of loopline reads; this writes copies that other programs read fast, in
``DIR/captured/FOLDER/day=2026-01-31/GATEWAY-FIRST-LAST.parquet``, one folder for each endpoint (``endpoints.json`` says
which), one row for each row that was answered. Features are columns of their names and types, everything else begins
with ``@``. Needs pyarrow, which ``loopline[parquet]`` brings. Runs at the lowest priority and ends when it has done
what there is; killed anywhere, the next run goes on and nothing comes twice.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from loopline import config
from loopline.domain.capture import CaptureRecord, iter_records
from loopline.domain.captured import SUFFIX, Row, arrange, class_key, predictions_of, rows_of, segments, typed

GROUP_BYTES = 32 << 20  # of segments in one file
NICE = 19
FOLDER = "captured"
META = {
    "@request": "string",
    "@endpoint": "string",
    "@at": "timestamp",
    "@variant": "string",
    "@version": "int",
    "@model": "string",
    "@key": "string",
    "@join": "string",
    "@purpose": "string",
    "@shadow": "bool",
    "@latency_us": "int",
    "@row": "int",
    "@score": "float",
}
_KINDS = {"number": "float", "integer": "float", "boolean": "bool", "string": "string"}

Signature = Sequence[tuple[str, str]]  # (name, type) of the features as arrays bring them


class Group(NamedTuple):
    """Segments of one gateway that become one file for each endpoint and day."""

    gateway: str
    names: list[str]


class Writer:
    """Writes what is finished and not yet written. ``pyarrow`` is given, because only this process has it."""

    def __init__(self, directory: Path, pyarrow: Any, parquet: Any) -> None:
        self._spool, self._folder = directory / "spool", directory / FOLDER
        self._pyarrow, self._parquet = pyarrow, parquet
        self._folder.mkdir(exist_ok=True, mode=0o700)
        state = _json(self._folder / "state.json")
        self._done: dict[str, str] = dict(state.get("done") or {})  # {gateway: last segment}
        self._signatures: dict[str, dict[str, Signature]] = state.get("signatures") or {}
        self._endpoints: dict[str, str] = _json(self._folder / "endpoints.json")
        for endpoint, entry in (_json(directory / "monitors.json").get("endpoints") or {}).items():
            for variant, what in (entry.get("variants") or {}).items():
                features = (what.get("signature") or {}).get("features") or ()
                known = [(str(each["name"]), str(each.get("type", "number"))) for each in features]
                self._signatures.setdefault(endpoint, {})[variant] = known

    def run(self) -> int:
        """Write every group; gives how many files there are more."""
        self._remove_unfinished()
        written = 0
        for group in self._groups():
            written += self._write_group(group)
            self._done[group.gateway] = group.names[-1]
            _replace(self._folder / "state.json", {"done": self._done, "signatures": self._signatures})
        return written

    def delete_before(self, at: float) -> None:
        """Delete days that were over at this time."""
        oldest = f"day={datetime.fromtimestamp(at, UTC):%Y-%m-%d}"
        for day in self._folder.glob("*/day=*"):
            if day.name < oldest:
                shutil.rmtree(day)

    def _remove_unfinished(self) -> None:
        """A killed run may have written files of a group whose end it did not note: the group is written anew."""
        for path in self._folder.glob("*/day=*/*"):
            gateway, _, rest = path.name.rpartition("-")[0].rpartition("-")
            if path.suffix != ".parquet" or f"{rest}{SUFFIX}" > self._done.get(gateway, ""):
                path.unlink()

    def _groups(self) -> Iterator[Group]:
        for folder in sorted(path for path in self._spool.glob("gateway-*") if path.is_dir()):
            finished = segments(entry.name for entry in folder.iterdir())[:-1]
            names, size = [], 0
            for name in finished:
                if name <= self._done.get(folder.name, ""):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    size += (folder / name).stat().st_size
                names.append(name)
                if size >= GROUP_BYTES:
                    yield Group(folder.name, names)
                    names, size = [], 0
            if names:
                yield Group(folder.name, names)

    def _write_group(self, group: Group) -> int:
        tables: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for name in group.names:
            try:
                data = (self._spool / group.gateway / name).read_bytes()
            except FileNotFoundError:
                continue  # deleted as too old, or as too much
            for record in iter_records(data)[0]:
                for row in self._rows(record):
                    day = f"{row['@at']:%Y-%m-%d}"
                    tables.setdefault((row["@endpoint"], day), []).append(row)
        first, last = (name.removesuffix(SUFFIX) for name in (group.names[0], group.names[-1]))
        for (endpoint, day), rows in tables.items():
            folder = self._folder_of(endpoint) / f"day={day}"
            folder.mkdir(exist_ok=True, parents=True, mode=0o700)
            self._write_table(folder / f"{group.gateway}-{first}-{last}.parquet", endpoint, rows)
        return len(tables)

    def _folder_of(self, endpoint: str) -> Path:
        """An endpoint's name is no path: its folder is called by a digest."""
        if endpoint not in self._endpoints:
            self._endpoints[endpoint] = hashlib.sha256(endpoint.encode()).hexdigest()[:16]
            _replace(self._folder / "endpoints.json", self._endpoints)
        return self._folder / self._endpoints[endpoint]

    def _rows(self, record: CaptureRecord) -> Iterator[dict[str, Any]]:
        """The rows of one answered request; none where nothing was kept, or the platform tried a version out."""
        meta = record.meta
        endpoint, variant, at = meta.get("endpoint"), str(meta.get("variant") or ""), meta.get("at")
        if meta.get("status") != 200 or not isinstance(endpoint, str) or not isinstance(at, int | float):
            return
        content_type = str(meta.get("content_type") or "")
        rows = rows_of(content_type, record.body) if record.body and meta.get("purpose") != "test" else None
        answers = predictions_of(record.answer) or ()
        signature = self._signatures.get(endpoint, {}).get(variant) or []
        about = {
            "@request": str(meta.get("id")),
            "@endpoint": endpoint,
            "@at": datetime.fromtimestamp(at, UTC),
            "@variant": variant,
            **{f"@{name}": meta.get(name) for name in ("version", "model", "key", "join", "purpose", "shadow")},
            "@latency_us": int(meta.get("latency_us") or 0),
        }
        for place, row in enumerate(rows or ()):
            answer = answers[place] if place < len(answers) else None
            yield {
                **_features(row, signature, content_type.startswith("text/csv")),
                **about,
                "@row": place,
                "@prediction": answer.value if answer else None,
                "@score": answer.score if answer else None,
            }

    def _write_table(self, path: Path, endpoint: str, rows: list[dict[str, Any]]) -> None:
        kinds = dict(META)
        told = dict(each for signature in self._signatures.get(endpoint, {}).values() for each in signature)
        for name in dict.fromkeys(name for row in rows for name in row):
            if name not in META:
                known = _KINDS.get(told.get(name, ""))
                kinds[name] = known or _kind(row.get(name) for row in rows)
        arrow = self._pyarrow
        types = {
            "string": arrow.string(),
            "float": arrow.float64(),
            "int": arrow.int64(),
            "bool": arrow.bool_(),
            "timestamp": arrow.timestamp("us", tz="UTC"),
        }
        columns = {name: [_value(row.get(name), kind) for row in rows] for name, kind in kinds.items()}
        table = arrow.table({name: arrow.array(column, types[kinds[name]]) for name, column in columns.items()})
        temporary = path.with_suffix(".new")
        self._parquet.write_table(table, temporary, compression="zstd")
        temporary.replace(path)


def _features(row: Row, signature: Signature, text: bool) -> dict[str, Any]:
    """A row's values by the names of its features; arrays whose names nobody knows are named by place."""
    if isinstance(row, dict):
        return {name: value for name, value in row.items() if not name.startswith("@")}
    names = [name for name, _ in signature]
    values = arrange(row, names)
    if values is None:
        return {f"x{place}": value for place, value in enumerate(row)}
    return dict(zip(names, typed(values, [kind for _, kind in signature]) if text else values, strict=True))


def _kind(values: Iterable[Any]) -> str:
    """What a column is when no signature says it."""
    found = {type(value) for value in values if value is not None}
    if found == {bool}:
        return "bool"
    return "float" if found <= {int, float} else "string"


def _value(value: Any, kind: str) -> Any:
    """A value as its column's type; what does not fit is missing."""
    if value is None or kind in ("timestamp", "int"):
        return value if kind != "int" or isinstance(value, int) else None
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if kind == "float":
        return typed([value], ["number"])[0]
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, dict | list) else class_key(value)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _replace(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def main() -> int:
    """Write what there is; gives 0, and 1 when another process is at it or pyarrow is missing."""
    parser = argparse.ArgumentParser(prog="loopline.monitor.parquet", description="The request log as Parquet.")
    parser.add_argument("--dir", help="the data directory")
    settings = config.load(dir=parser.parse_args().dir)
    os.nice(NICE)
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        print("the request log is written as Parquet with pyarrow: pip install 'loopline[parquet]'")
        return 1
    folder = settings.dir / FOLDER
    folder.mkdir(exist_ok=True, mode=0o700)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 1
        writer = Writer(settings.dir, pyarrow, parquet)
        written = writer.run()
        writer.delete_before(time.time() - settings.capture_days * 86_400)
    if written:
        print(f"{written} files of captured rows written", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
