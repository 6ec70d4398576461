"""Projects with mistakes in them, and steps that misbehave: each is told, and nothing is half done."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from loopline.runtime import sandbox
from loopline.testing.live import Platform, until

LOOP = '[project]\nname = "trouble"\n[model]\nname = "trouble"\n'
ONE_STEP = """
from loopline import pipeline, register, step

@step
def fit():
    return {{"limit": 1.0}}
{extra}
@pipeline
def training():
{body}
"""
DAEMON = f"hostile-daemon-{os.getpid()}"
TROUBLE = '''
import os, pathlib, subprocess, sys, threading, time
from loopline import pipeline, register, step

def raises():
    numbers = {"a": 1}
    return numbers["b"]

def hangs():
    time.sleep(600)

def forks():
    """Daemons as careful ones are made: forked twice, in a session of their own, deaf to SIGTERM, with no open file."""
    code = (
        "import os, signal, time\\n"
        "if os.fork(): os._exit(0)\\n"
        "os.setsid()\\n"
        "if os.fork(): os._exit(0)\\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n"
        "os.closerange(0, 64)\\n"
        "time.sleep(600)\\n"
    )
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code, "hostile-daemon"], check=True)
    return {"pid": os.getpid()}

def floods():
    line = "x" * 1023 + "\\n"
    for _ in range(4096):
        sys.stdout.write(line)
    return {"written": 4096}

def eats():
    held = []
    while True:
        held.append(bytearray(16 << 20))

def wanders():
    found = {}
    for name, mode in (
        ("{outside}", "ab"), ("{data}/loopline.db", "ab"), ("{data}/client.json", "rb"), ("{data}/snapshot.json", "ab"),
        ("{data}/run/control.sock", "rb"), ("{data}/planted", "ab"), ("{home}/.planted", "ab"),
    ):
        try:
            pathlib.Path(name).open(mode).close()
            found[name] = "opened"
        except OSError as error:
            found[name] = type(error).__name__
    print("wandered", set(found.values()), flush=True)
    return found

def lock():
    return threading.Lock()

def generator():
    return (n for n in range(3))

def recursive():
    found = []
    found.append(found)
    return found

def scribbles():
    """Writes what is no event into its own spool."""
    folder = os.environ["LOOPLINE_JOB_FOLDER"]
    with open(folder + "/events", "ab") as file:
        for line in (
            b"not json", b"[]", b"1", b'{"kind": "metric"}', b"\\xff\\xfe", b"[" * 100_000,
            b'{"kind":"metric","key":"a","value":1,"step":1e999,"at":1}',
            b'{"kind":"metric","key":"a","value":1,"step":99999999999999999999,"at":1}',
            b'{"kind":"metric","key":"","value":1,"step":1,"at":1}',
            b'{"kind":"metric","key":"\\\\ud800","value":1,"step":1,"at":1}',
            b'{"kind":"metric","key":"\\\\u0000","value":1,"step":1,"at":1}',
            b'{"kind":"metric","key":"a","value":' + b"9" * 400 + b',"step":1,"at":1}',
            b'{"kind":"metric","key":"a","value":1,"step":1,"at":1e999}',
            b'{"kind":"param","key":"p","value":"\\\\ud800"}',
            b'{"kind":"param","key":"q","value":NaN}',
            b'{"kind":"artifact","path":"../../../../../../etc/passwd","media_type":"text/plain"}',
            b'{"kind":"artifact","path":"/etc/passwd"}',
            b'{"kind":"metric","key":"good","value":7,"step":1,"at":1}',
        ):
            file.write(line + b"\\n")
    return 1

def links():
    """Leaves links to what it may not read where its artifacts and outputs are taken from."""
    folder = pathlib.Path(os.environ["LOOPLINE_JOB_FOLDER"])
    (folder / "outputs" / "artifacts").mkdir(parents=True, exist_ok=True)
    os.symlink("/etc/passwd", folder / "outputs" / "artifacts" / "passwd")
    os.symlink("/etc", folder / "outputs" / "artifacts" / "etc")
    with open(folder / "events", "a") as file:
        file.write('{"at":1,"kind":"artifact","path":"passwd","media_type":"text/plain"}\\n')
        file.write('{"at":1,"kind":"artifact","path":"etc/hostname","media_type":"text/plain"}\\n')
    return 1

def exits():
    sys.exit(3)

def dies():
    os.kill(os.getpid(), 11)

def quits():
    os._exit(0)

def mumbles():
    raise ValueError("half \\ud800 of \\0 it")

def hides():
    folder = pathlib.Path(os.environ["LOOPLINE_JOB_FOLDER"], "outputs", "artifacts")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (b"\\xff\\xfe", b"new\\nline"):
        open(os.fsencode(folder) + b"/" + name, "wb").close()
    os.mkfifo(folder / "pipe")
    (folder / "good").write_text("good")
    return 1

@step(cache=False, timeout_seconds=LIMIT, limits={"memory_mb": 256})
def trouble(how: str):
    return globals()[how]()

@step(cache=False)
def after(found):
    return found

@pipeline
def training(how: str = "raises"):
    after(trouble(how=how))
'''


def project(**files: str) -> dict[str, str]:
    return {
        "loop.toml": LOOP,
        "pipeline.py": ONE_STEP.format(extra="", body="    register(fit())"),
        "predict.py": "def load(d): return 1\ndef predict(m, batch): return [1] * len(batch)\n",
        "requirements.txt": "",
        **{name.replace("_", "."): text for name, text in files.items()},
    }


# -- the file ---------------------------------------------------------------------------------------------------------

FILES = {
    "syntax": ('[project]\nname = trouble\n[model]\nname = "trouble"\n', 2, "quotes"),
    "an unknown key": (LOOP + "[gate]\nmetrik = 1\n", 6, "metric"),
    "an unknown table": (LOOP + "[gates]\n", 5, "gate"),
    "a wrong type": (LOOP + "[rollout]\nbake_seconds = 'soon'\n", 6, "number"),
    "a number out of range": (LOOP + "[gate]\nalpha = 7\n", 6, "between|below"),
    "a missing table": ('[project]\nname = "trouble"\n', 1, "model"),
    "a name that climbs": ('[project]\nname = "../../etc"\n[model]\nname = "trouble"\n', 2, "letters"),
    "data that is not there": (LOOP + '[data.a]\npath = "../outside.csv"\n', 6, ""),
    "not a number": (LOOP + "[endpoint]\nname = 'trouble'\ncapture = nan\n", 7, ""),
}


@pytest.mark.parametrize(("text", "line", "cure"), FILES.values(), ids=list(FILES))
def test_a_mistake_in_the_file_is_told_with_its_line_and_cure_and_nothing_is_applied(
    platform: Platform, text: str, line: int, cure: str
) -> None:
    before = platform.call("GET", "/api/events?limit=1")["items"]
    tree = platform.upload(project(loop_toml=text))
    for path in ("/api/projects", "/api/projects/diff", "/api/pushes"):
        error = platform.ask("POST", path, {"tree": tree}).error
        assert error["code"] == "invalid_input"
        assert f"loop.toml:{line}: " in error["message"], error
        problem = next(p for p in error["details"]["problems"] if p["line"] == line)
        assert problem["cure"], problem
        assert any(word in problem["message"] + problem["cure"] for word in cure.split("|")), problem
    assert platform.call("GET", "/api/events?limit=1")["items"] == before
    assert platform.ask("GET", "/api/projects/trouble").status in (200, 404)


def test_the_command_line_exits_2_with_file_line_and_cure(platform: Platform, tmp_path: Path) -> None:
    for name, content in project(loop_toml=LOOP + "[gate]\nalpha = 7\nmetrik = 1\n").items():
        (tmp_path / name).write_text(content)
    before = platform.call("GET", "/api/events?limit=1")["items"]
    for verb in ("apply", "diff", "run"):
        told = platform.cli(verb, "-C", str(tmp_path))
        assert told.returncode == 2, told
        assert "loop.toml:6: " in told.stderr and "loop.toml:7: " in told.stderr, told.stderr
        assert "Traceback" not in told.stderr and told.stdout == ""
    told = platform.cli("check", str(tmp_path))
    assert told.returncode == 1 and "loop.toml:6: error:" in told.stdout
    assert platform.call("GET", "/api/events?limit=1")["items"] == before


# -- the code ---------------------------------------------------------------------------------------------------------

CODE = {
    "a cycle": (
        {
            "pipeline_py": ONE_STEP.format(
                extra="@step\ndef a(x=1): return x\n@step\ndef b(x=1): return x\n",
                body="    first = a()\n    second = b(first)\n    first.after(second)\n    register(fit())",
            )
        },
        "cycle|circle",
    ),
    "a step after itself": (
        {
            "pipeline_py": ONE_STEP.format(
                extra="", body="    found = fit()\n    found.after(found)\n    register(found)"
            )
        },
        "cycle|circle|itself",
    ),
    "a package that does not exist": (
        {"requirements_txt": "loopline-there-is-no-such-package==1.0\n"},
        "loopline-there-is-no-such-package",
    ),
    "a URL for a package": (
        {"requirements_txt": "# ours\nours @ https://evil.example/ours-1.0.tar.gz\n"},
        "line 2.*URL",
    ),
    "an option for the installer": ({"requirements_txt": "--index-url https://evil.example/simple\n"}, "line 1"),
    "a package from a folder": ({"requirements_txt": "-e ../../elsewhere\n"}, "line 1"),
    "a package with a shell in it": ({"requirements_txt": "numpy; $(touch /tmp/x)\n"}, "line 1"),
    "a module that is not there": (
        {"pipeline_py": "import nowhere_to_be_found\n" + ONE_STEP.format(extra="", body="    register(fit())")},
        "nowhere_to_be_found.*pipeline.py:1|pipeline.py:1.*nowhere_to_be_found",
    ),
    "no Python": ({"pipeline_py": "def training(:\n"}, r"SyntaxError.*pipeline\.py.*line 1"),
    "no pipeline": ({"pipeline_py": "x = 1\n"}, "@pipeline|no pipeline"),
    "code that exits": ({"pipeline_py": "import os\nos._exit(0)\n"}, "compile.*before it had written"),
    "a folder for a file": ({"pipeline_py/a.py": "x = 1\n"}, "pipeline.py"),
}


def test_mistakes_in_the_code_reject_the_push_saying_where(platform: Platform) -> None:
    def push(files: dict[str, str]) -> dict[str, Any]:
        wanted = project(**files)
        if "pipeline.py/a.py" in wanted:
            del wanted["pipeline.py"]
        answer = platform.ask("POST", "/api/pushes", {"tree": platform.upload(wanted)})
        if answer.status == 400:
            return {"status": "Rejected", "reason": answer.error["message"], "execution": None}
        return platform.ended("push", answer.json["id"])

    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(push, [files for files, _ in CODE.values()]))
    for (name, (_, wanted)), row in zip(CODE.items(), ended, strict=True):
        assert (row["status"], row["execution"]) == ("Rejected", None), (name, row["status"], row["reason"])
        assert re.search(wanted, row["reason"], re.DOTALL | re.IGNORECASE), (name, row["reason"])
        assert "Traceback" not in row["reason"], (name, row["reason"])
    assert not platform.call("GET", "/api/executions?project=trouble")["items"]


# -- the steps --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ended(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each kind of trouble: the execution with its steps."""
    outside = tmp_path_factory.mktemp("outside") / "written"
    code = TROUBLE.replace("{outside}", str(outside)).replace("{data}", str(platform.folder))
    code = code.replace("{home}", str(Path.home())).replace("hostile-daemon", DAEMON)
    short, long = (platform.upload(project(pipeline_py=code.replace("LIMIT", limit))) for limit in ("5", "300"))
    hows = ("raises", "hangs", "forks", "floods", "eats", "wanders", "lock", "generator", "recursive")
    hows += ("scribbles", "links", "exits", "dies", "quits", "mumbles", "hides")

    def one(how: str) -> dict[str, Any]:
        push = platform.call(
            "POST",
            "/api/pushes",
            {"tree": short if how == "hangs" else long, "parameters": {"how": how}, "delivery": f"how {how}"},
        )
        push = platform.ended("push", push["id"], 300)
        assert push["status"] == "Started", push
        return platform.ended("execution", push["execution"], 600)

    with ThreadPoolExecutor(len(hows)) as pool:
        found = dict(zip(hows, pool.map(one, hows), strict=True))
    found["outside"] = {"path": str(outside)}
    return found


