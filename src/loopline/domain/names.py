"""What names and ids may look like, and how ids are made.

A client's name never becomes a path; it is checked here all the same, so that what people read in lists, URLs and logs
cannot deceive them.
"""

import difflib
import re
from collections.abc import Callable, Iterable

from loopline.errors import InvalidInput

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
_LABEL = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9_.:@+#(), -]{0,125}[a-zA-Z0-9_.:@+#)-])?")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u


def check_name(value: object, what: str) -> str:
    """``value`` itself when it is a legal name for ``what``; raises ``InvalidInput`` otherwise."""
    if not isinstance(value, str) or not _NAME.fullmatch(value) or ".." in value:
        raise InvalidInput(
            f"{value!r} is not a name for {what}: use 1 to 63 letters, digits, '-', '_' or '.', "
            "beginning with a letter or a digit"
        )
    return value


def check_label(value: object, what: str) -> str:
    """As ``check_name`` for what people title: longer, and with spaces and a few signs more, but no slash."""
    if not isinstance(value, str) or not _LABEL.fullmatch(value) or ".." in value:
        raise InvalidInput(
            f"{value!r} is not a name for {what}: use 1 to 127 letters, digits, spaces or any of -_.:@+#(), "
            "beginning with a letter or a digit"
        )
    return value


def split_version(reference: str, what: str) -> tuple[str, int | None]:
    """``name`` or ``name:3`` as (name, version or None for the newest)."""
    name, colon, version = reference.partition(":")
    check_name(name, what)
    if not colon or version == "latest":
        return name, None
    if not version.isdecimal() or int(version) < 1:
        raise InvalidInput(f"{reference!r}: the part after ':' must be a version number such as {name}:1")
    return name, int(version)


def meant(name: str, known: Iterable[str]) -> str:
    """What an error about a name that is not there ends with: the known name that is most like it, if any is."""
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def encode_base32(number: int, length: int) -> str:
    """``number`` in ``length`` Crockford digits, most significant first, so that text order is number order."""
    digits = []
    for _ in range(length):
        number, rest = divmod(number, 32)
        digits.append(_ALPHABET[rest])
    return "".join(reversed(digits))


def decode_base32(text: str) -> int:
    """The number that ``encode_base32`` wrote; raises ``InvalidInput`` for any other text."""
    number = 0
    for character in text:
        position = _ALPHABET.find(character)
        if position < 0:
            raise InvalidInput(f"{text!r} is not an id of this installation")
        number = number * 32 + position
    return number


def make_id(prefix: str, now: float, random_bits: Callable[[int], int]) -> str:
    """A time-sortable id: prefix, 10 digits of milliseconds, 10 digits (50 bits) of chance."""
    return f"{prefix}_{encode_base32(int(now * 1000), 10)}{encode_base32(random_bits(50), 10)}"


def time_of_id(identifier: str) -> float:
    """Seconds since the epoch at which an id was made; raises ``InvalidInput`` when it is none."""
    _, underscore, rest = identifier.partition("_")
    if not underscore or len(rest) != 20:
        raise InvalidInput(f"{identifier!r} is not an id of this installation")
    return decode_base32(rest[:10]) / 1000
