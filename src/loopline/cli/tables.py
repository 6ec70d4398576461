"""Tables on a terminal: every row keeps its columns, however narrow the terminal and however long the names.

What does not fit gives way step by step: sentences at the end of a row go to lines of their own below it, empty columns
go, names lose their middle, times their seconds and years, and at last ids are cut. Other sentences are broken into
lines. Nothing here is seen by a program: what goes into a pipe is whole.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import click

NUMBER, TIME, OWN_ID, ID, STATUS, WORD, SENTENCE = "number", "time", "own id", "id", "status", "word", "sentence"
EMPTY = "-"
NOTHING = {EMPTY, ""}
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
MAX_WORD = 24  # characters of a word that is not broken in a sentence, while there is room
INDENT = 4  # of what stands below a row
MAX_LINES, MIN_LINE = 4, 8  # of it: how many, and how long at least
_FORMS = (
    (NUMBER, re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?( ?%)?")),
    (TIME, re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")),
    (ID, re.compile(r"[a-z]{2}_[0-9a-z]{20}")),
    (WORD, re.compile(r"\S*|[^,;:]{0,40}")),  # a few words may be a name; what has a comma can be broken behind it
)
_SHORTER_TIMES = (slice(0, 16), slice(5, 16))  # without seconds, and without the year


class Step(NamedTuple):
    """One try to fit a table: the spaces between columns, and what columns of each kind may be reduced to."""

    gap: int
    floors: Mapping[str, int]


_STEPS = (
    Step(3, {}),
    Step(3, {SENTENCE: 24}),
    Step(2, {SENTENCE: 24, WORD: 20}),
    Step(2, {SENTENCE: 20, WORD: 14, TIME: 16}),
    Step(2, {SENTENCE: 16, WORD: 12, TIME: 11, ID: 12}),
    Step(2, {SENTENCE: 12, WORD: 8, TIME: 11, ID: 9, OWN_ID: 12}),
    Step(2, {SENTENCE: 10, WORD: 6, TIME: 11, ID: 8, STATUS: 12, OWN_ID: 9}),
    Step(2, {SENTENCE: 8, WORD: 5, TIME: 11, ID: 7, STATUS: 7, OWN_ID: 7}),
    Step(1, {SENTENCE: 3, WORD: 3, TIME: 3, ID: 3, STATUS: 3, OWN_ID: 3, NUMBER: 3}),
)


@dataclass(frozen=True)
class Column:
    """A column that is shown ``width`` cells wide; ``whole`` is what its cells say before they are shortened."""

    title: str
    kind: str
    width: int
    cells: tuple[str, ...]
    whole: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table that fits: its columns, the spaces between them, and the text below each row, if there is any.

    ``cut``: whether ids had to give way.
    """

    columns: tuple[Column, ...]
    gap: int
    width: int
    below: tuple[str, ...] = ()
    cut: bool = False


def _terminal() -> Any:
    """The library of widths; most tables need none of it, and it takes longer to import than the whole command line."""
    import wcwidth

    return wcwidth


def length(text: str) -> int:
    """How many cells of a terminal a text takes."""
    return len(text) if text.isascii() else int(_terminal().width(text))


def shorten(text: str, width: int, front: int | None = None) -> str:
    """A text of at most ``width`` cells: without its middle where it is longer. ``front``: what is left before it."""
    every = length(text)
    if every <= width:
        return text
    front = (width - 1) // 2 if front is None else front
    clip = _terminal().clip
    return f"{clip(text, 0, front)}{ELLIPSIS}{clip(text, every - (width - 1 - front), every)}"


def fit(titles: Sequence[str], rows: Sequence[Sequence[str]], width: int, statuses: Collection[str] = ()) -> Table:
    """A table for a terminal that is ``width`` characters wide; ``statuses``: words that are kept whole for long."""
    every = [_column(place, title, [row[place] for row in rows], statuses) for place, title in enumerate(titles)]
    columns, below = every, tuple[str, ...]()
    for number, step in enumerate(_STEPS):
        if number == 1:
            columns = [each for each in every if not set(each.cells) <= NOTHING] or every[:1]
            if columns[-1].kind == SENTENCE and len(columns) > 1:
                *columns, last = columns
                below = last.cells
        room = width - 2 - step.gap * (len(columns) - 1)
        widths = _share(columns, step.floors, room)
        if sum(widths) <= room:
            break
    shown = tuple(_narrowed(column, given) for column, given in zip(columns, widths, strict=True))
    cut = any(a.width < b.width and a.kind in (ID, OWN_ID) for a, b in zip(shown, columns, strict=True))
    return Table(shown, step.gap, width, below, cut)