def step_of(execution: dict[str, Any], name: str = "trouble") -> dict[str, Any]:
    return next(step for step in execution["steps"] if step["name"] == name)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raises", ("KeyError", "'b'", "pipeline.py:7")),
        ("hangs", ("limit of 5 s", "time")),
        ("eats", ("memory",)),
        ("lock", ("lock", "result")),
        ("generator", ("generator", "result")),
        ("exits", ("3",)),
        ("dies", ("signal 11",)),
        ("quits", ("before it had written its result",)),
        ("mumbles", ("ValueError", "half")),
    ],
)
def test_a_step_that_fails_says_why_and_what_needs_it_is_skipped(
    ended: dict[str, dict[str, Any]], how: str, words: tuple[str, ...]
) -> None:
    execution = ended[how]
    failed = step_of(execution)
    assert (execution["status"], failed["status"]) == ("Failed", "Failed"), failed
    for word in words:
        assert word in failed["reason"], failed["reason"]
    assert "trouble" in execution["reason"], execution["reason"]
    assert step_of(execution, "after")["status"] == "Skipped"


def test_what_cannot_be_stored_as_json_is_stored_or_refused_and_never_half(ended: dict[str, dict[str, Any]]) -> None:
    execution = ended["recursive"]
    failed = step_of(execution)
    if execution["status"] == "Failed":
        assert "result" in failed["reason"], failed["reason"]
    else:
        assert (execution["status"], failed["status"]) == ("Succeeded", "Succeeded")


