"""A version's model files: where jobs and model servers find them, and whether they may be opened at all."""

from pathlib import Path
from typing import Any

from loopline.control import unpacked
from loopline.control.context import Context
from loopline.errors import Corrupt, Forbidden
from loopline.store.db import Row


def places(version: Row) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """(inputs, places) of a job's spec that give it ``model_dir``; a single file gets a folder of its own."""
    artifact = version["artifact"]
    inputs = {"model": {"sha256": artifact["sha256"], "kind": artifact["kind"], "name": artifact["name"]}}
    return inputs, {"model_dir": "model" if artifact["kind"] == "folder" else "model/"}


def check_trust(ctx: Context, artifact: dict[str, Any]) -> None:
    """Raise unless the artifact may be loaded: executable ones were made here, or trusted by an approver."""
    if not artifact.get("executable"):
        return
    if artifact.get("trust") == "trusted":
        return
    if not artifact.get("sealed") or not ctx.signer.verify(artifact["sha256"], artifact["sealed"]):
        raise Forbidden(
            "this artifact runs code when it is opened, and no job of this installation made it; "
            "an approver may trust it: --trust"
        )


def model_dir(ctx: Context, version: Row) -> Path:
    """A read-only copy of a version's model files, shared by its servers."""
    artifact = version["artifact"]
    check_trust(ctx, artifact)
    folder = unpacked.folder(ctx, "models", artifact["sha256"], artifact["kind"], artifact["name"])
    if not folder.is_dir():
        raise Corrupt(f"the model files of {version['model']} version {version['number']} are not a folder")
    return folder
