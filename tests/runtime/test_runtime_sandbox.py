"""The sandbox in processes of its own: what it forbids, what it reports, and that it never opens what was shut."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from loopline.compute.subprocess import RUNTIME
from loopline.runtime import sandbox
from loopline.runtime.watch import largest_bytes, written_bytes


def inside(script: str) -> str:
    environ = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", "import os, resource\nfrom loopline.runtime import sandbox\n" + script]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environ).stdout.strip()


def test_every_layer_is_reported_and_asking_changes_nothing() -> None:
    before = Path("/proc/self/status").read_text().split("NoNewPrivs:")[1].split()[0]
    layers = sandbox.layers()
    names = ["rlimits", "no_new_privs", "no_capabilities", "landlock_files", "landlock_network", "landlock_signals"]
    assert [layer["name"] for layer in layers] == names
    assert {layer["name"]: layer["holds"] for layer in layers}["landlock_files"] == (sandbox.landlock_abi() > 0)
    json.dumps(layers)
    assert Path("/proc/self/status").read_text().split("NoNewPrivs:")[1].split()[0] == before


def test_a_kernel_without_landlock_is_said_so_and_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "landlock_abi", lambda: 0)
    assert sandbox.confine(["/"], []) == []
    assert not any(layer["holds"] for layer in sandbox.layers() if layer["name"].startswith("landlock"))


def test_limits_are_set_and_never_raised() -> None:
    said = inside("""
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 60))
sandbox.limit({"open_files": 4000, "cpu_seconds": 1.2, "disk_mb": 2, "memory_mb": 10})
print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CPU)[0],
      resource.getrlimit(resource.RLIMIT_FSIZE)[0], resource.getrlimit(resource.RLIMIT_CORE))
""")
    assert said == f"(60, 60) 2 {2 * 1048576} (0, 0)"


def test_no_limit_is_set_that_was_not_asked_for() -> None:
    said = inside("sandbox.limit({}); print(resource.getrlimit(resource.RLIMIT_FSIZE))")
    assert said == str(resource.getrlimit(resource.RLIMIT_FSIZE))


def test_privileges_are_forbidden_for_good() -> None:
    said = inside("sandbox.forbid_new_privileges(); print(open('/proc/self/status').read())")
    assert "NoNewPrivs:\t1" in said


@pytest.mark.skipif(sandbox.landlock_abi() < 1, reason="this kernel has no Landlock")
def test_a_second_confinement_cannot_open_what_the_first_shut(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    said = inside(f"""
sandbox.forbid_new_privileges()
sandbox.confine([], [])
sandbox.confine([], [{str(tmp_path)!r}])
try: print(open({str(tmp_path / "secret")!r}).read())
except PermissionError: print("denied")
""")
    assert said == "denied"


LOOK = """
for name in ("environ", "mem", "maps"):
    try: print(len(open("/proc/%d/" + name, "rb").read(100)))
    except OSError: print("denied")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only a privileged user has capabilities to give up")
def test_a_job_of_root_cannot_look_into_the_platform() -> None:
    shut = "sandbox.forbid_new_privileges()\nsandbox.drop_capabilities()\nsandbox.confine([], [])\n"
    assert inside(shut + LOOK % os.getpid()).split() == ["denied"] * 3
    assert inside(
        shut + "import subprocess\nprint(subprocess.check_output(['grep', '^Cap', '/proc/self/status']))"
    ).count("0000000000000002") in (2, 3)
    assert "denied" not in inside(LOOK % os.getpid() + "print(sandbox._capabilities())").split()[:1]


def test_a_hidden_process_cannot_be_looked_into_without_privileges() -> None:
    """The looker is a process of the same user that gave its capabilities up."""
    script = f"""
import subprocess, sys
sandbox.hide()
pid = os.getpid()
look = "from loopline.runtime import sandbox; sandbox.forbid_new_privileges(); sandbox.drop_capabilities()"
look += {LOOK!r} % pid
print(subprocess.check_output([sys.executable, "-c", look], text=True))
"""
    assert inside(script).split() == ["denied"] * 3


@pytest.mark.skipif(sandbox.landlock_abi() < 1, reason="this kernel has no Landlock")
def test_a_confined_program_runs_with_its_arguments_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir()
    script = 'echo "$0"; echo x > file && cat file; ls ../shut || exit 9'
    (tmp_path / "open").mkdir()
    command = [sys.executable, "-I", str(RUNTIME / "confined.py"), "--write", str(tmp_path / "open"), "--"]
    done = subprocess.run(
        [*command, "/bin/sh", "-c", script, "--write"],
        cwd=tmp_path / "open",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("--write\nx\n", 9)


def test_written_bytes_count_an_inode_once_and_holes_not(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "data").write_bytes(b"x" * 1_000_000)
    os.link(tmp_path / "sub" / "data", tmp_path / "link")
    (tmp_path / "loop").symlink_to(tmp_path)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 33)
    used = written_bytes([str(tmp_path), str(tmp_path / "sub"), "/no/such/folder"])
    assert 1_000_000 <= used < 1_100_000
    assert largest_bytes([str(tmp_path)]) == 1 << 33
