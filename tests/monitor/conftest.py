"""A synthetic gateway spool and what a reader of the reports sees."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.domain.capture import encode_record


class Spool:
    """Writes records as a gateway does and reads the monitor's lines as control does."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder
        self.gateway = folder / "spool" / "gateway-0"
        self.gateway.mkdir(parents=True)
        self.number = 0
        self.segment = self.gateway / f"{1_000_000:015d}.seg"

    def rotate(self, at: float) -> None:
        self.segment = self.gateway / f"{int(at * 1000):015d}.seg"

    def meta(self, at: float, **given: Any) -> dict[str, Any]:
        self.number += 1
        return {
            "id": f"rq_{self.number:020d}",
            "at": at,
            "endpoint": "patients",
            "variant": "v1",
            "version": 1,
            "model": "patients",
            "key": "k",
            "status": 200,
            "latency_us": 1000,
            "content_type": "application/json",
            "join": None,
            **given,
        }

    def write(self, at: float, body: bytes = b"", answer: bytes = b"", **given: Any) -> bytes:
        data = encode_record(self.meta(at, **given), body, answer)
        with self.segment.open("ab") as file:
            file.write(data)
        return data

    def watch(self, baseline: dict[str, Any], features: list[dict[str, Any]], **monitor: Any) -> None:
        what = {"version": "ve_1", "baseline": baseline, "signature": {"features": features}}
        entry = {"variants": {"v1": what}, "monitor": monitor}
        temporary = self.dir / ".monitors"
        temporary.write_text(json.dumps({"endpoints": {"patients": entry}}))
        temporary.replace(self.dir / "monitors.json")

    def lines(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted((self.dir / "spool" / "monitor").glob("reports-*.jsonl")):
            data = path.read_bytes()
            found += [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
        return found

    def rows(self, kind: str = "traffic") -> list[dict[str, Any]]:
        return [row for line in self.lines() for row in line["rows"] if row["kind"] == kind]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    yield Spool(tmp_path)
