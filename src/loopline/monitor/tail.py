"""Reading the gateways' spools: from a position, whole records only, segment after segment."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from loopline.domain.capturecolumns import Columns, read_columns
from loopline.domain.captured import JOINS_SUFFIX, SUFFIX, encode_join, segments

READ_BYTES = 1 << 20
LARGEST_READ_BYTES = 1 << 28

Position = tuple[str, int]  # segment name, offset; text order of names is time order


class Piece(NamedTuple):
    """Records that stand together in one segment, and the position after them."""

    folder: str
    records: Columns
    after: Position


class Tail:
    """Reads every ``gateway-*`` folder of the spool from ``positions`` on, which it moves along.

    With ``until``, it stops at those positions: they must be ends of records.
    """

    def __init__(
        self,
        spool: Path,
        positions: dict[str, Position],
        *,
        until: dict[str, Position] | None = None,
        index: bool = True,
    ) -> None:
        self._spool = spool
        self.positions = dict(positions)
        self._until = until
        self._index = index

    def read(self, budget_bytes: int) -> Iterator[Piece]:
        """What is there now, up to about ``budget_bytes`` for each folder; ends when there is no whole record."""
        for folder in self._folders():
            left = budget_bytes
            while left > 0:
                piece, size = self._piece(folder)
                if piece is None:
                    break
                left -= size
                if len(piece.records):
                    yield piece

    def _folders(self) -> list[str]:
        try:
            return sorted(e.name for e in os.scandir(self._spool) if e.name.startswith("gateway-") and e.is_dir())
        except FileNotFoundError:
            return []

    def _piece(self, folder: str) -> tuple[Piece | None, int]:
        """The next records of a folder and their bytes, or (None, 0) when there are none."""
        # The list comes first: a later segment in it means that the earlier one had been finished before we read it.
        names = segments(os.listdir(self._spool / folder))  # noqa: PTH208 - many names, for every megabyte
        position = self.positions.get(folder)
        current, offset = position or ("", 0)
        if current not in names:
            later = [name for name in names if name > current]
            if not later:
                return None, 0
            current, offset = later[0], 0
        stop = self._stop(folder, current)
        if stop is not None and offset >= stop:
            return None, 0
        records, size = self._records(folder, current, offset, stop)
        if len(records):
            self.positions[folder] = (current, offset + size)
            return Piece(folder, records, (current, offset + size)), size
        following = [name for name in names if name > current]
        if not following:
            return None, 0
        _let_go(self._spool / folder, names[: names.index(current) + 1])
        self.positions[folder] = (following[0], 0)
        return Piece(folder, read_columns(b"")[0], (following[0], 0)), 1

    def _stop(self, folder: str, current: str) -> int | None:
        """Where to stop in this segment; None is its end."""
        if self._until is None:
            return None
        segment, offset = self._until.get(folder, ("", 0))
        if current == segment:
            return offset
        return 0 if current > segment else None

    def _records(self, folder: str, name: str, offset: int, stop: int | None) -> tuple[Columns, int]:
        wanted = READ_BYTES
        path = self._spool / folder / name
        while True:
            try:
                with path.open("rb") as file:
                    file.seek(offset)
                    data = file.read(wanted if stop is None else min(wanted, stop - offset))
            except FileNotFoundError:
                return read_columns(b"")
            records, size = read_columns(data)
            if len(records) or len(data) < wanted or wanted >= LARGEST_READ_BYTES:
                break
            wanted *= 8  # one record is longer than what was read
        if self._index:
            _write_joins(path, offset, records)
        return records, size


def _let_go(folder: Path, finished: list[str]) -> None:
    """Let the kernel's page cache go of segments that were read to the end, newest last.

    New segments then get pages that are warm, and the cache stays with what is read again. What is not on the disk yet
    is only sent there: the segment before is asked for once more.
    """
    for name in finished[-2:]:
        with contextlib.suppress(OSError), (folder / name).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write_joins(path: Path, offset: int, records: Columns) -> None:
    """Note where the records stand that a client named. Written twice after a crash, which does no harm."""
    named = {number: str(context["join"]) for number, context in enumerate(records.contexts) if context.get("join")}
    if not named:
        return
    lines = [
        encode_join(offset + place, named[number])
        for number, place in zip(records.context.tolist(), records.places[:, 0].tolist(), strict=True)
        if number in named
    ]
    with path.with_suffix(JOINS_SUFFIX).open("ab") as file:
        file.write(b"".join(lines))


def delete_old(folder: Path, consumed: str, *, before: float, keep_bytes: int) -> list[str]:
    """Delete segments older than ``before`` (seconds since the epoch), and the oldest while more than ``keep_bytes``
    remain; only those that come before the segment ``consumed``. Gives the names of what was deleted."""
    names = segments(entry.name for entry in folder.iterdir())
    sizes = {name: (folder / name).stat().st_size for name in names}
    total = sum(sizes.values())
    deleted = []
    for position, name in enumerate(names):
        if name >= consumed or position + 1 == len(names):
            break
        ended = int(names[position + 1][: -len(SUFFIX)]) / 1000
        if ended >= before and total <= keep_bytes:
            break
        (folder / name).unlink(missing_ok=True)
        (folder / name).with_suffix(JOINS_SUFFIX).unlink(missing_ok=True)
        total -= sizes[name]
        deleted.append(name)
    return deleted
