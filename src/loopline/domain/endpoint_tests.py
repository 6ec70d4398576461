"""What an endpoint's tests say about answers: golden cases, calls with assertions, and the limits of a load.

A part of an answer is named as in ``predictions[0].score``; ``[]`` stands for every element and ``*`` for every key.
Every judgement gives what failed in words: which check, what was expected, what came.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import msgspec

from loopline.domain.projects import CallTable, CaseTable, EndpointTest
from loopline.errors import InvalidInput

if TYPE_CHECKING:
    from loopline.domain.looprules import Say
    from loopline.domain.tomllines import Path

MAX_CASES = 1000
MAX_CASES_BYTES = 900_000  # what one request may bring
MAX_FAILURES = 20  # of one test are told in full
MAX_SHOWN_CHARS = 300
MAX_REASON_CHARS = 1500
MAX_LOAD_SECONDS = 600.0
JSON_TYPE = "application/json"
TEXT_TYPE = "text/csv"
_PART = re.compile(r"(?:^|\.)([^.\[\]]+)|\[(\d*)\]")
_BOUNDS = frozenset({"min", "max"})
_PARTS_OF: Mapping[str, frozenset[str]] = {  # kind -> the keys that mean something there
    "golden": frozenset({"cases", "file", "absolute", "relative", "ignore", "min_share"}),
    "call": frozenset({"calls"}),
    "load": frozenset(
        {
            "body",
            "content_type",
            "rate",
            "connections",
            "seconds",
            "max_p50_ms",
            "max_p99_ms",
            "max_error_share",
            "min_rate",
        }
    ),
}
_OWN_HEADERS = frozenset(
    {"connection", "content-length", "content-type", "expect", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)
_OF_ALL = frozenset({"name", "kind", "when", "timeout_seconds"})

Step = str | int | None  # a key, a position, or None: every element


class Failure(msgspec.Struct, frozen=True):
    """A check that did not hold."""

    check: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.check}: expected {self.expected}, got {self.got}"


class Reply(msgspec.Struct, frozen=True):
    """An answer as it is judged: ``headers`` have lower-case names, ``value`` is the body's JSON, or its text."""

    status: int
    headers: dict[str, str]
    value: Any
    milliseconds: float


def read_reply(status: int, headers: Mapping[str, str], body: bytes, milliseconds: float) -> Reply:
    """The answer with its body read."""
    value: Any = body.decode("utf-8", "replace")
    if "json" in headers.get("content-type", ""):
        try:
            value = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError):
            return Reply(status, dict(headers), value, milliseconds)
    return Reply(status, dict(headers), value, milliseconds)


def request_body(value: Any, content_type: str) -> tuple[bytes, str]:
    """The bytes of a request and their type: text goes as it is, anything else as JSON."""
    if isinstance(value, str):
        return value.encode(), content_type or TEXT_TYPE
    return (b"" if value is None else msgspec.json.encode(value)), content_type or JSON_TYPE


def shown(value: Any) -> str:
    """A value for people: short, and on one line."""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    text = " ".join(text.split())
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"


# -- parts of an answer -----------------------------------------------------------------------------------------------


def parse_path(text: str) -> tuple[Step, ...]:
    """``a[0].b[].c`` as ("a", 0, "b", None, "c"); raises ``InvalidInput``."""
    steps: list[Step] = []
    at = 0
    while at < len(text):
        found = _PART.match(text, at)
        if found is None:
            raise InvalidInput(f"{text!r} names no part of an answer: write e.g. predictions[0].score")
        key, position = found[1], found[2]
        steps.append(key if key is not None else int(position) if position else None)
        at = found.end()
    if not steps:
        raise InvalidInput("a part of an answer has no name: write e.g. predictions[0].score")
    return tuple(steps)


def parts(value: Any, path: Sequence[Step]) -> list[Any]:
    """What stands at a path; nothing when there is no such part."""
    found = [value]
    for step in path:
        following: list[Any] = []
        for each in found:
            following += _below(each, step)
        found = following
    return found


def _below(value: Any, step: Step) -> list[Any]:
    if isinstance(value, dict):
        if step == "*":
            return list(value.values())
        return [value[step]] if step in value else []
    if isinstance(value, list):
        if step is None:
            return value
        return [value[step]] if isinstance(step, int) and step < len(value) else []
    return []


