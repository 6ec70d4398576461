"""The quick way from the bodies of many requests to rows: one call of compiled code for all that arrived together.

It can only say yes. What it does not accept at once, right or wrong, goes the careful way (``signature``), which has
the last word and the words for an error. What it accepts, the careful way would accept with the same values.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from .signature import Signature

Rows = list[tuple[Any, ...]]
_EXACT = 2**53  # whole numbers up to here are the same as floats; greater ones go the careful way
_ARRAYS, _OBJECTS, _SINGLE = "arrays", "objects", "single"
_SHAPES = {
    b'{"instances":[[': _ARRAYS,
    b'{"instances": [[': _ARRAYS,
    b'{"instances":[{': _OBJECTS,
    b'{"instances": [{': _OBJECTS,
}


class QuickDecoder:
    """Decodes JSON and CSV bodies for one signature by ``core``, the compiled module of ``accelerator``.

    ``arrays_only``: the names of the signature are nobody's, so that objects are left to the careful way.
    """

    def __init__(self, core: Any, signature: Signature, *, arrays_only: bool = False) -> None:
        self._core = core
        self._width = len(signature.names)
        self._all_required = all(signature.required)
        self._types = [
            self._type(kind, needed) for kind, needed in zip(signature.kinds, signature.required, strict=True)
        ]
        # Where a text may hold a brace, bodies put together could be cut elsewhere than where they were joined.
        self._joins = "string" not in signature.kinds and not any(set("{}") & set(name) for name in signature.names)
        self._csv = self._all_required and set(signature.kinds) <= {"number", "integer"}
        self._fields = operator.attrgetter(*(f"f{at}" for at in range(self._width)))
        row: Any = tuple.__class_getitem__(tuple(self._types))
        self._arrays = self._instances(row)
        unnamed = arrays_only or any(":" in name for name in signature.names)
        record = None if unnamed else self._record(signature)
        self._objects = None if record is None else self._instances(record)
        self._single = None if record is None else core.JSONDecoder(list[record]).decode  # type: ignore[valid-type]
        self._ways: dict[str, Callable[[list[bytes]], list[Any] | None]] = {
            _ARRAYS: self._arrays_of,
            _OBJECTS: self._objects_of,
            _SINGLE: self._single_of,
        }

    def _type(self, kind: str, required: bool) -> Any:
        whole = Annotated[int, self._core.Meta(ge=-_EXACT, le=_EXACT)]
        plain: Any = {"number": float, "integer": whole, "string": str, "boolean": bool}[kind]
        return plain if required else plain | None

    def _instances(self, row: Any) -> Callable[[bytes], list[Any]]:
        body: Any = self._core.defstruct("Body", [("instances", list[row])], forbid_unknown_fields=True)
        decode: Callable[[bytes], list[Any]] = self._core.JSONDecoder(list[body]).decode
        return decode

    def _record(self, signature: Signature) -> Any:
        unset = self._core.UNSET
        fields: list[Any] = [
            (f"f{at}", kind) if needed else (f"f{at}", kind | self._core.UnsetType, unset)
            for at, (kind, needed) in enumerate(zip(self._types, signature.required, strict=True))
        ]
        names = {f"f{at}": name for at, name in enumerate(signature.names)}
        try:
            return self._core.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, kw_only=True)
        except ValueError:  # a name that has to be escaped in JSON
            return None

    def decode(self, bodies: Sequence[bytes], csv: Sequence[bool]) -> list[Rows | None]:
        """The rows of each body, None for one that has to go the careful way; ``csv`` says which bodies are CSV."""
        if len(bodies) == 1:  # the shortest way for what comes alone, which waits for nothing else
            text, shape = self._shaped(bodies[0], csv[0])
            alone = self._ways[shape]([text]) if shape else None
            return [None] if alone is None else alone
        found: list[Rows | None] = [None] * len(bodies)
        shaped: dict[str, list[int]] = {}
        texts: list[bytes] = []
        for at, body in enumerate(bodies):
            text, shape = self._shaped(body, csv[at])
            texts.append(text)
            if shape:
                shaped.setdefault(shape, []).append(at)
        for shape, places in shaped.items():
            decode = self._ways[shape]
            together = decode([texts[at] for at in places]) if self._joins else None
            if together is None:  # one of them is not right: the others must not pay for it
                together = [each for at in places for each in decode([texts[at]]) or [None]]
            for at, rows in zip(places, together, strict=True):
                found[at] = rows
        return found

    def _shaped(self, body: bytes, csv: bool) -> tuple[bytes, str]:
        """The body as JSON and its shape, which is empty where it has to go the careful way."""
        if csv:
            text = self._csv_as_json(body)
            return (body, "") if text is None else (text, _ARRAYS)
        if body[:1] != b"{" or body[-1:] != b"}":
            return body, ""  # see _joined
        return body, _SHAPES.get(body[:15]) or _SHAPES.get(body[:16]) or _SINGLE

    def _csv_as_json(self, body: bytes) -> bytes | None:
        """Plain numbers in lines are JSON but for the brackets."""
        if not self._csv or b"[" in body or b"]" in body:
            return None
        lines = body.replace(b"\r\n", b"\n").removesuffix(b"\n")
        if b"\r" in lines or not lines:
            return None
        return b'{"instances":[[%b]]}' % lines.replace(b"\n", b"],[")

    def _joined(self, decode: Callable[[bytes], list[Any]], bodies: list[bytes]) -> tuple[list[Any] | None, int]:
        """The bodies as one JSON array, decoded, and its number of colons; None when it is not exactly one each.

        Every body begins with a brace and ends with one. Where bodies are joined the types allow braces around a body
        and a row only: so bodies begin and end where objects do, and as many objects as bodies means one each.
        """
        text = b"[%b]" % b",".join(bodies)
        try:
            found = decode(text)
        except (ValueError, RecursionError):  # what the compiled module raises derives from ValueError
            return None, 0
        return (found if len(found) == len(bodies) else None), text.count(b":")

    def _arrays_of(self, bodies: list[bytes]) -> list[Rows] | None:
        found, colons = self._joined(self._arrays, bodies)
        # Each pair of key and value has a colon: as many as keys that were kept means that no key came twice.
        if found is None or colons != len(bodies):
            return None
        return [each.instances for each in found]

    def _objects_of(self, bodies: list[bytes]) -> list[Rows] | None:
        if self._objects is None:
            return None
        found, colons = self._joined(self._objects, bodies)
        if found is None:
            return None
        rows = [self._values(each.instances) for each in found]
        return self._unless_repeated(rows, colons - len(bodies))

    def _single_of(self, bodies: list[bytes]) -> list[Rows] | None:
        if self._single is None:
            return None
        found, colons = self._joined(self._single, bodies)
        return None if found is None else self._unless_repeated([self._values([each]) for each in found], colons)

    def _values(self, records: list[Any]) -> Rows:
        fields = self._fields
        return [fields(each) for each in records] if self._width > 1 else [(fields(each),) for each in records]

    def _unless_repeated(self, parts: list[Rows], colons: int) -> list[Rows] | None:
        """The rows, with None for what is absent; None when a key came twice, or a text has a colon."""
        if self._all_required:
            return parts if colons == self._width * sum(map(len, parts)) else None
        unset = self._core.UNSET
        absent = 0
        for rows in parts:
            for at, row in enumerate(rows):
                missing = sum(value is unset for value in row)
                if missing:
                    absent += missing
                    rows[at] = tuple(None if value is unset else value for value in row)
        return parts if colons == self._width * sum(map(len, parts)) - absent else None
