"""The command line in the hands of somebody in a hurry: what it says, where, and with which exit code."""

import io
import json
from collections.abc import Iterator
from typing import Any

import click
import pytest

from loopline.cli import root
from loopline.testing.live import Platform

ALSO_LISTS = (("live",), ("status",), ("runs", "list"), ("endpoints", "traffic", "boxes"), ("audit", "verify"))
WITH = {
    **dict.fromkeys((("versions", "list"), ("requests", "list"), ("tests", "list")), ("boxes",)),
    ("tags", "list"): ("model", "boxes"),
}
NEITHER = ("credential", "serve", "up", "remote")


class Said:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(platform: Platform, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LOOPLINE_DIR", str(platform.folder))
    for name in ("LOOPLINE_URL", "LOOPLINE_KEY"):
        monkeypatch.delenv(name, raising=False)

    def call(*argv: str) -> Said:
        capsys.readouterr()
        code = root.run(list(argv))
        return Said(code, *capsys.readouterr())

    return call


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below a group."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


def test_every_list_command_prints_json_that_parses(run: Any) -> None:
    lists = [path for path, _ in commands(root.root) if path[-1] in ("list", "head", "steps", "artifacts")]
    tried = 0
    for path in {*lists, *ALSO_LISTS}:
        if path[-1] in ("steps", "artifacts"):
            continue  # they ask for a record's id
        said = run(*path, *WITH.get(path, ()), "--json")
        assert said.code == 0, (path, said.err)
        assert isinstance(json.loads(said.out), dict), path
        assert said.err == "", (path, said.err)
        tried += 1
    assert tried > 15


def test_every_command_that_asks_a_server_says_that_there_is_none(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPLINE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("LOOPLINE_KEY", "lk_x")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"{}")))
    tried = 0
    for path, command in commands(root.root):
        if path[0] in NEITHER or path[0] in ("init", "check", "doctor", "apply", "diff", "run"):
            continue
        arguments = [p for p in command.params if isinstance(p, click.Argument) and p.required]
        given = ["1" if p.type.name in ("version", "integer", "float") else "x" for p in arguments]
        if any(isinstance(p.type, click.Path | click.Choice) for p in arguments):
            continue
        options = [p for p in command.params if isinstance(p, click.Option) and p.required]
        given += [part for option in options for part in (option.opts[0], "x")]
        said = run(*path, *given, *(["--yes"] if any("--yes" in p.opts for p in command.params) else []))
        if said.code == 2 and "no server" not in said.err:
            continue  # its arguments want more than this test knows
        assert said.code == 1, (path, said.code, said.err)
        assert "no loopline answers at http://127.0.0.1:1" in said.err and "loopline up" in said.err, (path, said.err)
        assert said.out == "" and "Traceback" not in said.err, path
        tried += 1
    assert tried > 40


@pytest.mark.parametrize(
    "argv",
    [
        ("aprove", "boxes", "1"),
        ("nonsense",),
        ("models", "lst"),
        ("approve",),
        ("approve", "boxes", "one"),
        ("models", "list", "--limit", "0"),
        ("--nonsense",),
        ("live", "--at"),
        ("users", "create", "x", "king"),
    ],
)
def test_wrong_usage_exits_2_and_says_how(run: Any, argv: tuple[str, ...]) -> None:
    said = run(*argv)
    assert said.code == 2, (said.out, said.err)
    assert said.err and "Traceback" not in said.err and said.out == ""


def test_a_command_that_is_nearly_one_is_suggested(run: Any) -> None:
    assert "'approve'" in run("aprove", "boxes", "1").err


def test_an_unknown_record_and_a_wrong_key_exit_1(run: Any) -> None:
    for argv in (
        ("models", "show", "nothing-here"),
        ("versions", "show", "boxes", "77"),
        ("endpoints", "show", "../../etc/passwd"),
        ("runs", "show", "\N{PILE OF POO}"),
        ("executions", "show", "a\x1b[31mb"),
        ("rollback", "nothing-here"),
        ("why", "rq_x"),
    ):
        said = run(*argv)
        assert said.code in (1, 2), (argv, said.err)
        assert said.err.startswith("error: ") and "\x1b" not in said.err, (argv, said.err)
        assert said.out == "" and "Traceback" not in said.err
    said = run("models", "list", "--key", "lk_aaaaaaaa_" + "b" * 43)
    assert said.code == 1 and "key" in said.err


def test_a_gate_that_refuses_exits_3_and_waiting_too_long_4(
    run: Any, platform: Platform, project_files: dict[str, str]
) -> None:
    files = {**project_files, "loop.toml": project_files["loop.toml"].replace("accuracy = 0.8", "accuracy = 0.999999")}
    files["loop.toml"] = files["loop.toml"].replace('"boxes"\n\n[model]', '"strict"\n\n[model]', 1)
    files["loop.toml"] = files["loop.toml"].replace('[model]\nname = "boxes"', '[model]\nname = "strict"')
    files["loop.toml"] = files["loop.toml"].replace('[endpoint]\nname = "boxes"', '[endpoint]\nname = "strict"')
    ended = platform.run(files)
    assert ended["status"] == "Succeeded", ended
    said = run("versions", "evaluate", "strict", "1", "--timeout", "120")
    assert said.code == 3, (said.out, said.err)
    assert "accuracy" in said.out
    said = run("approve", "strict", "1")
    assert said.code == 3 and "gate" in said.err, said.err
    said = run("release", "strict", "1")
    assert said.code == 3, (said.out, said.err)
    slow = (
        "import time\nfrom loopline import pipeline, step\n@step\ndef wait(s: float = 600.0):\n    time.sleep(s)\n"
        "@pipeline\ndef training(s: float = 600.0):\n    wait(s=s)\n"
    )
    toml = '[project]\nname = "late"\n[model]\nname = "late"\n'
    tree = platform.upload({"loop.toml": toml, "pipeline.py": slow, "predict.py": "", "requirements.txt": ""})
    push = platform.call("POST", "/api/pushes", {"tree": tree})
    execution = platform.ended("push", push["id"])["execution"]
    said = run("executions", "wait", execution, "--timeout", "0.3")
    assert said.code == 4 and "0.3 seconds" in said.err, said.err
    assert run("executions", "stop", execution).code == 0
    assert run("executions", "wait", execution, "--timeout", "120").code == 1