def test_daemons_of_a_step_are_gone_when_it_has_ended(ended: dict[str, dict[str, Any]]) -> None:
    assert ended["forks"]["status"] == "Succeeded", step_of(ended["forks"])["reason"]
    left = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and DAEMON.encode() in (entry / "cmdline").read_bytes():
                left.append(entry.name)
        except OSError:
            continue
    assert left == []


def test_a_flood_of_output_is_cut_and_the_step_goes_on(platform: Platform, ended: dict[str, dict[str, Any]]) -> None:
    assert ended["floods"]["status"] == "Succeeded", step_of(ended["floods"])["reason"]
    path = f"/api/executions/{ended['floods']['id']}/steps/trouble/log"
    kept = platform.call("GET", path + "?limit=1048576")
    assert kept["size_bytes"] < (1 << 20) + 4096 if "size_bytes" in kept else len(kept["text"]) <= (1 << 20)
    sizes = [log.stat().st_size for log in (platform.folder / "attempts").glob("*/log")]
    assert max(sizes, default=0) < (1 << 20) + 4096


@pytest.mark.skipif(not sandbox.landlock_abi(), reason="this kernel holds no files back")
def test_a_step_that_leaves_its_folder_is_held(platform: Platform, ended: dict[str, dict[str, Any]]) -> None:
    assert ended["wanders"]["status"] == "Succeeded", step_of(ended["wanders"])["reason"]
    path = f"/api/executions/{ended['wanders']['id']}/steps/trouble/log"
    assert "wandered {'PermissionError'}" in platform.call("GET", path)["text"]
    places = (Path(ended["outside"]["path"]), platform.folder / "planted", Path.home() / ".planted")
    assert [str(place) for place in places if place.exists()] == []


