"""Environments: what may be required, what a lock is, and that a build is whole or not there."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from loopline.compute.environments import RECORD, Environments, parse_requirements
from loopline.errors import InvalidInput, LooplineError, Timeout, Unavailable

# One small wheel without dependencies, put together here, so that no test needs an index.
NAME = "loopline_probe"


def make_wheel(folder: Path, version: str, body: str = "ANSWER = 42\n") -> None:
    import zipfile

    folder.mkdir(exist_ok=True)
    info = f"{NAME}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{NAME}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{NAME}.py", body)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/entry_points.txt", f"[console_scripts]\nloopline-probe = {NAME}:main\n")
        record = [f"{NAME}.py,,", f"{info}/METADATA,,", f"{info}/WHEEL,,", f"{info}/entry_points.txt,,"]
        wheel.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,"]) + "\n")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is the only index, and a uv cache of the test's own."""
    folder = tmp_path / "wheels"
    make_wheel(folder, "1.0", "ANSWER = 42\ndef main():\n    print(ANSWER)\n")
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def environments(tmp_path: Path, wheels: Path) -> Environments:
    return Environments(tmp_path / "environments")


def whole(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "locks")


def test_a_project_around_the_data_directory_says_nothing_about_environments(
    tmp_path: Path, environments: Environments
) -> None:
    (tmp_path / "pyproject.toml").write_text("this is not TOML")
    (tmp_path / "uv.toml").write_text('nonsense = "yes"')
    lock = environments.lock(NAME)
    assert environments.build(environments.key(lock), lock).python.exists()


def test_requirements_are_normalised_and_comments_dropped() -> None:
    text = "# top\n\nnumpy == 2.4.0  # why\n  pandas[parquet]>=3,<4 ; python_version > '3.9'\nurl#notacomment\n"
    with pytest.raises(InvalidInput, match="line 5"):
        parse_requirements(text)
    found = parse_requirements(text.rsplit("\n", 2)[0])
    assert found == ["numpy==2.4.0", 'pandas[parquet]<4,>=3; python_version > "3.9"']
    assert parse_requirements("") == parse_requirements("\n# nothing\n") == []


@pytest.mark.parametrize(
    ("line", "cure"),
    [
        ("--index-url https://example.org/simple", "administrator"),
        ("-r other.txt", "options"),
        ("-e .", "editable"),
        ("--editable=git+https://example.org/x", "editable"),
        ("git+https://example.org/x.git", "package and a version"),
        ("numpy @ https://example.org/numpy.whl", "package and a version"),
        ("numpy@file:///etc/passwd", "package and a version"),
        ("https://example.org/a.whl", "package and a version"),
        ("./local", "package and a version"),
        ("../up", "package and a version"),
        ("/abs/path.whl", "package and a version"),
        ("local-1.0-py3-none-any.whl", "package and a version"),
        ("numpy==1.0 --hash=sha256:00", "hashes"),
        ("numpy==1.0 \\", "hashes"),
        ("numpy==", "package and a version"),
        ("numpy; rm -rf /", "package and a version"),
        ("$(id)", "package and a version"),
    ],
)
def test_what_is_no_requirement_is_refused_with_line_and_cure(line: str, cure: str) -> None:
    with pytest.raises(InvalidInput, match=r"line 2: ") as failure:
        parse_requirements(f"packaging\n{line}\n")
    assert cure in failure.value.message


def test_a_lock_pins_and_hashes(environments: Environments) -> None:
    lock = environments.lock("loopline-probe>=0.5\n")
    assert lock.startswith("loopline-probe==1.0 \\\n    --hash=sha256:")


