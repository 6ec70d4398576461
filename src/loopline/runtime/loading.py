"""From a model server's spec to something that predicts: the handler table's only user, and what a failed load says."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

Predict = Callable[[list[Any]], Any]
_HANDLER = re.compile(r"[a-z][a-z0-9_]*")


class CannotServe(RuntimeError):
    """The model cannot be served; the message is for the person who pushed it."""


def load_model(spec: dict[str, Any]) -> Predict:
    """Call ``load(spec)`` of the handler that the spec names (default ``predict``).

    The result takes a list of rows and returns one prediction per row. Raises ``CannotServe``.
    """
    name = spec.get("handler") or "predict"
    handlers = Path(__file__).with_name("handlers")
    if not _HANDLER.fullmatch(name) or not (handlers / f"{name}.py").is_file():
        known = ", ".join(sorted(path.stem for path in handlers.glob("[a-z]*.py")))
        raise CannotServe(f"there is no handler {name!r}; handlers: {known}")
    try:
        module = importlib.import_module(f"{__package__}.handlers.{name}")
        predict: Predict = module.load(spec)
    except CannotServe:
        raise
    except (Exception, SystemExit) as error:
        raise CannotServe(explain(error, "loading the model")) from error
    return predict


def explain(error: BaseException, doing: str) -> str:
    """One line that says what went wrong, and for a missing dependency what to do about it."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return (
            f"{doing} needs the module {package!r}, which this environment does not have; "
            "add its package to requirements.txt"
        )
    return f"{doing} failed: {type(error).__name__}: {error}"[:2000]
