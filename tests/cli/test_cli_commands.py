"""The command line: help that is quick, answers for people and for programs, exit codes that scripts rely on."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from loopline.cli import root, session, tree
from loopline.cli.check import problems_of
from loopline.control import access
from loopline.store import records
from loopline.testing.world import World

SOURCE = Path(root.__file__).parents[2]
# What no `--help` may cost.
HEAVY = ("alembic", "http.client", "jinja2", "msgspec", "numpy", "rich", "sqlalchemy", "starlette", "uvicorn")


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*argv: str) -> Result:
        capsys.readouterr()
        code = root.run(list(argv))
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("data"))
    yield world
    world.close()


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[str]:
    with world.listening() as address:
        yield address


@pytest.fixture(scope="module")
def admin_key(world: World) -> str:
    return str(access.bootstrap(world.ctx, "http://nowhere"))


@pytest.fixture
def signed_in(server: str, admin_key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPLINE_URL", server)
    monkeypatch.setenv("LOOPLINE_KEY", admin_key)


@pytest.fixture(scope="module")
def patients(world: World) -> None:
    with world.ctx.db.transaction() as tx:
        records.create(
            tx, "model", actor="ada", name="patients", gate_mode="enforce", gate={}, last_version=1, created_by="ada"
        )
        records.create(
            tx,
            "version",
            actor="ada",
            model="patients",
            number=1,
            handler="predict",
            requested_by="ada",
            metadata={},
            metrics={"f1": 0.9},
            artifact={},
        )
        for name, reason in (("lost", "bad\x1b[2Jword"), ("found", "tab\there")):
            records.create(
                tx, "run", actor="ada", project="p", experiment=name, name=reason, dirty=False, by="ada", metrics={}
            )


# -- help -------------------------------------------------------------------------------------------------------------


def test_every_command_s_help_is_quick_because_it_imports_little() -> None:
    program = f"""
import sys
from loopline.cli import root
for name in root.COMMANDS:
    assert root.run([name, "--help"]) == 0, name
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, check=True)
    assert done.stderr.strip() == "[]"


def test_the_list_of_commands_says_what_each_command_says(run: Any) -> None:
    group = root.root
    assert isinstance(group, click.Group)
    for name, entry in root.COMMANDS.items():
        command = group.get_command(click.Context(group), name)
        assert command is not None and command.name == name
        assert entry.help.endswith(".")
    shown = run("--help").out
    assert all(f"\n  {name} " in shown for name in root.COMMANDS)


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_command_that_answers_has_json() -> None:
    without = {
        path
        for path, command in commands(root.root)
        if "--json" not in [option for parameter in command.params for option in parameter.opts]
    }
    assert without == {("up",), ("init",), ("serve",), ("gateway", "config")}


def test_no_two_parameters_of_a_command_have_the_same_name() -> None:
    for path, command in commands(root.root):
        names = [parameter.name for parameter in command.params]
        assert len(names) == len(set(names)), path


def test_a_mistyped_command_is_guessed(run: Any) -> None:
    result = run("executoins")
    assert result.code == 2
    assert "Did you mean 'executions'?" in result.err


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("signed_in", "patients")
def test_a_pipe_gets_one_line_per_item_and_nothing_that_steers_a_terminal(run: Any) -> None:
    result = run("runs", "list", "--project", "p")
    lines = [line.split("\t") for line in result.out.splitlines()]
    assert len(lines) == 2
    assert {len(line) for line in lines} == {7}
    assert "\x1b" not in result.out
    assert {line[4] for line in lines} == {"bad\N{REPLACEMENT CHARACTER}[2Jword", "tab here"}


@pytest.mark.usefixtures("signed_in", "patients")
def test_json_is_the_server_s_answer(run: Any) -> None:
    found = run("models", "list", "--json").json
    assert found["items"][0]["name"] == "patients"
    assert found["next"] is None


@pytest.mark.usefixtures("signed_in", "patients")
@pytest.mark.parametrize("argv", [("versions", "show", "patients", "v1"), ("versions", "show", "patients:1")])
def test_a_version_may_be_named_in_two_ways(run: Any, argv: tuple[str, ...]) -> None:
    assert "number\t1\n" in run(*argv).out


