"""A supervisor, model servers and a gateway that only say what they would do: for tests of rollouts."""

import json
import os
from pathlib import Path
from typing import Any

from loopline.control.context import Context
from loopline.control.snapshots import replace_json


class Fleet:
    """Plays the processes of one installation. ``broken`` holds the ids of variants whose servers fail to start."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.broken: dict[str, str] = {}
        self.acknowledging = True

    def act(self) -> None:
        """Start and stop what ``processes.json`` says, and acknowledge the newest snapshot."""
        wanted = self.processes()
        folder = self._ctx.settings.run_dir / "servers"
        folder.mkdir(parents=True, exist_ok=True)
        for entry in wanted:
            variant = entry["id"].rpartition("-")[0]
            state: dict[str, Any] = {
                "id": entry["id"],
                "pid": os.getpid(),
                "state": "ready",
                "at": self._ctx.clock.now(),
            }
            if variant in self.broken:
                state.update(state="failed", error=self.broken[variant])
            replace_json(Path(entry["status"]), state)
        running = {entry["status"] for entry in wanted}
        for path in folder.glob("*.json"):
            if str(path) not in running:
                path.unlink()
        if self.acknowledging:
            gateway = {"number": self.snapshot()["number"], "pid": os.getpid(), "at": self._ctx.clock.now()}
            replace_json(self._ctx.settings.run_dir / "gateway-0.json", gateway)

    def processes(self) -> list[dict[str, Any]]:
        """The model servers that control wants."""
        try:
            wanted: list[dict[str, Any]] = json.loads((self._ctx.settings.dir / "processes.json").read_text())[
                "servers"
            ]
        except OSError:
            return []
        return wanted

    def snapshot(self) -> dict[str, Any]:
        """The published snapshot."""
        document: dict[str, Any] = json.loads((self._ctx.settings.dir / "snapshot.json").read_text())
        return document

    def weights(self, endpoint: str) -> dict[str, float]:
        """Share of each variant in the published snapshot, without those that have none."""
        variants = self.snapshot()["endpoints"][endpoint]["variants"]
        return {variant["name"]: variant["weight"] for variant in variants if variant["weight"] > 0}
