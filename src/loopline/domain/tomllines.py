"""On which line a TOML file says what: the standard library's parser keeps no positions."""

import re

Path = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}\n#]*")
_SPACE = re.compile(r"[ \t]*")


def key_lines(text: str) -> dict[Path, int]:
    """Line (from 1) of every table, key and array element, by path, for a text that ``tomllib`` accepts.

    Elements of arrays and of arrays of tables stand under their index: ``("alarms", 0, "metric")``.
    """
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.line = 1
        self.lines: dict[Path, int] = {}
        self.counts: dict[Path, int] = {}  # arrays of tables: how many elements so far

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self._skip_blank():
            if self.text.startswith("[", self.at):
                table = self._header()
            else:
                self._pair(table)
        return self.lines

    def _skip_blank(self) -> bool:
        """Go over space, newlines and comments; False at the end."""
        while self.at < len(self.text):
            character = self.text[self.at]
            if character == "#":
                self._move(self._until("\n"))
            elif character in " \t\n\r":
                self._move(self.at + 1)
            else:
                return True
        return False

    def _until(self, mark: str, start: int | None = None) -> int:
        found = self.text.find(mark, self.at if start is None else start)
        return len(self.text) if found < 0 else found

    def _move(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def _header(self) -> Path:
        is_array = self.text.startswith("[[", self.at)
        line = self.line
        self._move(self.at + (2 if is_array else 1))
        path: Path = ()
        keys = self._dotted()
        for position, key in enumerate(keys):
            path = (*path, key)
            self.lines.setdefault(path, line)
            if path in self.counts and not (is_array and position == len(keys) - 1):
                path = (*path, self.counts[path] - 1)
        if is_array:
            index = self.counts.get(path, 0)
            self.counts[path] = index + 1
            path = (*path, index)
        self.lines[path] = line
        self._move(self._until("\n"))
        return path

    def _dotted(self) -> list[str]:
        """A key such as ``a."b c".d``; stops behind it."""
        keys = []
        while True:
            self._spaces()
            if self.text[self.at] in "\"'":
                quote = self.text[self.at]
                end = self._end_of_string(quote)
                raw = self.text[self.at + 1 : end - 1]
                keys.append(_unescape(raw) if quote == '"' else raw)
                self._move(end)
            else:
                found = _BARE.match(self.text, self.at)
                if not found:
                    raise ValueError(f"no key on line {self.line}")
                keys.append(found[0])
                self._move(found.end())
            self._spaces()
            if not self.text.startswith(".", self.at):
                return keys
            self._move(self.at + 1)

    def _spaces(self) -> None:
        found = _SPACE.match(self.text, self.at)
        self._move(found.end() if found else self.at)

    def _pair(self, table: Path) -> None:
        path = table
        line = self.line
        for key in self._dotted():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self._move(self.at + 1)  # the equals sign
        self._spaces()
        self._value(path)

    def _value(self, path: Path) -> None:
        character = self.text[self.at : self.at + 1]
        if character in ('"', "'"):
            self._move(self._end_of_string(character))
        elif character == "[":
            self._array(path)
        elif character == "{":
            self._inline_table(path)
        else:
            found = _SCALAR.match(self.text, self.at)
            self._move(found.end() if found else self.at)

    def _array(self, path: Path) -> None:
        self._move(self.at + 1)
        index = 0
        while self._skip_blank() and self.text[self.at] != "]":
            if self.text[self.at] == ",":
                self._move(self.at + 1)
                continue
            self.lines[(*path, index)] = self.line
            self._value((*path, index))
            index += 1
        self._move(self.at + 1)

    def _inline_table(self, path: Path) -> None:
        self._move(self.at + 1)
        while self._skip_blank() and self.text[self.at] != "}":
            if self.text[self.at] == ",":
                self._move(self.at + 1)
                continue
            self._pair(path)
        self._move(self.at + 1)

    def _end_of_string(self, quote: str) -> int:
        """Position behind the string that begins here."""
        mark = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        position = self.at + len(mark)
        while position < len(self.text):
            if quote == '"' and self.text[position] == "\\":
                position += 2
            elif self.text.startswith(mark, position):
                position += len(mark)
                while len(mark) == 3 and self.text.startswith(quote, position):  # up to two quotes may stand inside
                    position += 1
                return position
            else:
                position += 1
        return len(self.text)


def _unescape(raw: str) -> str:
    simple = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "e": "\x1b", '"': '"', "\\": "\\"}

    def replace(found: re.Match[str]) -> str:
        if found[1]:
            return chr(int(found[1][1:], 16))
        return simple.get(found[2], found[2])

    return re.sub(r"\\(?:(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})|(.))", replace, raw)
