"""A user's program by the contract of a training or processing container: folders, files, variables, exit.

Each host is a process with ``/opt/ml`` and ``/tmp`` of its own where the kernel allows that; elsewhere the variables
say where the folders are. This process only looks on: it passes what they print to the log, reads metrics from it, and
keeps what they leave. Sources: ENVIRONMENT_VARIABLES.md of aws/sagemaker-training-toolkit; docs.aws.amazon.com, "How
Amazon SageMaker Runs Your Training Image" and "How Amazon SageMaker Runs Your Processing Container Image".
"""

# Pathlib would cost every job milliseconds to import.
# ruff: noqa: PTH101, PTH103, PTH104, PTH112, PTH118, PTH120, PTH122, PTH123

import json
import os
import re
import select
import signal
import sys
import time
from typing import Any, NoReturn

from . import contract, launch, mounts, sandbox, tracking

ROOT = "/opt/ml"
TMP = "/tmp"  # noqa: S108 - replaced by a folder of the program's own before it is used
FOLDERS = ("code", "model", "input/config", "input/data", "output/data", "output/metrics/cloudwatch", "processing")
CHUNK_BYTES = 65536
MAX_LINE_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 4096
DRAIN_TURNS = 1024
CANNOT_START = 127
# Containers install packages when they begin, and some entry points do nothing else before the program.
PIP = """import sys
sys.stdout.write(
    f"[loopline] pip {' '.join(sys.argv[1:])}: packages are installed before a program begins: "
    "list them in requirements.txt beside the code\\n"
)
sys.exit(not {"-r", "--requirement", "uninstall", "--version"} & set(sys.argv))
"""
PIP_COMMAND = """#!/bin/sh
exec python3 -m pip "$@"
"""


class AlgorithmError(RuntimeError):
    """The program failed; the message is its own, from the failure file, where it left one."""


class ProgramKilled(AlgorithmError):
    """A signal ended the program: no error of its own telling."""


class Host:
    """One process of the program: its number, its folders, and the pipes from it."""

    def __init__(self, folder: str, number: int) -> None:
        self.number = number
        self.name = f"algo-{number + 1}"
        self.home = f"{folder}/work/{self.name}"
        self.base = f"{self.home}/ml"
        self.pid = 0
        self.output = -1
        self.notes = -1
        self.status: int | None = None
        self.held = b""


def main(folder: str, spec: dict[str, Any]) -> int:
    """Run the program of an attempt's folder to its end, and keep what it left; 0 when it succeeded.

    Raises ``AlgorithmError`` when it failed. It is called before this process is confined, since mounts come first.
    """
    call = spec["call"]
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    hosts = [Host(folder, number) for number in range(call["hosts"])]
    for host in hosts:
        _lay_out(host, call)
    for host in hosts:
        _start(folder, spec, host, hosts)
    sandbox.drop_capabilities()
    launch.tell({"layers": launch.confine(folder, spec, None)})
    tracking.enter(folder)
    for text in call["warnings"]:
        _say(text)
    metrics = _Metrics(call["metrics"])
    _attend(hosts, metrics)
    notes = _notes(hosts)
    _check(hosts, stopped=bool(ended))
    _keep(folder, call, hosts, metrics, notes)
    return 0


# -- before it begins -------------------------------------------------------------------------------------------------


def _lay_out(host: Host, call: dict[str, Any]) -> None:
    """Make a host's folders: the code and the channels are moved there, the configuration is written."""
    for name in FOLDERS:
        os.makedirs(f"{host.base}/{name}", mode=0o700, exist_ok=True)
    for number, entry in enumerate(call["laid"]):
        if entry["host"] == host.number:
            _move(call["inputs"][str(number)], f"{host.base}/{entry['to']}")
    for path in call["outputs"].values():
        os.makedirs(f"{host.base}/{path}", mode=0o700, exist_ok=True)
    for name in ("pip", "pip3"):
        _write_program(f"{host.home}/bin/{name}", PIP_COMMAND)
    _write_program(f"{host.home}/packages/pip/__main__.py", PIP)
    resources = contract.resources(call, host.number)
    if call["contract"] == "processing":
        os.makedirs(f"{host.base}/config", mode=0o700, exist_ok=True)
        _write(f"{host.base}/config/processingjobconfig.json", call["processing_config"])
        _write(f"{host.base}/config/resourceconfig.json", resources)
    _write(f"{host.base}/input/config/hyperparameters.json", call["hyperparameters"])
    _write(f"{host.base}/input/config/inputdataconfig.json", call["input_config"])
    _write(f"{host.base}/input/config/resourceconfig.json", resources)


def _move(source: str, target: str) -> None:
    """Put a folder that was laid out for this attempt where the program looks for it; several may share one."""
    os.makedirs(target, mode=0o700, exist_ok=True)
    for directory, _, files in os.walk(source):
        place = os.path.normpath(os.path.join(target, os.path.relpath(directory, source)))
        os.makedirs(place, mode=0o700, exist_ok=True)
        for file in files:
            os.rename(f"{directory}/{file}", f"{place}/{file}")


