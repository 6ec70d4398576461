"""Checksums that clients send along with bytes, and what is computed of them on the way. Pure functions.

The SHA family, MD5 and CRC-32 are Python's own. CRC-32C and CRC-64/NVME have no C code in the base install: a megabyte
is cut into lanes that numpy takes through the table side by side, and the lanes' remainders are joined as remainders of
polynomials are. Source: Amazon S3 User Guide, "Checking object integrity".
"""

import base64
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from loopline.errors import InvalidInput

SIZES = {"CRC32": 4, "CRC32C": 4, "CRC64NVME": 8, "SHA1": 20, "SHA256": 32, "SHA512": 64, "MD5": 16}  # bytes
ALGORITHMS = tuple(SIZES)

_LANE_BYTES = 256
_MAX_LANES = 4096
_POLYNOMIALS = {"CRC32C": (32, 0x82F63B78), "CRC64NVME": (64, 0x9A6C9329AC4BC9B5)}  # reflected

_Words = npt.NDArray[np.uint64]


class _Running(Protocol):
    def update(self, data: bytes, /) -> Any: ...

    def digest(self) -> bytes: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


class _Lanes:
    """A reflected CRC with all bits set before and flipped after, over chunks of any size."""

    def __init__(self, name: str) -> None:
        self._bits, self._polynomial = _POLYNOMIALS[name]
        self._flip = (1 << self._bits) - 1
        self._value = self._flip

    def update(self, data: bytes) -> None:
        view = memoryview(data)
        while len(view) >= 2 * _LANE_BYTES:
            lanes = min(_MAX_LANES, 1 << (len(view) // _LANE_BYTES).bit_length() - 1)
            block = view[: lanes * _LANE_BYTES]
            self._value = _shifted(self._polynomial, len(block), self._value) ^ _remainder(self._polynomial, block)
            view = view[len(block) :]
        table, value = _table(self._polynomial).tolist(), self._value
        for byte in view:
            value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
        self._value = value

    def digest(self) -> bytes:
        return (self._value ^ self._flip).to_bytes(self._bits // 8, "big")


@cache
def _table(polynomial: int) -> _Words:
    """What each byte becomes after its eight bits."""
    values = np.arange(256, dtype=np.uint64)
    for _ in range(8):
        values = np.where(
            values & np.uint64(1), (values >> np.uint64(1)) ^ np.uint64(polynomial), values >> np.uint64(1)
        )
    return values


def _remainder(polynomial: int, block: memoryview) -> int:
    """The remainder of a block of ``lanes * _LANE_BYTES`` bytes, lanes a power of two, beginning from nothing."""
    table, low, eight = _table(polynomial), np.uint64(0xFF), np.uint64(8)
    columns = np.ascontiguousarray(np.frombuffer(block, np.uint8).reshape(-1, _LANE_BYTES).T).astype(np.uint64)
    lanes = np.zeros(columns.shape[1], np.uint64)
    for column in columns:
        lanes = table[(lanes ^ column) & low] ^ (lanes >> eight)
    behind = _LANE_BYTES
    while len(lanes) > 1:
        lanes = _shift_all(polynomial, behind, lanes[0::2]) ^ lanes[1::2]
        behind *= 2
    return int(lanes[0])


@cache
def _shifting(polynomial: int, count: int) -> _Words:
    """For each of eight byte places and each byte there: what it becomes behind ``count`` bytes of zeros."""
    if count == 1:
        table, eight = _table(polynomial), np.uint64(8)
        values = _every_byte()
        behind: _Words = table[values & np.uint64(0xFF)] ^ (values >> eight)
        return behind
    half = _shifting(polynomial, count // 2)
    twice = _apply(half, half)
    return _apply(_shifting(polynomial, 1), twice) if count % 2 else twice


def _every_byte() -> _Words:
    places = np.arange(8, dtype=np.uint64)[:, None] * np.uint64(8)
    return np.arange(256, dtype=np.uint64)[None, :] << places


def _apply(shifting: _Words, values: _Words) -> _Words:
    found = np.zeros_like(values)
    for place in range(8):
        found ^= shifting[place][(values >> np.uint64(8 * place)) & np.uint64(0xFF)]
    return found


def _shift_all(polynomial: int, count: int, values: _Words) -> _Words:
    return _apply(_shifting(polynomial, count), values)


def _shifted(polynomial: int, count: int, value: int) -> int:
    return int(_shift_all(polynomial, count, np.array([value], np.uint64))[0])


def _begin(name: str) -> _Running:
    if name == "CRC32":
        return _Crc32()
    if name in _POLYNOMIALS:
        return _Lanes(name)
    return hashlib.new(name.lower(), usedforsecurity=False)


def checksum(name: str, data: bytes) -> str:
    """The checksum of bytes, in base 64."""
    running = _begin(name)
    running.update(data)
    return base64.b64encode(running.digest()).decode()


def composite(name: str, parts: Iterable[str]) -> str:
    """The checksum of the parts' own checksums (base 64), and how many they were: ``...-N``."""
    decoded = [base64.b64decode(part) for part in parts]
    return f"{checksum(name, b''.join(decoded))}-{len(decoded)}"


def check_form(name: str, value: str) -> str:
    """``value`` itself when it is base 64 of as many bytes as the algorithm has; raises ``InvalidInput``."""
    try:
        decoded = base64.b64decode(value, validate=True)
    except ValueError:
        decoded = b""
    if len(decoded) != SIZES[name]:
        raise InvalidInput(f"{value[:100]!r} is not a {name} checksum in base 64", kind="digest", algorithm=name)
    return value


class Checking:
    """Computes checksums of a stream on the way, and compares them with what the client said, which may come last.

    ``expected``: in base 64 by algorithm (``ALGORITHMS``). ``later``: gives what is known only after the last byte
    (trailers). ``wanted``: algorithms to compute although nothing is expected. ``content_md5``: expected of the MD5,
    which is computed in any case and is no checksum of the object unless it is among the others.
    """

    def __init__(
        self,
        expected: Mapping[str, str] | None = None,
        later: Callable[[], Mapping[str, str]] | None = None,
        wanted: Iterable[str] = (),
        content_md5: str | None = None,
    ) -> None:
        self._expected = {name: check_form(name, value) for name, value in (expected or {}).items()}
        self._content_md5 = None if content_md5 is None else check_form("MD5", content_md5)
        self._later = later
        self._kept = {*self._expected, *wanted}
        self._running: dict[str, _Running] = {name: _begin(name) for name in {"MD5", *self._kept}}
        self.size_bytes = 0
        self.found: dict[str, str] = {}

    @property
    def md5(self) -> str:
        """The MD5 of what came, in hexadecimal."""
        return self._running["MD5"].digest().hex()

    def through(self, chunks: Iterable[bytes]) -> Iterable[bytes]:
        """The chunks as they are; raises ``InvalidInput`` after the last one when a checksum does not match."""
        running = list(self._running.values())
        for chunk in chunks:
            for each in running:
                each.update(chunk)
            self.size_bytes += len(chunk)
            yield chunk
        computed = {name: base64.b64encode(each.digest()).decode() for name, each in self._running.items()}
        expected = [*self._expected.items(), *(self._later().items() if self._later else ())]
        if self._content_md5 is not None:
            expected.append(("MD5", self._content_md5))
        for name, value in expected:
            if computed.get(name) != value:
                raise InvalidInput(
                    f"the {name} of the bytes that came is {computed.get(name)}, not {value[:100]} as was said",
                    kind="mismatch",
                    algorithm=name,
                )
        self.found = {name: value for name, value in computed.items() if name in self._kept}
