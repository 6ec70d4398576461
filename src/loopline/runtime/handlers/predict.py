"""Handler ``predict``: the project's ``predict.py`` with ``load(model_dir)`` and ``predict(model, batch)``.

``batch`` is a list of rows. With ``INPUT = "numpy"`` in the file it is a matrix of float64 with one column per feature.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..loading import CannotServe, Model, explain

FILE = "predict.py"
INPUTS = ("rows", "numpy")
NUMERIC = {"number", "integer", "boolean"}


def load(spec: dict[str, Any]) -> Model:
    """Import the project's file by its path and load the model with it. Raises ``CannotServe``."""
    model_dir = str(spec["model_dir"])
    folder = Path(spec.get("code_dir") or model_dir)
    module = _module(folder)
    load_function = _function(module, "load", "load(model_dir)", 1)
    predict_function = _function(module, "predict", "predict(model, batch)", 2)
    try:
        model = load_function(model_dir)
    except (Exception, SystemExit) as error:
        raise CannotServe(explain(error, f"load(model_dir) of {FILE}")) from error
    kinds = {feature.get("type", "number") for feature in (spec.get("signature") or {}).get("features") or []}
    if _wants_matrix(module, kinds):
        width = len(spec["signature"]["features"]) if kinds else None
        return Model(matrix=lambda matrix: predict_function(model, matrix), width=width)
    return Model(rows=lambda rows: predict_function(model, rows))


def _wants_matrix(module: ModuleType, kinds: set[str]) -> bool:
    """Whether the file asks for a matrix. Raises ``CannotServe`` when it cannot have one."""
    wanted = getattr(module, "INPUT", INPUTS[0])
    if wanted not in INPUTS:
        raise CannotServe(f"INPUT of {FILE} must be one of {', '.join(INPUTS)}, not {str(wanted)[:40]!r}")
    if wanted == INPUTS[0]:
        return False
    if not kinds <= NUMERIC:
        raise CannotServe(f'{FILE} has INPUT = "numpy", but the signature has features that are no numbers')
    if importlib.util.find_spec("numpy") is None:
        raise CannotServe(f'{FILE} has INPUT = "numpy", but this environment has no numpy; add it to requirements.txt')
    return True


def _module(folder: Path) -> ModuleType:
    path = folder / FILE
    if not path.is_file():
        raise CannotServe(f"the project has no {FILE}")
    spec = importlib.util.spec_from_file_location("predict", path)
    if spec is None or spec.loader is None:
        raise CannotServe(f"{FILE} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    sys.modules["predict"] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise CannotServe(explain(error, f"importing {FILE}")) from error
    return module


def _function(module: ModuleType, name: str, form: str, count: int) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if not callable(function):
        raise CannotServe(f"{FILE} defines no function {form}")
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        raise CannotServe(f"{name} of {FILE} must be callable as {form}") from None
    except ValueError:  # a built-in without a signature
        pass
    checked: Callable[..., Any] = function
    return checked