def test_a_text_that_was_locked_keeps_its_lock_without_any_index(
    environments: Environments, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = environments.lock("loopline-probe\n")
    make_wheel(wheels, "2.0")
    monkeypatch.setattr(environments, "uv", "/no/such/uv")
    assert environments.lock("# same\nloopline-probe  \n") == first
    monkeypatch.undo()


def test_a_refresh_resolves_anew(environments: Environments, wheels: Path) -> None:
    assert "==1.0" in environments.lock("loopline-probe\n")
    make_wheel(wheels, "2.0")
    assert "==2.0" in environments.lock("loopline-probe\n", refresh=True)
    assert "==2.0" in environments.lock("loopline-probe\n")


def test_constraints_of_the_administrator_hold(
    tmp_path: Path, environments: Environments, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(wheels, "2.0", "ANSWER = 43\ndef main():\n    print(ANSWER)\n")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("loopline-probe<2\n")
    monkeypatch.setenv("UV_CONSTRAINT", str(constraints))

    assert "==1.0" in environments.lock("loopline-probe\n")


def test_a_requirement_that_cannot_be_met_tells_what_uv_said(environments: Environments) -> None:
    with pytest.raises(InvalidInput, match="loopline-probe"):
        environments.lock("loopline-probe==9\n")


def test_an_unreachable_index_is_told_as_such(environments: Environments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_NO_INDEX")
    monkeypatch.delenv("UV_FIND_LINKS")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(Unavailable, match="index"):
        environments.lock("loopline-probe\n")


def test_no_requirements_still_make_an_environment_of_its_own(environments: Environments) -> None:
    assert environments.lock("\n# nothing\n") == ""
    built = environments.build(environments.key(""), "")
    script = "import sys; print(sys.prefix != sys.base_prefix, sys.prefix)"
    said = subprocess.run([built.python, "-I", "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["True", str(built.path)]
    assert sys.prefix not in (str(built.path), said)
    check = subprocess.run([built.python, "-I", "-c", "import numpy"], capture_output=True, check=False)
    assert check.returncode != 0


def test_a_built_environment_works_where_it_was_moved_to(environments: Environments) -> None:
    lock = environments.lock("loopline-probe\n")
    key = environments.key(lock)
    assert environments.find(key) is None
    built = environments.build(key, lock)
    assert environments.find(key) == built
    assert (built.path, built.lock_hash) == (environments.folder / key, key)
    assert built.seconds > 0 and built.size_mb > 0
    said = subprocess.run([built.path / "bin" / "loopline-probe"], capture_output=True, text=True, check=True).stdout
    assert said == "42\n"
    assert list(built.path.glob(f"lib/*/site-packages/__pycache__/{NAME}.*.pyc"))
    assert whole(environments.folder) == [key]


def test_a_second_build_is_the_first_one(environments: Environments, monkeypatch: pytest.MonkeyPatch) -> None:
    built = environments.build(environments.key(""), "")
    monkeypatch.setattr(environments, "uv", "/no/such/uv")
    assert environments.build(environments.key(""), "") == built


def test_builders_at_the_same_time_build_once(environments: Environments) -> None:
    lock = environments.lock("loopline-probe\n")
    key = environments.key(lock)
    found = []
    threads = [threading.Thread(target=lambda: found.append(environments.build(key, lock))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1  # the seconds of one build
    assert whole(environments.folder) == [key]


def test_a_failed_build_leaves_nothing_and_tells_uvs_last_lines(environments: Environments, wheels: Path) -> None:
    lock = environments.lock("loopline-probe\n").replace("sha256:", "sha256:0000")
    with pytest.raises(InvalidInput, match="hash") as failure:
        environments.build(environments.key(lock), lock)
    assert len(failure.value.message.splitlines()) <= 21
    assert whole(environments.folder) == []


def test_a_package_whose_bytes_changed_after_the_lock_is_not_installed(
    environments: Environments, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = environments.lock("loopline-probe\n")
    make_wheel(wheels, "1.0", "ANSWER = 666\n")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "another-cache"))
    with pytest.raises(LooplineError):
        environments.build(environments.key(lock), lock)
    assert whole(environments.folder) == []


def test_a_build_that_takes_too_long_is_ended(tmp_path: Path, wheels: Path) -> None:
    environments = Environments(tmp_path / "environments", build_seconds=0.001)
    with pytest.raises(Timeout):
        environments.build(environments.key(""), "")
    assert whole(environments.folder) == []


def test_what_a_killed_builder_left_is_cleared_and_built_anew(environments: Environments) -> None:
    key = environments.key("")
    (environments.folder / f".{key}-dead" / "environment").mkdir(parents=True)
    environments.build(key, "")
    assert whole(environments.folder) == [key]


def test_an_environment_without_its_record_is_not_found(environments: Environments) -> None:
    built = environments.build(environments.key(""), "")
    (built.path / RECORD).write_text(json.dumps({"seconds": 1})[:-3])
    assert environments.find(built.lock_hash) is None


def test_keys_differ_by_lock_and_are_checked(environments: Environments) -> None:
    assert environments.key("a==1\n") != environments.key("a==2\n")
    with pytest.raises(InvalidInput):
        environments.build(environments.key("a==1\n"), "a==2\n")
    for name in ("../x", "", "a" * 63, "A" * 64):
        with pytest.raises(InvalidInput):
            environments.find(name)


def test_removing_takes_the_whole_environment(environments: Environments) -> None:
    built = environments.build(environments.key(""), "")
    environments.remove(built.lock_hash)
    assert environments.find(built.lock_hash) is None
    assert whole(environments.folder) == []


def test_a_build_does_not_see_the_platforms_secrets(
    environments: Environments, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOOPLINE_SECRET", "hunter2")
    spy = tmp_path / "environments" / "uv"
    spy.write_text(f"#!/bin/sh\nenv\ncat {tmp_path}/secret\nexit 1\n")
    spy.chmod(0o755)
    (tmp_path / "secret").write_text("s3cret")
    monkeypatch.setattr(environments, "uv", str(spy))
    with pytest.raises(InvalidInput) as failure:
        environments.lock("loopline-probe\n")
    assert "TMPDIR=" in failure.value.message
    assert "hunter2" not in failure.value.message and "PYTEST" not in failure.value.message
    if "denied" not in failure.value.message:
        pytest.skip("this kernel has no Landlock: only the environment was checked")
    assert "s3cret" not in failure.value.message
