"""Every block of README.md and docs/ does what the page says.

- ``console``: lines that begin with ``$ `` (and ``> ``, which go on) are typed into one shell per file; what stands
  below must be what a terminal shows. ``...`` stands for anything: a line of its own for any lines. Ids, keys, times
  and the like may differ from those on the page.
- ``python``: a whole program, run where the shell stands. ``python file=NAME``: written there instead.
- ``toml``: a loop.toml or a part of one, without mistakes; ``toml add=loop.toml`` is appended to the project's file,
  ``toml file=settings.toml`` holds settings.
- ``text``: not run.

All files share one platform; each names its projects differently. ``http://localhost:8600`` is where it is.
"""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from loopline import config
from loopline.domain import loopfile

ROOT = Path(__file__).resolve().parents[2]
FIRST = [ROOT / "README.md", ROOT / "docs" / "quickstart.md"]  # they show an installation without other endpoints
PAGES = [*FIRST, *sorted(set(ROOT.glob("docs/**/*.md")) - set(FIRST))]
UP_SECONDS, COMMAND_SECONDS, LOOK_SECONDS = 120.0, 300.0, 120.0
SHOWN_ADDRESS = "http://localhost:8600"
# What only looks is asked again until it shows what the page says: a reader, too, waits for traffic to move.
LOOKS = re.compile(
    r"^loopline (live|status|why|doctor|audit (head|verify)|"
    r"\w+ (list|show|history|traffic|shadow|compare|drift|quality|deliveries))\b"
)
DIFFERS = (
    (re.compile(r"\x1b\[[0-9;?]*[A-Za-z]"), ""),
    (re.compile(r"\blk_[0-9a-z]{8}_[\w-]{43}"), "KEY"),
    (re.compile(r"\bwhsec_[\w+/=-]+"), "SECRET"),
    (re.compile(r"\b[a-z]{2}_[0-9a-z]{20}\b"), "ID"),
    (re.compile(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{40}\b"), "DIGEST"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z?"), "TIME"),
    (re.compile(r"\b\d+(\.\d+)? s\b"), "SECONDS"),
    (re.compile(r"[─━]+"), "-"),
    (re.compile(r"\s+"), " "),
)


class Block(NamedTuple):
    """A fenced block: its language, what stands behind it, the line it begins on and its lines."""

    language: str
    words: dict[str, str]
    line: int
    lines: list[str]