@pytest.mark.usefixtures("signed_in")
@pytest.mark.parametrize(
    "argv",
    [
        path
        for path in (
            *((noun, "list") for noun in root.COMMANDS if noun in ("alarms", "assets", "endpoints", "environments")),
            *(
                (noun, "list")
                for noun in ("events", "executions", "jobs", "keys", "projects", "pushes", "retrainings", "rollouts")
            ),
            *((noun, "list") for noun in ("topics", "triggers", "users", "models", "runs")),
            ("topics", "deliveries"),
            *((noun, "list") for noun in ("dashboards", "metrics")),
            ("alarms", "lint"),
            ("audit", "head"),
            ("audit", "verify"),
            ("live",),
            ("status",),
        )
    ],
)
def test_everything_that_looks_works_on_what_is_there(run: Any, argv: tuple[str, ...]) -> None:
    assert run(*argv).code == 0
    assert isinstance(run(*argv, "--json").json, dict)


@pytest.mark.usefixtures("signed_in")
def test_a_key_is_made_shown_once_on_stdout_and_revoked(run: Any, server: str) -> None:
    assert run("users", "create", "grace", "viewer").code == 0
    made = run("keys", "create", "--user", "grace")
    key = made.out.strip()
    assert key.startswith("lk_") and "viewer key of grace" in made.err
    assert run("users", "list", "--key", key).code == 1
    assert run("models", "list", "--key", key).code == 0
    assert run("keys", "revoke", key[3:11]).code == 0
    refused = run("models", "list", "--key", key)
    assert refused.code == 1
    assert refused.err == "error: this API key is unknown, expired or revoked\n"


@pytest.mark.usefixtures("signed_in")
def test_an_asset_goes_up_and_comes_down(run: Any, world: World, tmp_path: Path) -> None:
    with world.ctx.db.transaction() as tx:
        records.create(tx, "project", actor="ada", name="q", loop={}, changed_at=tx.now)
    rows = tmp_path / "rows.csv"
    rows.write_bytes(b"a,b\n1,2\n" * 100_000)
    code = root.run(["assets", "put", "q", "rows", str(rows)])
    assert code == 0
    target = tmp_path / "back.csv"
    assert root.run(["assets", "get", "q", "rows", "-o", str(target)]) == 0
    assert target.read_bytes() == rows.read_bytes()
    assert root.run(["assets", "get", "q", "rows", "-o", str(target)]) == 2  # nothing is overwritten
    assert root.run(["assets", "get", "q", "rows", "-o", str(tmp_path / "nowhere" / "back.csv")]) == 2


# -- exit codes -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("signed_in", "patients")
def test_exit_codes_tell_what_happened(run: Any) -> None:
    assert run("versions", "show", "nothing", "1").code == 1
    assert run("versions", "show", "patients").code == 2  # which version?
    assert run("runs", "list", "--limit", "0").code == 2
    refused = run("approve", "patients", "1")
    assert refused.code == 3
    assert refused.err.startswith("error: ")
    assert run("versions", "show", "patient", "1").err == (
        "error: there is no model 'patient'; did you mean 'patients'?\n"
    )
    assert run("endpoints", "show", "patients").err == "error: there is no endpoint 'patients'\n"
    weight = run("endpoints", "traffic", "patients", "--set", "v1=ten")
    assert (weight.code, "the weight of v1 is a number such as 90, unlike 'ten'" in weight.err) == (2, True)
    with_force = run("approve", "patients", "1", "--force")
    assert (with_force.code, "--reason" in with_force.err) == (2, True)


