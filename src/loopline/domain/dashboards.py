"""What is wrong with a dashboard's body in CloudWatch's form, said and not refused.

Source: "Dashboard body structure and syntax" of the CloudWatch API reference. Beside what makes no sense at all: a
series whose label names another statistic than the one that it shows.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from loopline.domain.alarms import percentile_of
from loopline.errors import InvalidInput

_TYPES = ("metric", "text", "log", "alarm", "explorer")
_LABELS = re.compile(r"\b(p\d{1,2}(?:\.\d+)?|average|avg|mean|max(?:imum)?|min(?:imum)?|sum)\b", re.IGNORECASE)
_MEANS = {"avg": "Average", "average": "Average", "mean": "Average", "sum": "Sum"}


class Message(NamedTuple):
    """``path`` is a JSON pointer into the body."""

    path: str
    text: str


def check(body: str) -> list[Message]:
    """What a person should look at; raises ``InvalidInput`` for what is no dashboard."""
    try:
        found = json.loads(body)
    except ValueError as error:
        raise InvalidInput(f"the dashboard's body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidInput("the dashboard's body must be a JSON object")
    widgets = found.get("widgets", [])
    if not isinstance(widgets, list):
        raise InvalidInput("the dashboard's widgets must be an array")
    return [message for number, widget in enumerate(widgets) for message in _widget(f"/widgets/{number}", widget)]


def _widget(path: str, widget: Any) -> Iterator[Message]:
    if not isinstance(widget, dict) or widget.get("type") not in _TYPES:
        yield Message(path, f"a widget has a type: {', '.join(_TYPES)}")
        return
    properties = widget.get("properties")
    if not isinstance(properties, dict):
        yield Message(f"{path}/properties", "a widget has properties")
        return
    if widget["type"] != "metric":
        return
    series = properties.get("metrics", [])
    if not series and not properties.get("annotations"):
        yield Message(f"{path}/properties/metrics", "a metric widget has metrics or annotations")
    for number, each in enumerate(series if isinstance(series, list) else []):
        yield from _series(f"{path}/properties/metrics/{number}", each, properties.get("stat", "Average"))


def _series(path: str, series: Any, default: Any) -> Iterator[Message]:
    if not isinstance(series, list) or not series:
        yield Message(path, "a series is an array: namespace, name, dimensions, options")
        return
    options = series[-1] if isinstance(series[-1], dict) else {}
    if "expression" in options:
        return
    stat = str(options.get("stat", default))
    try:
        percentile_of(stat)
    except InvalidInput as error:
        yield Message(path, error.message)
        return
    meant = named_statistic(str(options.get("label", "")))
    if meant is not None and meant != stat:
        text = f'the label {options["label"]!r} names {meant}, and the series shows {stat}; write "stat": "{meant}"'
        yield Message(path, text)


def named_statistic(label: str) -> str | None:
    """The statistic that a series' label names, such as p50 of "P50 (ms)"; None for a label that names none."""
    found = _LABELS.search(label)
    return None if found is None else _meant(found[1].lower())


def _meant(word: str) -> str:
    if word.startswith("max"):
        return "Maximum"
    if word.startswith("min"):
        return "Minimum"
    return _MEANS.get(word, word)
