"""From a model server's spec to something that predicts: the handler table's only user, and what a failed load says."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .arrays import matrix_of

_HANDLER = re.compile(r"[a-z][a-z0-9_]*")


class CannotServe(RuntimeError):
    """The model cannot be served; the message is for the person who pushed it."""


class Asked(NamedTuple):
    """A request as it came; ``headers`` are what else of it reaches a model, names in lower case."""

    content_type: str
    accept: str
    headers: dict[str, str]
    body: bytes


class Told(NamedTuple):
    """An answer as a model made it; ``attributes`` is what it tells the caller beside it, one line."""

    status: int
    content_type: str
    body: bytes
    attributes: str = ""


class Model:
    """A loaded model. It takes rows as lists of values, as a matrix of float64, or as either.

    ``rows`` takes a list of rows; ``matrix`` takes a matrix of one column per feature. At least one is given. Each
    returns one prediction per row. ``single`` says that a matrix may as well be of float32, which is then made at once.
    ``width`` is the number of values that every row has, where it is known;
    ``columns`` is that of a model without a signature, to which rows of another length may come. ``whole`` takes a
    request as it came, one at a time: such a model reads and writes bodies by itself.
    """

    def __init__(
        self,
        rows: Callable[[list[Any]], Any] | None = None,
        matrix: Callable[[Any], Any] | None = None,
        width: int | None = None,
        columns: int | None = None,
        whole: Callable[[Asked], Told] | None = None,
        *,
        single: bool = False,
    ) -> None:
        self.whole = whole
        self._rows = rows
        self._matrix = matrix
        self._width = width
        self._single = single
        self.takes_matrix = matrix is not None
        self.columns = columns

    def predict(self, rows: Any) -> Any:
        """One prediction per row of a list of rows or, where the model takes one, of a matrix."""
        if self._matrix is not None:
            if isinstance(rows, list):
                rows = matrix_of(rows, self._width, single=self._single)
            return self._matrix(rows)
        assert self._rows is not None
        # What was read quickly is tuples; predict code was promised lists.
        return self._rows([list(row) if type(row) is tuple else row for row in rows])

    __call__ = predict

    def join(self, parts: list[Any]) -> Any:
        """The rows of several requests as one; a matrix when any of them is one."""
        if all(isinstance(part, list) for part in parts):
            return [row for part in parts for row in part]
        numpy = importlib.import_module("numpy")
        filled = [part for part in parts if len(part)]
        whole = [matrix_of(part, self._width) if isinstance(part, list) else part for part in filled]
        return numpy.concatenate(whole) if whole else []


def load_model(spec: dict[str, Any]) -> Model:
    """Call ``load(spec)`` of the handler that the spec names (default ``predict``). Raises ``CannotServe``."""
    name = spec.get("handler") or "predict"
    handlers = Path(__file__).with_name("handlers")
    if not _HANDLER.fullmatch(name) or not (handlers / f"{name}.py").is_file():
        known = ", ".join(sorted(path.stem for path in handlers.glob("[a-z]*.py")))
        raise CannotServe(f"there is no handler {name!r}; handlers: {known}")
    try:
        module = importlib.import_module(f"{__package__}.handlers.{name}")
        model: Model = module.load(spec)
    except CannotServe:
        raise
    except (Exception, SystemExit) as error:
        raise CannotServe(explain(error, "loading the model")) from error
    return model


def explain(error: BaseException, doing: str) -> str:
    """One line that says what went wrong, and for a missing dependency what to do about it."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return (
            f"{doing} needs the module {package!r}, which this environment does not have; "
            "add its package to requirements.txt"
        )
    return f"{doing} failed: {type(error).__name__}: {error}"[:2000]