def test_what_a_step_scribbles_into_its_spool_is_not_taken(
    platform: Platform, ended: dict[str, dict[str, Any]]
) -> None:
    assert ended["scribbles"]["status"] == "Succeeded", step_of(ended["scribbles"])["reason"]
    run = platform.call("GET", f"/api/runs/{step_of(ended['scribbles'])['run']}")
    assert {key: last["value"] for key, last in run["metrics"].items()} == {"good": 7}
    assert not [item for item in run["artifacts"] if "passwd" in item["path"]]


def test_links_that_a_step_leaves_are_not_followed(platform: Platform, ended: dict[str, dict[str, Any]]) -> None:
    run = platform.call("GET", f"/api/runs/{step_of(ended['links'])['run']}")
    for item in run["artifacts"]:
        answer = platform.ask("GET", f"/api/runs/{run['id']}/artifacts/{item['path']}")
        assert b"root:" not in answer.body, item
    assert not [item for item in run["artifacts"] if "hostname" in item["path"]]


def test_a_file_with_a_name_that_cannot_be_told_is_left_out(
    platform: Platform, ended: dict[str, dict[str, Any]]
) -> None:
    assert ended["hides"]["status"] == "Succeeded", step_of(ended["hides"])["reason"]
    run = platform.call("GET", f"/api/runs/{step_of(ended['hides'])['run']}")
    assert [item["path"] for item in run["artifacts"]] == ["trouble/good"]


def test_nothing_of_all_that_is_left_behind(platform: Platform, ended: dict[str, dict[str, Any]]) -> None:
    def running() -> list[Any]:
        jobs = platform.call("GET", "/api/jobs?limit=1000")["items"]
        return [job for job in jobs if job["status"] not in ("Succeeded", "Failed", "Stopped")]

    until(lambda: not running(), "no job runs any more")
    assert platform.call("GET", "/api/audit/verify")["valid"]
    ids = [execution["id"] for how, execution in ended.items() if how != "outside"]
    assert len(set(ids)) == len(ids)
    assert platform.predict({"size": 3.0}).json == {"predictions": ["large"]}