class Command(NamedTuple):
    """One command of a console block, and what the page says it shows (None: nothing is said)."""

    text: str
    line: int
    expected: list[str] | None


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page; a fence without a language is a mistake."""
    found: list[Block] = []
    opened: Block | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), 1):
        if not line.startswith("```"):
            if opened:
                opened.lines.append(line)
        elif opened:
            found.append(opened)
            opened = None
        else:
            language, *rest = line[3:].split() or [""]
            words = {key: value for key, _, value in (word.partition("=") for word in rest)}
            opened = Block(language, words, number, [])
    assert opened is None, f"{page}:{opened.line}: this block does not end"
    return found


def commands_of(block: Block) -> list[Command]:
    """The commands of a console block."""
    found: list[Command] = []
    for number, line in enumerate(block.lines, block.line + 1):
        if line.startswith("$ "):
            found.append(Command(line[2:], number, None))
        elif line.startswith("> ") or line == ">":
            found[-1] = found[-1]._replace(text=f"{found[-1].text}\n{line[2:]}")
        else:
            found[-1] = found[-1]._replace(expected=[*(found[-1].expected or []), line])
    return found


def plain(line: str) -> str:
    """A line without what differs from run to run."""
    for pattern, shown in DIFFERS:
        line = pattern.sub(shown, line)
    return line.strip()


def shows(expected: list[str], output: str) -> bool:
    """Whether the output is what the page shows."""
    pattern = ""
    for line in filter(None, map(plain, expected)):
        if line == "...":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += ".*?".join(re.escape(part) for part in line.split("...")) + r"\n"
    lines = "".join(f"{line}\n" for line in filter(None, map(plain, output.splitlines())))
    return re.fullmatch(pattern, lines) is not None


class Shell:
    """A bash whose output is a terminal's, so that pages show what people see."""

    def __init__(self, folder: Path, environ: dict[str, str], address: str) -> None:
        self.address = address
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def run(self, command: str) -> tuple[int, str]:
        """Run a command; gives its exit code and what it showed."""
        here = command.replace(SHOWN_ADDRESS, self.address)
        text = f"{{ {here}\n}} </dev/null; code=$?; printf '\\n@@%d@@\\n' $code; (exit $code)\n"
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()
        shown, deadline = "", time.monotonic() + COMMAND_SECONDS
        while not (done := re.search(r"\r?\n@@(\d+)@@\r?\n", shown)):
            left = deadline - time.monotonic()
            assert left > 0, f"{command}\ntook more than {COMMAND_SECONDS:g} s; it showed\n{shown}"
            if select.select([self.master], [], [], left)[0]:
                shown += os.read(self.master, 1 << 16).decode("utf-8", "replace")
        port = self.address.rpartition(":")[2]
        output = re.sub(rf"http://(127\.0\.0\.1|localhost):{port}", SHOWN_ADDRESS, shown[: done.start()])
        return int(done[1]), output.replace("\r\n", "\n")

    def close(self) -> None:
        """End the shell and everything it started."""
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait()
        os.close(self.master)


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a person at a terminal beside a running platform."""
    home = tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOOPLINE_", "GIT_"))}
    environ = {
        **kept,
        "LOOPLINE_DIR": str(tmp_path_factory.mktemp("platform") / "data"),
        "HOME": str(home),
        "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv")),
        "PATH": f"{Path(sys.executable).absolute().parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "200",  # pages show tables whole
        "TERM": "xterm",
        **{f"GIT_{who}_{what}": "docs" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    with subprocess.Popen(["loopline", "up", "--port", "0"], env=environ, stdout=subprocess.PIPE) as up:
        try:
            assert up.stdout is not None
            ready = select.select([up.stdout], [], [], UP_SECONDS)[0]
            assert ready, "loopline up said nothing"
            found = re.search(rb"is up at (http://\S+)", up.stdout.readline())
            assert found
            yield {**environ, "ADDRESS": found[1].decode()}
        finally:
            up.send_signal(signal.SIGINT)
            up.communicate(timeout=UP_SECONDS)


def _console(shell: Shell, page: Path, block: Block) -> None:
    commands = commands_of(block)
    for command, following in zip(commands, [*commands[1:], None], strict=True):
        where = f"{page.relative_to(ROOT)}:{command.line}: {command.text}"
        code, output = shell.run(command.text)
        deadline = time.monotonic() + LOOK_SECONDS
        looks = LOOKS.match(command.text) is not None
        while command.expected and not shows(command.expected, output):
            if not looks or time.monotonic() > deadline:
                wanted = "\n".join(command.expected)
                pytest.fail(f"{where}\nthe page shows\n{wanted}\nbut it showed\n{output}", pytrace=False)
            time.sleep(0.1)
            code, output = shell.run(command.text)
        tells_code = following is not None and following.text == "echo $?"
        assert code == 0 or tells_code, f"{where}\nended with {code}; it showed\n{output}"


def _python(shell: Shell, page: Path, block: Block, scratch: Path) -> None:
    program = scratch / f"line-{block.line}.py"
    program.write_text("\n".join(block.lines).replace(SHOWN_ADDRESS, shell.address))
    code, output = shell.run(f"python {program}")
    assert code == 0, f"{page.relative_to(ROOT)}:{block.line}: the program ended with {code}\n{output}"


def _check_toml(page: Path, block: Block) -> None:
    text = "\n".join(block.lines)
    if block.words.get("file") == "settings.toml":
        known = {setting.name: setting.kind for setting in config.SETTINGS}
        assert all(isinstance(value, known[key]) for key, value in tomllib.loads(text).items())
        return
    for table, needed in (("project", "[project]"), ("model", "[model]"), ("endpoint", "[endpoint]")):
        if table not in tomllib.loads(text):
            text += f'\n{needed}\nname = "example"\n'
    errors = [str(problem) for problem in loopfile.parse(text)[1] if problem.level == "error"]
    assert not errors, f"{page.relative_to(ROOT)}:{block.line}: {errors}"


def _write(shell: Shell, name: str, block: Block, mode: str) -> None:
    _, here = shell.run("pwd")
    with (Path(here.strip()) / name).open(mode) as file:
        file.write("\n".join([*([""] if mode == "a" else []), *block.lines, ""]))


def _walk(page: Path, blocks: list[Block], shell: Shell, scratch: Path) -> None:
    for block in blocks:
        if block.language == "console":
            _console(shell, page, block)
        elif "file" in block.words or "add" in block.words:
            added = "add" in block.words
            _write(shell, block.words["add" if added else "file"], block, "a" if added else "w")
        elif block.language == "python":
            _python(shell, page, block, scratch)


def _runs(block: Block) -> bool:
    return block.language in ("console", "python") or "add" in block.words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_says_what_it_is_and_every_toml_is_right(page: Path) -> None:
    for block in blocks_of(page):
        where = f"{page.relative_to(ROOT)}:{block.line}"
        assert block.language in ("console", "python", "toml", "text"), f"{where}: a block of {block.language!r}"
        if block.language == "console":
            assert block.lines, f"{where}: empty"
            assert block.lines[0].startswith("$ "), f"{where}: a console block begins with a command"
        if block.language == "toml":
            _check_toml(page, block)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(map(_runs, blocks_of(page)))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_the_commands_of_a_page_do_what_it_shows(page: Path, environ: dict[str, str], tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    here = tmp_path / "here"
    here.mkdir()
    shell = Shell(here, environ, environ["ADDRESS"])
    try:
        _walk(page, blocks_of(page), shell, scratch)
    finally:
        shell.close()


def test_a_page_that_shows_something_else_is_found() -> None:
    assert shows(["boxes v1 is ...", "..."], "boxes v1 is Approved\nmore\n")
    assert shows(["ro_01m7wc2brz2cngw14ver  Succeeded"], "ro_01m7wc4akxgf4c6m1zz8 Succeeded\n")
    assert not shows(["boxes v1 is Approved"], "boxes v1 is Rejected\n")
    assert not shows(["boxes v1 is Approved"], "boxes v1 is Approved\nand more\n")