def _covers(pattern: Sequence[Step], path: Sequence[Step]) -> bool:
    """Whether a pattern names this part, or one that it lies in."""
    if len(pattern) > len(path):
        return False
    return all(
        one == other or (one == "*" and isinstance(other, str)) or (one is None and isinstance(other, int))
        for one, other in zip(pattern, path, strict=False)
    )


def _dotted(path: Sequence[Step]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".") or "the answer"


def is_close(expected: float, got: float, absolute: float, relative: float) -> bool:
    """Whether two numbers are the same within the larger of the two tolerances."""
    if math.isnan(expected) or math.isnan(got):
        return math.isnan(expected) and math.isnan(got)
    return expected == got or abs(expected - got) <= max(absolute, relative * abs(expected))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def differences(
    expected: Any, got: Any, *, absolute: float, relative: float, ignore: Sequence[Sequence[Step]]
) -> Iterator[tuple[str, str, str]]:
    """(part, expected, got), in words, wherever an answer is another; keys that nothing is expected of may be there."""
    waiting: list[tuple[tuple[Step, ...], Any, Any]] = [((), expected, got)]
    while waiting:
        path, want, have = waiting.pop()
        if any(_covers(pattern, path) for pattern in ignore):
            continue
        if isinstance(want, dict) and isinstance(have, dict):
            waiting += [((*path, key), want[key], have.get(key, _ABSENT)) for key in reversed(want)]
        elif isinstance(want, list) and isinstance(have, list) and len(want) == len(have):
            waiting += [((*path, n), want[n], have[n]) for n in reversed(range(len(want)))]
        elif isinstance(want, list) and isinstance(have, list):
            yield _dotted(path), f"{len(want)} elements", f"{len(have)} elements"
        elif _is_number(want) and _is_number(have):
            if not is_close(want, have, absolute, relative):
                yield _dotted(path), _told(want), _told(have)
        elif type(want) is not type(have) or want != have:
            yield _dotted(path), _told(want), _told(have)


_ABSENT = object()


def _told(value: Any) -> str:
    """A value in a sentence."""
    if value is _ABSENT:
        return "nothing"
    return f'"{shown(value)}"' if isinstance(value, str) else shown(value)


# -- judging ----------------------------------------------------------------------------------------------------------


def judge_case(test: EndpointTest, number: int, case: CaseTable, reply: Reply) -> list[Failure]:
    """What is wrong with the answer to a golden case; ``number`` counts from 1."""
    name = f"case {number}" + (f" ({case.name})" if case.name else "")
    if not 200 <= reply.status < 300:
        return [Failure(name, "an answer", f"{reply.status} {shown(_message(reply))}")]
    got = reply.value
    if isinstance(case.expected, list) and isinstance(got, dict) and "predictions" in got:
        got = got["predictions"]
    ignore = [parse_path(each) for each in test.ignore]
    found = differences(case.expected, got, absolute=test.absolute, relative=test.relative, ignore=ignore)
    return [Failure(f"{name}, {part}", want, have) for part, want, have in found]


def _message(reply: Reply) -> Any:
    """What an error says of itself."""
    if isinstance(reply.value, dict) and isinstance(reply.value.get("error"), dict):
        return reply.value["error"].get("message", "")
    return reply.value


def judge_cases(test: EndpointTest, right: int, asked: int) -> list[Failure]:
    """Whether enough cases came out as expected, of those that were asked."""
    if asked == 0 or right >= test.min_share * asked:
        return []
    expected = "all cases as expected" if test.min_share >= 1 else f"{test.min_share:.1%} of the cases as expected"
    return [Failure("cases", expected, f"{right} of {asked}")]


def judge_call(number: int, call: CallTable, reply: Reply) -> list[Failure]:
    """What is wrong with the answer to a call; ``number`` counts from 1."""
    name = f"call {number}"
    failures = []
    if reply.status != call.status:
        got = f"{reply.status} {shown(_message(reply))}" if reply.status >= 400 else str(reply.status)
        return [Failure(f"{name}, status", str(call.status), got)]
    if call.max_ms is not None and reply.milliseconds > call.max_ms:
        failures.append(Failure(f"{name}, time", f"at most {call.max_ms:g} ms", f"{reply.milliseconds:.1f} ms"))
    for header, pattern in call.answer_headers.items():
        value = reply.headers.get(header.lower())
        if value is None or not fnmatchcase(value, pattern):
            failures.append(Failure(f"{name}, header {header}", shown(pattern), "nothing" if value is None else value))
    for path, wanted in call.json.items():
        found = parts(reply.value, parse_path(path))
        wrong = [each for each in found if not _is_as_wanted(wanted, each)]
        if not found or wrong:
            got = _told(wrong[0]) if wrong else "nothing"
            failures.append(Failure(f"{name}, {path}", _wanted(wanted), got))
    return failures


