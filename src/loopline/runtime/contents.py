"""From the body of a predict request to rows: what each content type means."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from . import arrays
from .decoding import QuickDecoder
from .printed import Call
from .signature import InputError, Signature, read_csv, read_json

Part = Any  # the rows of one request: a list of rows, or a matrix of float64
_JSON, _CSV, _NPY, _ARROW = "json", "csv", "npy", "arrow"
_KINDS = {
    b"application/json": _JSON,
    b"": _JSON,
    b"text/csv": _CSV,
    b"application/x-npy": _NPY,
    b"application/vnd.apache.arrow.stream": _ARROW,
}
_KNOWN = ", ".join(kind.decode() for kind in _KINDS if kind)


def kind_of(content_type: bytes) -> str | None:
    """The content type without its parameters, by a short name; None when it is not known."""
    return _KINDS.get(content_type) or _KINDS.get(content_type.partition(b";")[0].strip().lower())


class Reader:
    """Reads the bodies of requests for one signature (None: rows are passed on as they came).

    ``matrices`` says whether the model takes a matrix; else one is made into rows. ``columns`` is how many numbers a
    model without a signature takes: arrays of so many are read quickly.
    """

    def __init__(
        self,
        signature: Signature | None,
        core: Any = None,
        *,
        matrices: bool = False,
        columns: int | None = None,
    ) -> None:
        self._signature = signature
        self._matrices = matrices
        self._quick: QuickDecoder | None = None
        if core is not None and signature is not None:
            self._quick = QuickDecoder(core, signature)
        elif core is not None and columns and matrices:
            numbers = Signature([{"name": str(column)} for column in range(columns)])
            self._quick = QuickDecoder(core, numbers, arrays_only=True)
        self._readers: dict[str, Callable[[bytes, Signature | None], Part]] = {
            _JSON: read_json,
            _CSV: read_csv,
            _NPY: arrays.read_npy,
            _ARROW: arrays.read_arrow,
        }

    def read(self, calls: Sequence[Call]) -> list[Part | InputError]:
        """The rows of each call, checked, or what is wrong with it."""
        parts = self._read_quickly(calls)
        for at, part in enumerate(parts):
            if part is None:
                parts[at] = self._read_carefully(calls[at])
        return parts

    def _read_quickly(self, calls: Sequence[Call]) -> list[Part | None]:
        if self._quick is None:
            return [None] * len(calls)
        kinds = [_KINDS.get(call[0]) or kind_of(call[0]) for call in calls]
        if kinds.count(_JSON) + kinds.count(_CSV) == len(kinds):
            return self._quick.decode([call[2] for call in calls], [kind is _CSV for kind in kinds])
        parts: list[Part | None] = [None] * len(calls)
        places = [at for at, kind in enumerate(kinds) if kind in (_JSON, _CSV)]
        found = self._quick.decode([calls[at][2] for at in places], [kinds[at] is _CSV for at in places])
        for at, part in zip(places, found, strict=True):
            parts[at] = part
        return parts

    def _read_carefully(self, call: Call) -> Part | InputError:
        content_type, _, body = call
        kind = kind_of(content_type)
        if kind is None:
            named = content_type.partition(b";")[0].strip().lower().decode("latin-1")
            return InputError(f"the content type {named!r} is not known; send one of {_KNOWN}")
        try:
            part = self._readers[kind](body, self._signature)
            return part if self._matrices or isinstance(part, list) else self._as_rows(part)
        except InputError as error:
            return error

    def _as_rows(self, matrix: Any) -> list[Any]:
        rows = [[None if math.isnan(value) else value for value in row] for row in matrix.tolist()]
        check = self._signature
        return rows if check is None else [check.check(row, index) for index, row in enumerate(rows)]
