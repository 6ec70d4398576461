"""A route, and what its use case's own signature says about a request: nothing is typed twice."""

import difflib
import inspect
import math
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from loopline.domain.access import Permission
from loopline.errors import InvalidInput
from loopline.fronts.native import documents

MAX_JSON_BYTES = 1 << 20
MAX_LIMIT = 1000
CONTENT_TYPE = "content_type"

UseCase = Callable[..., dict[str, Any]] | Callable[..., Iterator[bytes]]


@dataclass(frozen=True)
class Route:
    """One line of the table.

    ``raw``: the body is not JSON; the use case takes it as its one keyword of type ``Iterator[bytes]`` (or
    ``Iterable``), its type as ``content_type`` where there is such a keyword, and the rest from the query.
    ``download``: the use case gives the bytes, or the ``digest`` of the blob to send. ``max_limit`` bounds ``limit``.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    permission: Permission | None
    use_case: UseCase
    raw: bool = False
    download: bool = False
    max_body_bytes: int = MAX_JSON_BYTES
    max_limit: int = MAX_LIMIT
    status: int = 200


@dataclass(frozen=True)
class Parameter:
    """One keyword of a use case: where a request carries it, and its type."""

    name: str
    place: Literal["path", "query", "body", "header"]
    hint: Any
    required: bool
    default: Any = None

    @property
    def is_time(self) -> bool:
        """Whether it is seconds since the epoch, which clients may write as RFC 3339."""
        named = self.name in ("at", "start", "end") or self.name.endswith("_at")
        return named and float in (self.hint, *typing.get_args(self.hint))

    @property
    def is_list(self) -> bool:
        """Whether a query may repeat it."""
        hints = (self.hint, *typing.get_args(self.hint))
        return any(typing.get_origin(hint) in (list, tuple, set, frozenset) for hint in hints)

    def convert(self, value: Any) -> Any:
        """The value as the use case wants it; raises ``InvalidInput`` naming the parameter."""
        if self.is_time and isinstance(value, str):
            value = documents.parse_time(value, self.name)
        try:
            converted = msgspec.convert(value, self.hint, strict=self.place == "body")
        except msgspec.ValidationError as error:
            raise InvalidInput(f"{self.name}: {_in_words(str(error))}", field=self.name) from None
        if isinstance(converted, float) and not math.isfinite(converted):
            raise InvalidInput(f"{self.name}: must be a finite number", field=self.name)
        if isinstance(converted, int) and abs(converted) >= 1 << 63:
            raise InvalidInput(f"{self.name}: the number is too large", field=self.name)
        return converted


def _in_words(message: str) -> str:
    message, _, place = message.replace("`", "").partition(" - at ")
    inner = place.removeprefix("$").lstrip(".")
    return (message[:1].lower() + message[1:]) + (f" at {inner}" if inner else "")


@dataclass(frozen=True)
class Call:
    """A route with its use case's signature read."""

    route: Route
    permission: Permission
    parameters: tuple[Parameter, ...]
    stream: str | None  # the keyword that takes a raw body

    @property
    def name(self) -> str:
        """Such as ``executions.start``: stable for clients that are generated."""
        module = self.route.use_case.__module__.rpartition(".")[2]
        return f"{module}.{self.route.use_case.__name__.strip('_')}"

    @property
    def has_body(self) -> bool:
        """Whether a JSON object is read."""
        return not self.route.raw and any(parameter.place == "body" for parameter in self.parameters)

    def arguments(
        self,
        path: Mapping[str, str],
        query: Mapping[str, list[str]],
        body: Mapping[str, Any],
        header: Mapping[str, str],
    ) -> dict[str, Any]:
        """The keyword arguments of one request; raises ``InvalidInput`` for what is unknown, missing or ill-typed."""
        found: dict[str, Any] = {}
        for parameter in self.parameters:
            source: Mapping[str, Any] = {"path": path, "query": query, "body": body, "header": header}[parameter.place]
            if parameter.name not in source:
                if parameter.required:
                    raise InvalidInput(f"{parameter.name}: is missing from the {parameter.place}", field=parameter.name)
                continue
            value = source[parameter.name]
            if parameter.place == "query" and not parameter.is_list:
                if len(value) > 1:
                    raise InvalidInput(f"{parameter.name}: is given {len(value)} times", field=parameter.name)
                value = value[0]
            found[parameter.name] = parameter.convert(value)
        self._refuse_unknown("query", query)
        self._refuse_unknown("body", body)
        if not 1 <= found.get("limit", 1) <= self.route.max_limit:
            raise InvalidInput(f"limit: must be between 1 and {self.route.max_limit}", field="limit")
        return found

    def _refuse_unknown(self, place: str, given: Mapping[str, Any]) -> None:
        known = [parameter.name for parameter in self.parameters if parameter.place == place]
        for name in given:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                cure = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
                raise InvalidInput(f"{name!r} is not a field of the {place}; {cure}", field=name)


def read(route: Route) -> Call:
    """The route with its signature; raises ``TypeError`` for one that must not be served."""
    where = f"{route.method} {route.path}"
    if not isinstance(route.permission, Permission):
        raise TypeError(f"{where} declares no permission; public routes say Permission.PUBLIC")
    in_path = set(re.findall(r"{(\w+)(?::\w+)?}", route.path))
    hints = typing.get_type_hints(route.use_case)
    signature = inspect.signature(route.use_case).parameters.values()
    streams = [k.name for k in signature if typing.get_origin(hints.get(k.name)) in (Iterator, Iterable)]
    if len(streams) != int(route.raw):
        raise TypeError(f"{where}: {route.use_case.__name__} and raw={route.raw} do not fit")
    keywords = [k for k in signature if k.kind is inspect.Parameter.KEYWORD_ONLY and k.name not in streams]
    unknown = in_path - {keyword.name for keyword in keywords}
    if unknown:
        raise TypeError(f"{where}: {route.use_case.__name__} has no keyword {', '.join(sorted(unknown))}")
    places = {name: "path" for name in in_path}
    if route.raw:
        places[CONTENT_TYPE] = "header"
    elsewhere = "query" if route.raw or route.method in ("GET", "DELETE") else "body"
    parameters = tuple(
        Parameter(
            name=keyword.name,
            place=places.get(keyword.name, elsewhere),  # type: ignore[arg-type]
            hint=hints[keyword.name],
            required=keyword.default is inspect.Parameter.empty,
            default=None if keyword.default is inspect.Parameter.empty else keyword.default,
        )
        for keyword in keywords
    )
    return Call(route, route.permission, parameters, streams[0] if streams else None)


def read_all(table: typing.Iterable[Route]) -> list[Call]:
    """Every route of a table; raises ``TypeError`` when one must not be served or two stand in each other's way."""
    calls = [read(route) for route in table]
    seen: set[tuple[str, str]] = set()
    for call in calls:
        key = (call.route.method, re.sub(r"{\w+", "{", call.route.path))
        if key in seen:
            raise TypeError(f"{call.route.method} {call.route.path} stands in the table twice")
        seen.add(key)
    return calls