def _is_range(wanted: Any) -> bool:
    return (
        isinstance(wanted, dict) and bool(wanted) and set(wanted) <= _BOUNDS and all(map(_is_number, wanted.values()))
    )


def _is_as_wanted(wanted: Any, got: Any) -> bool:
    if _is_range(wanted):
        low, high = wanted.get("min", -math.inf), wanted.get("max", math.inf)
        return _is_number(got) and low <= got <= high
    return not list(differences(wanted, got, absolute=0.0, relative=1e-9, ignore=()))


def _wanted(wanted: Any) -> str:
    if _is_range(wanted):
        return " and ".join(
            f"{word} {wanted[key]:g}" for key, word in (("min", "at least"), ("max", "at most")) if key in wanted
        )
    return _told(wanted)


def judge_load(test: EndpointTest, figures: Mapping[str, Any]) -> list[Failure]:
    """What a load broke. ``figures``: {"requests", "errors", "error_share", "good_per_second", "p50_ms", "p99_ms"}."""
    failures = []
    if not figures["requests"]:
        return [Failure("requests", "answers", "none")]
    for key, limit in (("p50_ms", test.max_p50_ms), ("p99_ms", test.max_p99_ms)):
        got = figures[key]
        if limit is not None and (got is None or got > limit):
            failures.append(Failure(key[:3], f"at most {limit:g} ms", "no answer" if got is None else f"{got:.1f} ms"))
    if figures["error_share"] > test.max_error_share:
        statuses = ", ".join(f"{count} x {status}" for status, count in sorted(figures.get("statuses", {}).items()))
        expected = f"at most {test.max_error_share:.2%}" if test.max_error_share else "none"
        failures.append(Failure("errors", expected, f"{figures['error_share']:.2%} ({statuses})"))
    if test.min_rate is not None and figures["good_per_second"] < test.min_rate:
        got = f"{figures['good_per_second']:.1f}"
        failures.append(Failure("good answers per second", f"at least {test.min_rate:g}", got))
    return failures


def summary(results: Iterable[Mapping[str, Any]]) -> str:
    """What a run came to, in words: the failed checks, most telling first, within ``MAX_REASON_CHARS``."""
    listed = list(results)
    checks = sum(result["checks"] for result in listed)
    failed = [(result["test"], failure) for result in listed for failure in result["failed"]]
    if not failed:
        return f"{checks} checks of {len(listed)} tests passed"
    tests = [result["test"] for result in listed if result["failed"]]
    text = f"{', '.join(tests)} failed"
    for name, failure in failed:
        line = f"\n• {name}, {Failure(**failure)}"
        if len(text) + len(line) > MAX_REASON_CHARS:
            return f"{text}\n• and more"
        text += line
    return text


# -- definitions ------------------------------------------------------------------------------------------------------


def read_cases(text: str, name: str) -> list[dict[str, Any]]:
    """The cases of a file, one ``{"request": ..., "expected": ...}`` a line; raises ``InvalidInput`` with the line."""
    cases = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            case = msgspec.json.decode(line, type=CaseTable)
        except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as error:
            message = f'{name}:{number}: {error}; a case is {{"request": ..., "expected": ...}}'
            raise InvalidInput(message) from None
        cases.append(plain_case(case))
    check_size(cases, name)
    return cases


def plain_case(case: CaseTable) -> dict[str, Any]:
    """A case as it is stored: without what has its default."""
    plain: dict[str, Any] = msgspec.to_builtins(case)
    return {key: value for key, value in plain.items() if value != "" or key in ("request", "expected")}


def check_size(cases: Sequence[Mapping[str, Any]], name: str) -> None:
    """Raise ``InvalidInput`` for more cases than a run can ask in good time."""
    if len(cases) > MAX_CASES:
        raise InvalidInput(f"{name}: {len(cases)} cases; at most {MAX_CASES} are run before traffic moves")
    size = len(msgspec.json.encode(list(cases)))
    if size > MAX_CASES_BYTES:
        raise InvalidInput(f"{name}: the cases have {size} bytes; at most {MAX_CASES_BYTES} are kept")


