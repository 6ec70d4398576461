"""Handler ``predict``: the project's ``predict.py`` with ``load(model_dir)`` and ``predict(model, batch)``."""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..loading import CannotServe, Predict, explain

FILE = "predict.py"


def load(spec: dict[str, Any]) -> Predict:
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
    return lambda rows: predict_function(model, rows)


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
