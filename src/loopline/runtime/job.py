"""What a job does in its own process: run a step, compile a pipeline, score a table, once or in chunks.

``main(folder)`` reads ``spec.json`` and leaves ``outputs/`` and ``outputs.json``. It raises what the user's code raises
with a traceback that holds no frame of loopline's; its caller tells the shim. The process is set up already:
environment, limits, working directory.
"""

import gc
import json
import os
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType, TracebackType
from typing import Any

from . import tracking

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RUNTIME = os.path.dirname(os.path.abspath(__file__))


class ProjectError(ValueError):
    """The project does not hold what the job needs; the message says what is missing and where."""


def main(folder: str) -> int:
    """Do the job of an attempt's folder; 0 when it is done. Raises whatever the user's code raises."""
    gc.enable()  # a forkserver forks with the collector off
    with open(f"{folder}/spec.json", "rb") as file:
        spec = json.loads(file.read())
    kinds: dict[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {
        "step": _step,
        "compile": _compile,
        "score": _score,
        "convert": _convert,
        "batch": _batch,
        "transform": _transform,
    }
    if spec["kind"] not in kinds:
        raise ProjectError(f"there is no kind of job {spec['kind']!r} here; kinds: {', '.join(kinds)}")
    tracking.enter(folder)
    os.makedirs(f"{folder}/outputs", exist_ok=True)
    _enter_package()
    try:
        write_manifest(kinds[spec["kind"]](spec["call"], folder), folder)
    except BaseException as error:
        error.__traceback__ = _of_user(error.__traceback__)
        raise
    return 0


def prepare() -> None:
    """Import what every step needs, so that a process which forks jobs pays for it once. No code of the user's."""
    from importlib import import_module

    from . import compiled, steps  # noqa: F401

    _enter_package()
    import_module("loopline.sdk.pipeline")


def write_manifest(manifest: dict[str, Any], folder: str) -> None:
    """Write ``outputs.json`` in place: the sandbox lets a job write this file, and no other beside it."""
    with open(f"{folder}/outputs.json", "w", encoding="utf-8") as file:
        file.write(json.dumps(manifest, ensure_ascii=False, separators=(",", ":")))


def _enter_package() -> None:
    """Make ``from loopline import step`` work, from this file's own place and without the folder around it."""
    # Whatever the user's code imports by a plain name is the project's or the environment's, never a file of this one.
    sys.path[:] = [entry for entry in sys.path if entry != RUNTIME]
    if "loopline" in sys.modules:
        return
    spec = spec_from_file_location("loopline", f"{PACKAGE}/__init__.py", submodule_search_locations=[PACKAGE])
    if spec is None or spec.loader is None:
        raise ImportError(f"{PACKAGE} cannot be imported")
    module = module_from_spec(spec)
    sys.modules["loopline"] = module
    spec.loader.exec_module(module)


def _of_user(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames of loopline, unless that leaves nothing."""
    frames = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    kept = None
    for frame in reversed(frames):
        if not frame.tb_frame.f_code.co_filename.startswith((PACKAGE + os.sep, "<frozen")):
            kept = TracebackType(kept, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    return kept or (frames[0] if frames else None)


# -- the project's code -----------------------------------------------------------------------------------------------


def load_file(tree: str, file: str) -> ModuleType:
    """Import ``file`` of the project at ``tree`` under its plain name, with the project first on the path.

    The plain name is what pickles of its classes refer to, in later steps and in the model server.
    """
    path = os.path.join(tree, file)
    if not os.path.isfile(path):
        raise ProjectError(f"the project has no file {file}")
    if tree not in sys.path:
        sys.path.insert(0, tree)
    name = os.path.splitext(os.path.basename(file))[0]
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == path:
        return loaded
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ProjectError(f"{file} is no Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def find_function(tree: str, file: str, function: str) -> Callable[..., Any]:
    """The plain function of a step: ``name`` in the pipeline's file, or ``module:name``. Raises ``ProjectError``."""
    module = load_file(tree, file)
    place, colon, name = function.rpartition(":")
    if colon:
        from importlib import import_module

        module = import_module(place)
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ProjectError(f"{place or file} has no function {name!r}")
    plain: Callable[..., Any] = getattr(found, "__wrapped__", found)
    return plain


def find_pipeline(module: ModuleType, file: str, name: str | None) -> Any:
    """The one pipeline of a module, or the one of this name. Raises ``ProjectError``."""
    found = {}
    for value in vars(module).values():
        kind = type(value)
        if kind.__name__ == "Pipeline" and kind.__module__ == "loopline.sdk.pipeline":
            found[value.name] = value
    names = ", ".join(sorted(found))
    if not found:
        raise ProjectError(f"{file} has no pipeline: mark a function with @pipeline")
    if name is not None and name not in found:
        raise ProjectError(f"{file} has no pipeline {name!r}; it has {names}")
    if name is None and len(found) > 1:
        raise ProjectError(f"{file} has several pipelines ({names}): say which in loop.toml, [pipeline] name = ...")
    return found[name] if name is not None else next(iter(found.values()))


# -- the kinds of jobs ------------------------------------------------------------------------------------------------


def _step(call: dict[str, Any], folder: str) -> dict[str, Any]:
    from . import steps

    function = find_function(call["tree"], call["file"], call["function"])
    return steps.execute(function, call, folder)


def _compile(call: dict[str, Any], folder: str) -> dict[str, Any]:
    from . import values

    file = call.get("file") or "pipeline.py"
    pipeline = find_pipeline(load_file(call["tree"], file), file, call.get("name"))
    compiled = pipeline.compile(file)
    hidden = [step["function"] for step in compiled["steps"] if "<locals>" in step.get("function", "")]
    if hidden:
        raise ProjectError(f"{file}: the step {hidden[0]} is defined inside a function, where no job can find it")
    return {"pipeline": values.save("pipeline", compiled, folder)}


def _score(call: dict[str, Any], folder: str) -> dict[str, Any]:
    from . import score, values

    return {"predictions": values.save("predictions", score.score(call), folder)}


def _convert(call: dict[str, Any], folder: str) -> dict[str, Any]:
    from . import conversion, values

    report, path = conversion.convert(call, os.environ.get("TMPDIR") or folder)
    given = {"report": values.save("report", report, folder)}
    if path is not None:
        given["converted"] = values.save("converted", path, folder)
    return given


def _transform(call: dict[str, Any], folder: str) -> dict[str, Any]:
    from . import transform

    return transform.transform(call, folder)


def _batch(call: dict[str, Any], folder: str) -> dict[str, Any]:
    from . import batch

    return batch.score(call, folder)