def test_nobody_there_is_one_line_without_a_traceback(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("status", "--url", "http://127.0.0.1:1", "--key", "k")
    assert result.code == 1
    assert result.err.startswith("error: no loopline answers at http://127.0.0.1:1")
    assert result.err.count("\n") == 1


def test_debug_shows_where_an_error_came_from() -> None:
    with pytest.raises(Exception, match="no loopline answers"):
        root.run(["status", "--url", "http://127.0.0.1:1", "--key", "k", "--debug"])


# -- projects ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert run("init", "patients").code == 0
    return tmp_path / "patients"


def test_a_new_project_is_whole_and_right(project: Path, run: Any) -> None:
    assert tree.files_of(project) == [
        ".gitignore",
        "README.md",
        "data/README.md",
        "data/patients-test.csv",
        "data/patients.csv",
        "loop.toml",
        "pipeline.py",
        "predict.py",
        "pytest.ini",
        "requirements.txt",
        "tests/test_pipeline.py",
    ]
    assert "{{" not in "".join((project / name).read_text() for name in tree.files_of(project))
    assert problems_of(project) == []
    assert run("check", str(project)).code == 0


def test_a_new_project_runs_with_plain_python_and_passes_its_own_tests(project: Path) -> None:
    pytest.importorskip("sklearn")
    environ = {**os.environ, "PYTHONPATH": str(SOURCE)}
    for argv in (["pipeline.py"], ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]):
        done = subprocess.run(
            [sys.executable, *argv], cwd=project, env=environ, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_init_writes_over_nothing(project: Path, run: Any) -> None:
    before = {name: (project / name).read_bytes() for name in tree.files_of(project)}
    result = run("init", "patients")
    assert result.code == 1 and "nothing was written" in result.err
    assert {name: (project / name).read_bytes() for name in tree.files_of(project)} == before


@pytest.mark.parametrize("name", ["../evil", "a b", ""])
def test_init_refuses_a_name_that_is_none(run: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init", name).code == 2
    assert list(tmp_path.iterdir()) == []


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_check_tells_mistakes_of_every_file(project: Path, run: Any) -> None:
    edit(project / "loop.toml", "steps = [10, 50]", "steps = [50, 10]")
    edit(project / "loop.toml", "penalty = 1.0", "penalti = 1.0")
    edit(project / "predict.py", "def predict(model, batch)", "def predict(model)")
    edit(project / "pipeline.py", "report = evaluate(model, valid)", "report = evaluat(model, valid)")
    result = run("check", str(project), "--json")
    assert result.code == 1
    told = {(problem["file"], problem["key"]): problem["cure"] for problem in result.json["problems"]}
    assert set(told) == {
        ("loop.toml", "rollout.steps[1]"),
        ("pipeline.py", "evaluat"),
        ("predict.py", "predict"),
    }
    assert "'evaluate'" in told["pipeline.py", "evaluat"]
    edit(project / "loop.toml", "steps = [50, 10]", "steps = [10, 50]")
    named = {problem.key: problem.cure for problem in problems_of(project)}
    assert "'penalty'" in named["pipeline.parameters.penalti"]
    (project / "pipeline.py").write_text("def f(:\n")
    assert [p.line for p in problems_of(project) if p.file == "pipeline.py"] == [1]


def test_no_project_is_told_with_a_cure(run: Any, tmp_path: Path) -> None:
    result = run("check", str(tmp_path))
    assert result.code == 2
    assert "loopline init" in result.err


@pytest.mark.usefixtures("signed_in")
def test_apply_changes_once_and_diff_changes_nothing(project: Path, run: Any) -> None:
    first = run("diff", "-C", str(project), "--json").json
    assert [change for change in first["changes"] if change["noun"] == "endpoint"]
    assert run("endpoints", "show", "patients").code == 1
    assert run("apply", "-C", str(project), "--json").json["changes"] != []
    assert run("endpoints", "show", "patients").code == 0
    assert run("apply", "-C", str(project), "--json").json["changes"] == []


@pytest.mark.usefixtures("signed_in")
def test_run_hands_the_working_tree_over_with_its_commit(project: Path, run: Any) -> None:
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    clean = run("run", "-C", str(project), "--json").json
    assert (clean["commit"], clean["dirty"], clean["project"]) == (head, False, "patients")
    (project / "README.md").write_text("changed")
    dirty = run("run", "-C", str(project / "data"), "-p", "penalty=0.5", "--json").json
    assert (dirty["commit"], dirty["dirty"]) == (head, True)
    assert dirty["tree"] != clean["tree"]
    assert dirty["options"]["parameters"] == {"penalty": 0.5}
    late = run("run", "-C", str(project), "--wait", "--timeout", "0.05")
    assert late.code == 4  # nothing moves it on here


def test_the_same_files_make_the_same_tar(project: Path) -> None:
    files = tree.files_of(project)
    first, size = tree.pack(project, files)
    os.utime(project / "loop.toml", (1, 1))
    second, _ = tree.pack(project, files)
    with first, second:
        data = first.read()
        assert len(data) == size
        assert data == second.read()


def test_what_git_ignores_stays_at_home(project: Path) -> None:
    subprocess.run(["git", "-C", str(project), "init", "-q"], check=True)
    (project / "secret.pyc").write_text("x")
    (project / "link").symlink_to("/etc/passwd")
    assert not {"secret.pyc", "link"} & set(tree.files_of(project))


# -- small things -----------------------------------------------------------------------------------------------------


def test_assignments_are_json_where_they_can_be() -> None:
    found = session.assignments(["a=1", "b=x", "c=[1]", "d=a=b", "e=true"])
    assert found == {"a": 1, "b": "x", "c": [1], "d": "a=b", "e": True}
    with pytest.raises(click.BadParameter):
        session.assignments(["a"])


def test_moments_may_be_relative() -> None:
    assert abs(float(session.moment("2h") or 0) - (time.time() - 7200)) < 60
    assert session.moment("2026-01-31T12:00:00Z") == "2026-01-31T12:00:00Z"
    assert session.moment(None) is None


def test_a_project_that_an_outer_repository_ignores_still_has_its_files(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("inner/\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "loop.toml").write_text("[project]\n")
    assert tree.files_of(inner) == ["loop.toml"]