def stages_of(test: EndpointTest) -> str:
    """``every`` or ``staging``: before which steps of a rollout the test is run."""
    return test.when or ("staging" if test.kind == "load" else "every")


def check(tests: Sequence[EndpointTest], present: frozenset["Path"], say: "Say") -> None:
    """Report what is wrong with ``[[tests]]`` beyond types. ``present``: the paths that the file has."""
    seen: set[str] = set()
    for position, test in enumerate(tests):
        path = ("tests", position)
        if test.name in seen:
            say((*path, "name"), f"two tests are called {test.name!r}", "give one of them another name")
        seen.add(test.name)
        for key in sorted(_foreign(test, path, present)):
            home = next((kind for kind, keys in _PARTS_OF.items() if key in keys), "")
            say((*path, key), f"{key} means nothing in a test of kind {test.kind}", f"it belongs to kind = {home!r}")
        {"golden": _check_golden, "call": _check_calls, "load": _check_load}[test.kind](test, path, say)


def _foreign(test: EndpointTest, path: "Path", present: frozenset["Path"]) -> set[str]:
    """The keys that were written and belong to another kind."""
    written = {str(each[2]) for each in present if each[:2] == path and len(each) > 2}
    return written - _PARTS_OF[test.kind] - _OF_ALL


def _check_golden(test: EndpointTest, path: "Path", say: "Say") -> None:
    if not test.cases and not test.file:
        cure = 'add [[tests.cases]] with request and expected, or file = "tests/golden.jsonl"'
        say(path, f"the test {test.name!r} has no cases", cure)
    if test.cases and test.file:
        say((*path, "file"), "cases stand here and in a file", "keep one of the two")
    for position, pattern in enumerate(test.ignore):
        _check_path(pattern, (*path, "ignore", position), say)


def _check_path(text: str, path: "Path", say: "Say") -> None:
    try:
        parse_path(text)
    except InvalidInput as error:
        message, _, cure = error.message.partition(": ")
        say(path, message, cure)


def _check_calls(test: EndpointTest, path: "Path", say: "Say") -> None:
    if not test.calls:
        say(path, f"the test {test.name!r} calls nothing", "add [[tests.calls]] with a body")
    for position, call in enumerate(test.calls):
        place = (*path, "calls", position)
        if call.path and not re.fullmatch(r"/functions/[!-~]+", call.path):
            say((*place, "path"), f"{call.path!r} is no route of a function", 'write e.g. path = "/functions/resize"')
        if not 100 <= call.status <= 599:
            say((*place, "status"), f"{call.status} is no HTTP status", "write e.g. status = 200")
        if call.max_ms is not None and call.max_ms <= 0:
            say((*place, "max_ms"), f"max_ms cannot be {call.max_ms:g}", "it must be above 0")
        for part in call.json:
            _check_path(part, (*place, "json", part), say)
        for name, value in call.headers.items():
            if not re.fullmatch(r"[A-Za-z0-9-]+", name) or not value.isprintable() or not value.isascii():
                say((*place, "headers", name), f"{name!r} is no header that can be sent", "use letters, digits, '-'")
            elif name.lower() in _OWN_HEADERS or name.lower().startswith("x-loopline-"):
                cure = "leave it out; body, content_type and path say the rest"
                say((*place, "headers", name), f"the platform itself writes the header {name}", cure)


def _check_load(test: EndpointTest, path: "Path", say: "Say") -> None:
    if test.body is None:
        say(path, f"the test {test.name!r} sends nothing", "add body, e.g. body = { instances = [[1.0, 2.0]] }")
    limits = (test.max_p50_ms, test.max_p99_ms, test.min_rate)
    if limits == (None, None, None) and test.max_error_share >= 1:
        say(path, f"the test {test.name!r} can never fail", "add a limit, e.g. max_p99_ms = 50")
    if test.seconds >= test.timeout_seconds:
        message = f"a load of {test.seconds:g} s does not end within timeout_seconds = {test.timeout_seconds:g}"
        say((*path, "seconds"), message, f"write timeout_seconds = {test.seconds + 30:g}")