def _write_program(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o700)


def _write(path: str, value: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file)


# -- the process of a host --------------------------------------------------------------------------------------------


def _start(folder: str, spec: dict[str, Any], host: Host, hosts: list[Host]) -> None:
    host.output, output = os.pipe()
    host.notes, notes = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    host.pid = os.fork()
    if host.pid == 0:
        for other in hosts:
            for descriptor in (other.output, other.notes):
                if descriptor >= 0:
                    os.close(descriptor)
        _become(folder, spec, host, output, notes)
    os.close(output)
    os.close(notes)
    os.set_blocking(host.output, False)


def _become(folder: str, spec: dict[str, Any], host: Host, output: int, notes: int) -> NoReturn:
    """Turn this forked process into the program. Never returns."""
    try:
        for number in (signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(output, 1)
        os.dup2(output, 2)
        root, scratch, why = _own_root(folder, spec, host)
        os.write(notes, json.dumps({"why": why}).encode())
        os.close(notes)
        sandbox.drop_capabilities()
        wanted = spec.get("sandbox") or {}
        own = {**wanted, "write": [*(wanted.get("write") or ()), root, *filter(None, [scratch])]}
        launch.confine(folder, {**spec, "sandbox": own}, None)
        environ = _environment(folder, spec, host, root)
        environ |= {"TMPDIR": scratch} if scratch else {}
        argv = _argv(spec, root)
        os.chdir(f"{root}/code")
        os.execvpe(argv[0], argv, environ)  # noqa: S606 - words, never a shell's text
    except BaseException as failure:  # noqa: BLE001 - the process ends here, and the log has to say why
        os.write(2, f"[loopline] the program could not be started: {failure}\n".encode())
    finally:
        os._exit(CANNOT_START)


def _own_root(folder: str, spec: dict[str, Any], host: Host) -> tuple[str, str | None, str | None]:
    """Where the program's folders are for it; its ``/tmp``, if it has one of its own; why it has no ``/opt/ml``."""
    try:
        mounts.detach()
        if os.path.isdir(ROOT):
            mounts.show(host.base, ROOT)
        else:
            mounts.show_below(host.base, ROOT, f"{host.home}/opt")
        _name_hosts(host, spec["call"])
        if _is_needed(TMP, folder, spec):
            return ROOT, None, None
        mounts.replace(TMP, f"{host.home}/scratch", [])
    except OSError as failure:
        return host.base, None, f"{failure.strerror or failure}"
    return ROOT, TMP, None


def _is_needed(place: str, folder: str, spec: dict[str, Any]) -> bool:
    """Whether a folder holds what the program needs: its own folders, its interpreter, its packages.

    What is granted of a folder is granted of all that is mounted below it.
    """
    given = (spec.get("environ") or {}).get("PYTHONPATH", "").split(":")
    paths = [folder, launch.HERE, str(spec["python"]), os.path.realpath(str(spec["python"])), sys.base_prefix, *given]
    paths += [str(path) for path in (spec.get("sandbox") or {}).get("read") or ()]
    return any(f"{path}/".startswith(f"{place}/") for path in paths)


def _name_hosts(host: Host, call: dict[str, Any]) -> None:
    """Let the hosts' names mean this machine."""
    with open("/etc/hosts", encoding="utf-8", errors="replace") as file:
        known = file.read()
    path = f"{host.home}/hosts"
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{known.rstrip()}\n127.0.0.1 {' '.join(contract.names(call))}\n")
    mounts.show(path, "/etc/hosts")


def _argv(spec: dict[str, Any], root: str) -> list[str]:
    """The words that are executed. Paths below ``/opt/ml`` become those of ``root``."""
    call = spec["call"]
    if call["entrypoint"]:
        words = [*call["entrypoint"], *call["words"]]
    else:
        program = call["program"]
        runner = {".py": [str(spec["python"])], ".sh": ["/bin/bash"]}.get(os.path.splitext(program)[1], [])
        words = [*runner, program if runner else f"./{program}", *contract.arguments(call), *call["words"]]
    return [_placed(word, root) for word in words]


def _placed(word: str, root: str) -> str:
    return root + word[len(ROOT) :] if word == ROOT or word.startswith(f"{ROOT}/") else word


def _environment(folder: str, spec: dict[str, Any], host: Host, root: str) -> dict[str, str]:
    """Every variable of the program: the job's, the author's, and those of the contract."""
    call = spec["call"]
    found = launch.environment(spec, folder)
    found["PATH"] = f"{host.home}/bin:{found['PATH']}"
    if root != ROOT:
        found["SAGEMAKER_BASE_DIR"] = root
    paths = [f"{root}/code", f"{host.home}/packages", found.get("PYTHONPATH", "")]
    found["PYTHONPATH"] = ":".join(filter(None, paths))
    found[tracking.FOLDER_VARIABLE] = folder
    variables = contract.variables(call, host.number, root)
    found |= {name: value if isinstance(value, str) else json.dumps(value) for name, value in variables.items()}
    return found


# -- while it runs ----------------------------------------------------------------------------------------------------


class _Metrics:
    """Reads metrics from lines: the first group of each match is the number."""

    def __init__(self, definitions: list[list[str]]) -> None:
        self._patterns = [(name, re.compile(pattern)) for name, pattern in definitions]
        self.last: dict[str, float] = {}
        self.times: dict[str, float] = {}

    def read(self, line: str) -> None:
        for name, pattern in self._patterns:
            for match in pattern.finditer(line):
                try:
                    value = float(match.group(1) if pattern.groups else match.group(0))
                except (ValueError, TypeError):
                    continue
                tracking.log_metric(name, value)
                self.last[name], self.times[name] = value, time.time()


def _attend(hosts: list[Host], metrics: _Metrics) -> None:
    """Pass on what the hosts print until all have ended, or one has failed."""
    poller = select.poll()
    handles = {os.pidfd_open(host.pid): host for host in hosts}
    outputs = {host.output: host for host in hosts}
    for descriptor in (*handles, *outputs):
        poller.register(descriptor, select.POLLIN)
    while any(host.status is None for host in hosts) and not any(host.status for host in hosts):
        for descriptor, _ in poller.poll():
            if descriptor in handles:
                host = handles[descriptor]
                host.status = os.waitpid(host.pid, 0)[1]
                poller.unregister(descriptor)
            elif not _read(outputs[descriptor], metrics, many=len(hosts) > 1):
                poller.unregister(descriptor)
    for host in hosts:
        for _ in range(DRAIN_TURNS):
            if not _read(host, metrics, many=len(hosts) > 1, last=True):
                break
        _pass(host, b"\n" if host.held else b"", metrics, many=len(hosts) > 1)


def _read(host: Host, metrics: _Metrics, *, many: bool, last: bool = False) -> bool:
    """Take one piece of a host's output; False when there is no more, or (``last``) none now."""
    try:
        data = os.read(host.output, CHUNK_BYTES)
    except BlockingIOError:
        return not last
    if data:
        _pass(host, data, metrics, many=many)
    return bool(data)


def _pass(host: Host, data: bytes, metrics: _Metrics, *, many: bool) -> None:
    """Write whole lines to the log, marked with the host where there are several, and read them for metrics."""
    lines = (host.held + data).split(b"\n")
    host.held = lines.pop()
    if len(host.held) > MAX_LINE_BYTES:
        lines.append(host.held)
        host.held = b""
    mark = f"[{host.name}] ".encode() if many else b""
    if lines:
        _put(b"".join(mark + line + b"\n" for line in lines))
    for line in lines:
        metrics.read(line.decode("utf-8", "replace"))


def _put(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _say(text: str) -> None:
    _put(f"[loopline] {text}\n".encode())


# -- when it has ended ------------------------------------------------------------------------------------------------


def _notes(hosts: list[Host]) -> list[str]:
    """What the hosts' processes noted before they became the program."""
    found = []
    for host in hosts:
        data = os.read(host.notes, CHUNK_BYTES)
        note = json.loads(data) if data else {}
        if note.get("why"):
            found.append(
                f"{host.name} has no {ROOT} of its own ({note['why']}): SM_ variables and SAGEMAKER_BASE_DIR say where "
                "its folders are"
            )
    return found


def _check(hosts: list[Host], *, stopped: bool) -> None:
    """Raise ``AlgorithmError`` when a host failed; one that was told to end may end as it likes."""
    if stopped:
        return
    for host in hosts:
        if host.status:
            code = os.waitstatus_to_exitcode(host.status)
            how = f"exit code: {code}" if code >= 0 else f"killed by signal {-code}"
            kind = AlgorithmError if code >= 0 else ProgramKilled
            raise kind(", ".join(filter(None, [_text(f"{host.base}/output/failure"), how])))


def _text(path: str) -> str:
    """A short text that the program left, or nothing."""
    try:
        with open(path, "rb") as file:
            return file.read(MAX_MESSAGE_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _keep(folder: str, call: dict[str, Any], hosts: list[Host], metrics: _Metrics, notes: list[str]) -> None:
    """Leave what the program left as the outputs of the job: ``report``, ``model``, ``output``, ``files.NAME``."""
    from . import job, leftovers, values

    for text in notes:
        _say(text)
    report = {
        "metrics": metrics.last,
        "metric_times": metrics.times,
        "message": next((text for text in (_text(f"{host.base}/output/message") for host in hosts) if text), None),
        "warnings": notes,
    }
    manifest = {"report": values.save("report", report, folder)}
    bases = [host.base for host in hosts]
    if call["contract"] == "training":
        for name, place in (("model", "model"), ("output", "output/data")):
            entry = leftovers.pack(folder, name, [f"{base}/{place}" for base in bases], say=_say)
            manifest |= {name: entry} if entry else {}
    for name, place in call["outputs"].items():
        manifest[f"files.{name}"] = leftovers.gather(folder, f"files.{name}", [f"{base}/{place}" for base in bases])
    job.write_manifest(manifest, folder)