def _column(place: int, title: str, cells: Sequence[str], statuses: Collection[str]) -> Column:
    said = [cell for cell in cells if cell not in NOTHING]
    kind = next((kind for kind, form in _FORMS if said and all(map(form.fullmatch, said))), SENTENCE if said else WORD)
    if kind == WORD and said and all(cell in statuses for cell in said):
        kind = STATUS
    if kind == ID and place == 0:
        kind = OWN_ID
    return Column(title, kind, max(map(length, (title, *cells))), tuple(cells), tuple(cells))


def _share(columns: Sequence[Column], floors: Mapping[str, int], room: int) -> list[int]:
    """Widths that fit into the room, if the floors let them: the widest column gives way first."""
    floor = [min(column.width, floors.get(column.kind, column.width)) for column in columns]
    if floors.get(SENTENCE, 0) > MIN_LINE:
        floor = [max(least, _word(column)) for column, least in zip(columns, floor, strict=True)]
    widths = [least if column.kind == TIME else column.width for column, least in zip(columns, floor, strict=True)]
    while sum(widths) > room:
        places = [place for place, width in enumerate(widths) if width > floor[place]]
        if not places:
            break
        widths[max(places, key=widths.__getitem__)] -= 1
    return widths


def _word(column: Column) -> int:
    """The longest word of a column of sentences, if it is not too long to stay whole."""
    words = (len(word) for cell in column.cells for word in cell.split()) if column.kind == SENTENCE else ()
    return max((size for size in words if size <= MAX_WORD), default=0)


def _narrowed(column: Column, width: int) -> Column:
    if width >= column.width:
        return column
    cells = column.cells
    if column.kind == TIME:
        cut = next((cut for cut in _SHORTER_TIMES if cut.stop - cut.start <= width), _SHORTER_TIMES[-1])
        cells = tuple(cell if cell in NOTHING else cell[cut] for cell in cells)
        width = min(width, max(map(length, (column.title, *cells))))
    if column.kind != SENTENCE:
        front = width // 3 if column.kind in (ID, OWN_ID) else None
        cells = tuple(shorten(cell, width, front) for cell in cells)
    return replace(column, title=shorten(column.title, width), width=width, cells=cells)


def lines(table: Table, colours: Mapping[str, str]) -> list[str]:
    """The table's lines; ``colours``: of a cell that says this."""
    titles = _padded(table, [column.title for column in table.columns])
    found = ["", _joined(table, [click.style(title, bold=True) for title in titles])]
    total = sum(column.width for column in table.columns) + table.gap * (len(table.columns) - 1)
    found.append(" " + "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * total)
    for place in range(len(table.columns[0].cells)):
        found += _row(table, place, colours)
        text = table.below[place] if table.below else EMPTY
        if text not in NOTHING:
            indent = " " * INDENT
            found += [indent + line for line in _broken(text, max(table.width - INDENT, MIN_LINE), MAX_LINES)]
    return [*found, ""]


def _row(table: Table, place: int, colours: Mapping[str, str]) -> list[str]:
    """A row's lines: more than one where a sentence is broken."""
    broken = [
        _broken(column.cells[place], column.width) if column.kind == SENTENCE else [column.cells[place]]
        for column in table.columns
    ]
    found = []
    for number in range(max(map(len, broken))):
        cells = _padded(table, [pieces[number] if number < len(pieces) else "" for pieces in broken])
        styles = [colours.get(column.whole[place]) for column in table.columns]
        styled = [click.style(cell, fg=style) if style else cell for cell, style in zip(cells, styles, strict=True)]
        found.append(_joined(table, styled))
    return found


def _joined(table: Table, cells: Sequence[str]) -> str:
    return (" " + (" " * table.gap).join(cells)).rstrip(" ")


def _padded(table: Table, cells: Sequence[str]) -> list[str]:
    """Cells as wide as their columns: numbers at the right, the end of a line without spaces."""
    found = []
    for column, cell in zip(table.columns, cells, strict=True):
        spare = " " * (column.width - length(cell))
        found.append(spare + cell if column.kind == NUMBER else cell + spare)
    return [*found[:-1], found[-1].rstrip()]


def _broken(text: str, width: int, most: int | None = None) -> list[str]:
    """A text in lines of at most ``width`` cells, broken between words; a word that is longer is broken itself."""
    if length(text) <= width:
        return [text]
    found: list[str] = _terminal().wrap(text, width, break_on_hyphens=False, max_lines=most, placeholder=f" {ELLIPSIS}")
    return found
