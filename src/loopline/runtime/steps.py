"""One step: load what it takes, call it, keep what it gives. The same here and in a local run."""

import sys
from collections.abc import Callable
from typing import Any

from . import tracking, values


def execute(function: Callable[..., Any], call: dict[str, Any], folder: str) -> dict[str, Any]:
    """Run a step and return its manifest. ``folder`` has a folder ``outputs``; files are left there.

    Arguments are recorded as parameters where the pipeline states them, the folder ``outputs`` of the working directory
    as artifacts. With ``baseline`` (default true) a fitted model among the outputs gets a baseline and a signature.
    """
    stated = {name: item["value"] for name, item in call["arguments"].items() if "value" in item}
    recorded = [name for name in stated if call["arguments"][name].get("given", True)]
    tracking.write(tracking.param(name, stated[name]) for name in recorded)
    hints = getattr(function, "__annotations__", {})
    arguments = {
        name: stated[name] if name in stated else _load(item, values.hint_of(hints.get(name), function))
        for name, item in call["arguments"].items()
    }
    result = function(**arguments)
    given = values.split(result, call["outputs"], getattr(function, "__name__", "the step"))
    manifest = {name: values.save(name, value, folder) for name, value in given.items()}
    tracking.collect_outputs(folder)
    if call.get("baseline", True):
        _take_baseline(given, manifest, arguments)
    manifest |= _side_outputs(folder)
    return manifest


def _load(item: dict[str, Any], hint: str | None) -> Any:
    """An argument: ``{"value"}``, ``{"input": {path, format, select}}``, or ``{"list"}`` and ``{"dict"}`` of them."""
    if "value" in item:
        return item["value"]
    if "input" in item:
        place = item["input"]
        return values.load(place["path"], place["format"], place.get("select") or [], hint)
    if "list" in item:
        return [_load(part, hint) for part in item["list"]]
    return {key: _load(part, hint) for key, part in item["dict"].items()}


def _take_baseline(given: dict[str, Any], manifest: dict[str, Any], arguments: dict[str, Any]) -> None:
    """A baseline of what the first model among the outputs was trained on; a failure costs a line in the log only."""
    models = [given[name] for name, entry in manifest.items() if entry["format"] == "joblib"]
    model = next((item for item in models if callable(getattr(item, "predict", None))), None)
    if model is None or isinstance(model, type):
        return
    try:
        from . import baseline

        reason = baseline.take(model, arguments)
    except Exception as error:  # noqa: BLE001 - the model is trained; a baseline is not worth losing it
        reason = f"{type(error).__name__}: {error}"
    if reason:
        sys.stderr.write(
            f"[loopline] no baseline for drift and no signature were taken: {reason}. In this step call "
            "log_baseline(X, feature_names=[...], score=model.predict(X)), or say @step(baseline=False)\n"
        )


def _side_outputs(folder: str) -> dict[str, Any]:
    """The baseline and the signature, as outputs beside the named ones, if they were taken."""
    import json
    import os

    found = {}
    for name in ("baseline", "signature"):
        path = f"{folder}/outputs/{name}.json"
        if os.path.exists(path):
            size, digest = values.digest_file(path)
            entry = {"format": "json", "path": f"outputs/{name}.json", "size_bytes": size, "sha256": digest}
            found[name] = {**entry, "executable": False}
            if size <= values.INLINE_BYTES:
                with open(path, "rb") as file:
                    found[name]["value"] = json.loads(file.read())
    return found
