"""A pipeline run here and now, in one process: the steps, their files and their digests are those of the platform.

Every step gets a folder of its own with ``outputs``, ``outputs.json`` and ``events``; the next step loads its inputs
from there. Timeouts are kept on the main thread; limits are the sandbox's and are not.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from . import job, steps, tracking, values

Outputs = dict[str, dict[str, dict[str, Any]]]


class LocalRun:
    """How a run ended: ``status`` (Succeeded, Failed), ``folder``, each step's status, reason and manifest."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.status = "Running"
        self.message: str | None = None
        self.statuses: dict[str, str] = {}
        self.reasons: dict[str, str] = {}
        self.outputs: Outputs = {}

    def value(self, step: str, output: str | None = None) -> Any:
        """What a step gave (its only output, or the named one), loaded."""
        manifest = self.outputs[step]
        entry = manifest[output or next(iter(manifest))]
        return entry["value"] if "value" in entry else values.load(entry["path"], entry["format"], [], None)


class StepFailed(Exception):
    """A step's last attempt failed; the cause is what it raised."""


class StepTimeout(Exception):
    """A step ran longer than its ``timeout_seconds``."""


def run_from_command_line(pipeline: Any, argv: list[str]) -> LocalRun:
    """Run with ``--PARAMETER VALUE``, ``--asset NAME=PATH`` and ``--folder PATH``; ends the program when it fails."""
    import argparse

    parser = argparse.ArgumentParser(description=pipeline.__doc__, prog=os.path.basename(pipeline.file))
    parser.add_argument("--asset", action="append", default=[], metavar="NAME=PATH", help="where a data asset is")
    parser.add_argument("--folder", metavar="PATH", help="where results go")
    for item in pipeline.parameters():
        text = f"{item['type']}, default {item['default']!r}" if "default" in item else item["type"]
        parser.add_argument(f"--{item['name']}", f"--{item['name'].replace('_', '-')}", dest=item["name"], help=text)
    options = vars(parser.parse_args(argv))
    assets = {}
    for pair in options.pop("asset"):
        name, equals, path = pair.partition("=")
        if not equals:
            parser.error(f"--asset {pair}: write --asset NAME=PATH")
        assets[name] = path
    folder = options.pop("folder")
    given = {name: text for name, text in options.items() if text is not None}
    try:
        return run(pipeline, given, assets=assets, folder=folder, text=True)
    except ValueError as error:  # PipelineError is one, and so is a run that failed
        sys.exit(f"{os.path.basename(pipeline.file)}: {error}")


def run(
    pipeline: Any, given: Mapping[str, Any], *, assets: Mapping[str, Any], folder: Any = None, text: bool = False
) -> LocalRun:
    """Run a pipeline; see ``Pipeline.run``. ``text``: parameters come from a command line."""
    pipeline = _importable(pipeline)
    sdk = sys.modules[type(pipeline).__module__]
    parameters = _parameters(sdk, pipeline, given, text)
    trace = pipeline.trace()
    compiled = pipeline.compile(os.path.basename(pipeline.file), trace)
    project = os.path.dirname(os.path.abspath(pipeline.file))
    home = os.path.abspath(os.fspath(folder)) if folder else os.path.join(project, ".loopline-local")
    found = _find_assets(sdk, trace, project, assets)
    runner = _Runner(
        compiled=compiled,
        trace=trace,
        parameters=parameters,
        assets=found,
        folder=_new_folder(home),
        home=home,
        model_name=_model_name(project) or pipeline.name,
    )
    result = runner.run()
    if result.status == "Failed":
        failure = sdk.PipelineError(result.message)
        failure.run = result
        raise failure from runner.cause
    return result


def _importable(pipeline: Any) -> Any:
    """The same pipeline of the file imported by name, when it runs as ``__main__``: pickles then name a real module."""
    if pipeline.__module__ != "__main__" or not os.path.isfile(pipeline.file):
        return pipeline
    folder, file = os.path.split(os.path.abspath(pipeline.file))
    return job.find_pipeline(job.load_file(folder, file), file, pipeline.name)


def _parameters(sdk: Any, pipeline: Any, given: Mapping[str, Any], text: bool) -> dict[str, Any]:
    known = {item["name"]: item for item in pipeline.parameters()}
    for name in given:
        if name not in known:
            takes = ", ".join(f"{item['name']} ({item['type']})" for item in known.values()) or "none"
            raise sdk.PipelineError(f"{pipeline.name} has no parameter {name!r}; it takes {takes}")
    for name, item in known.items():
        if name not in given and "default" not in item:
            raise sdk.PipelineError(f"{pipeline.name} needs the parameter {name!r} ({item['type']})")
    return {
        name: sdk.parse_parameter(item, given[name], text=text) if name in given else item["default"]
        for name, item in known.items()
    }


def _find_assets(sdk: Any, trace: Any, project: str, given: Mapping[str, Any]) -> dict[str, str]:
    wanted = {leaf["asset"]["name"] for node in trace.nodes.values() for leaf in node.leaves() if "asset" in leaf}
    found = {}
    for name in sorted(wanted):
        if name in given:
            path = os.path.abspath(os.fspath(given[name]))
            candidates = [path] if os.path.exists(path) else []
        else:
            data = os.path.join(project, "data")
            names = sorted(os.listdir(data)) if os.path.isdir(data) else []
            candidates = [os.path.join(data, each) for each in names if os.path.splitext(each)[0] == name]
        if len(candidates) != 1:
            there = f"several files fit ({', '.join(map(os.path.basename, candidates))})" if candidates else "no file"
            cure = f"assets={{{name!r}: 'path'}} or --asset {name}=path"
            raise sdk.PipelineError(f"the data asset {name!r}: {there} in data/{name}.*; say where it is with {cure}")
        found[name] = candidates[0]
    return found


def _model_name(project: str) -> str | None:
    """The project's model, of ``loop.toml``."""
    if not os.path.isfile(f"{project}/loop.toml"):
        return None
    import tomllib

    with open(f"{project}/loop.toml", "rb") as file:
        name: str | None = tomllib.load(file).get("model", {}).get("name")
    return name


def _new_folder(home: str) -> str:
    os.makedirs(f"{home}/runs", exist_ok=True)
    with open(f"{home}/.gitignore", "w", encoding="utf-8") as file:
        file.write("*\n")
    number = 1 + max((int(name) for name in os.listdir(f"{home}/runs") if name.isdecimal()), default=0)
    folder = f"{home}/runs/{number}"
    os.makedirs(folder)
    return folder


# -- the run ----------------------------------------------------------------------------------------------------------


class _Runner:
    def __init__(
        self,
        *,
        compiled: dict[str, Any],
        trace: Any,
        parameters: dict[str, Any],
        assets: dict[str, str],
        folder: str,
        home: str,
        model_name: str,
    ) -> None:
        self.compiled, self.trace, self.parameters, self.assets = compiled, trace, parameters, assets
        self.home, self.model_name, self.result = home, model_name, LocalRun(folder)
        self.results: dict[str, bool] = {}
        self.cause: BaseException | None = None

    def run(self) -> LocalRun:
        """Step by step: a trace lists each step after those whose values it takes, ``after`` may point further on."""
        waiting = {step["name"]: step for step in self.compiled["steps"]}
        needs = {name: node.needs() for name, node in self.trace.nodes.items()}
        while waiting:
            name = next(name for name in waiting if not needs[name] & waiting.keys())
            step = waiting.pop(name)
            reason = self._why_not(step, needs[name])
            if reason:
                self._end(name, "Skipped", reason)
            else:
                self._attempt(step)
        failed = [name for name, status in self.result.statuses.items() if status == "Failed"]
        self.result.status = "Failed" if failed else "Succeeded"
        if failed:
            self.result.message = f"{failed[0]}: {self.result.reasons[failed[0]]}"
        return self.result

    def _why_not(self, step: dict[str, Any], needs: set[str]) -> str | None:
        for parent in step["parents"]:
            if self.results.get(parent["step"], parent["branch"]) is not parent["branch"]:
                return f"{parent['step']} was {'false' if parent['branch'] else 'true'}"
        for need in sorted(needs):
            if self.result.statuses[need] != "Succeeded":
                return f"{need} {'failed' if self.result.statuses[need] == 'Failed' else 'was skipped'}"
        return None

    def _end(self, name: str, status: str, reason: str = "") -> None:
        self.result.statuses[name] = status
        if reason:
            self.result.reasons[name] = reason
        sys.stderr.write(f"[{name}] {status}{f': {reason}' if reason else ''}\n")

    def _attempt(self, step: dict[str, Any]) -> None:
        name = step["name"]
        kinds = {"job": self._job, "condition": self._condition, "register": self._register, "fail": self._fail}
        began = time.monotonic()
        try:
            manifest, said = kinds[step["kind"]](step)
        except Exception as error:  # noqa: BLE001 - a failing step ends itself, what does not need it goes on
            self.cause = self.cause or error.__cause__ or error
            self._end(name, "Failed", str(error) or type(error).__name__)
            return
        self.result.outputs[name] = manifest
        self._end(name, "Succeeded", said or f"{time.monotonic() - began:.2f} s")

    def _value(self, value: dict[str, Any]) -> Any:
        """What a value stands for, as JSON or, for a whole output, loaded."""
        if "value" in value:
            return value["value"]
        if "list" in value:
            return [self._value(item) for item in value["list"]]
        if "dict" in value:
            return {key: self._value(item) for key, item in value["dict"].items()}
        ref = value["ref"]
        if "parameter" in ref:
            return self.parameters[ref["parameter"]]
        entry = self.result.outputs[ref["step"]][ref["output"]]
        if entry["format"] != "json":
            raise ValueError(f"{ref['step']}.{ref['output']}: the output is {entry['format']}, not JSON")
        found = values.load(entry["path"], "json", [], None) if "value" not in entry else entry["value"]
        for part in ref.get("path", ()):
            try:
                found = found[part]
            except (KeyError, IndexError, TypeError):
                raise ValueError(f"{ref['step']}.{ref['output']} has no [{part!r}]") from None
        return found

    def _argument(self, value: dict[str, Any]) -> dict[str, Any]:
        """A value as a job's call has it."""
        if "list" in value:
            return {"list": [self._argument(item) for item in value["list"]]}
        if "dict" in value:
            return {"dict": {key: self._argument(item) for key, item in value["dict"].items()}}
        if "asset" in value:
            return {"input": {"path": self.assets[value["asset"]["name"]], "format": "asset", "select": []}}
        ref = value.get("ref", {})
        if "step" in ref:
            entry = self.result.outputs[ref["step"]][ref["output"]]
            if "value" not in entry:
                place = {"path": entry["path"], "format": entry["format"], "select": ref.get("path", [])}
                return {"input": place}
            return {"value": self._value(value), "given": False}
        return {"value": self._value(value)}

    def _job(self, step: dict[str, Any]) -> tuple[dict[str, Any], str]:
        call = {
            "arguments": {name: self._argument(value) for name, value in step["arguments"].items()},
            "outputs": step["outputs"],
            "baseline": step["baseline"],
        }
        function = self.trace.functions[step["function"]]
        for attempt in range(1, step["retries"] + 2):
            folder = f"{self.result.folder}/{step['name']}/{attempt}"
            os.makedirs(f"{folder}/outputs")
            os.makedirs(f"{folder}/work")
            try:
                with _inside(folder), _time_limit(step["timeout_seconds"]):
                    manifest = steps.execute(function, json.loads(json.dumps(call)), folder)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                if attempt > step["retries"]:
                    raise StepFailed(said) from error
                sys.stderr.write(f"[{step['name']}] attempt {attempt} failed: {said}\n")
                time.sleep(step["backoff_seconds"] * 2 ** (attempt - 1))
            else:
                job.write_manifest(manifest, folder)
                return {name: {**entry, "path": f"{folder}/{entry['path']}"} for name, entry in manifest.items()}, ""
        raise AssertionError("a step has at least one attempt")

    def _condition(self, step: dict[str, Any]) -> tuple[dict[str, Any], str]:
        answer = holds(step["condition"], self._value)
        self.results[step["name"]] = answer
        return {"result": {"format": "json", "value": answer}}, str(answer).lower()

    def _register(self, step: dict[str, Any]) -> tuple[dict[str, Any], str]:
        ref = step["model"]["ref"]
        manifest = self.result.outputs[ref["step"]]
        name = str(self._value(step["model_name"])) if "model_name" in step else self.model_name
        number, folder = _next_version(f"{self.home}/models/{name.replace('/', '_')}")
        for each, entry in (("model", manifest[ref["output"]]), *_beside(manifest)):
            _keep(each, entry, folder)
        told = {key: self._value(step[key]) for key in ("metrics", "status", "description", "tags") if key in step}
        version = {"name": name, "version": number, "status": told.get("status", "PendingManualApproval")}
        with open(f"{folder}/version.json", "w", encoding="utf-8") as file:
            json.dump({**told, **version, "sha256": manifest[ref["output"]]["sha256"]}, file, indent=1)
        return {"version": {"format": "json", "value": version}}, f"{name}:{number} in {folder}"

    def _fail(self, step: dict[str, Any]) -> tuple[dict[str, Any], str]:
        raise StepFailed(" ".join(str(self._value(part)) for part in step["message"]))


def holds(condition: dict[str, Any], value: Callable[[dict[str, Any]], Any]) -> bool:
    """Whether a condition holds, as ``loopline.domain.calls`` says. Raises ``ValueError`` when sides do not compare."""
    op = condition["op"]
    if op == "not":
        return not holds(condition["of"][0], value)
    if op in ("and", "or"):
        answers = (holds(part, value) for part in condition["of"])
        return all(answers) if op == "and" else any(answers)
    left, right = value(condition["left"]), value(condition["right"])
    if op in ("eq", "ne"):
        return _equal(left, right) is (op == "eq")
    if op == "in":
        if not isinstance(right, list):
            raise ValueError(f"{right!r} is no list to look for {left!r} in")
        return any(_equal(left, item) for item in right)
    numbers = all(isinstance(side, int | float) and not isinstance(side, bool) for side in (left, right))
    if not numbers and not (isinstance(left, str) and isinstance(right, str)):
        raise ValueError(f"{left!r} and {right!r} have no order: compare two numbers or two texts")
    return bool({"lt": left < right, "le": left <= right, "gt": left > right, "ge": left >= right}[op])


def _equal(left: Any, right: Any) -> bool:
    return isinstance(left, bool) is isinstance(right, bool) and bool(left == right)


@contextmanager
def _inside(folder: str) -> Iterator[None]:
    """Work in ``folder/work`` and report to ``folder``, as a job does."""
    before, reported = os.getcwd(), os.environ.get(tracking.FOLDER_VARIABLE)
    os.chdir(f"{folder}/work")
    tracking.enter(folder)
    try:
        yield
    finally:
        os.chdir(before)
        if reported is None:
            del os.environ[tracking.FOLDER_VARIABLE]
        else:
            tracking.enter(reported)


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(*_: object) -> None:
        raise StepTimeout(f"it ran longer than its limit of {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _beside(manifest: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, manifest[name]) for name in ("baseline", "signature") if name in manifest]


def _next_version(folder: str) -> tuple[int, str]:
    os.makedirs(folder, exist_ok=True)
    number = 1 + max((int(name) for name in os.listdir(folder) if name.isdecimal()), default=0)
    os.makedirs(f"{folder}/{number}")
    return number, f"{folder}/{number}"


def _keep(name: str, entry: dict[str, Any], folder: str) -> None:
    """Lay a version's file down as the platform does: a model in ``model/``, an estimator as ``model/model.joblib``."""
    target = f"{folder}/model" if name == "model" else folder
    os.makedirs(target, exist_ok=True)
    if entry["format"] == "folder":
        shutil.copytree(entry["path"], target, dirs_exist_ok=True)
    else:
        suffix = os.path.splitext(entry["path"])[1]
        own = entry["format"] == "file"
        shutil.copyfile(entry["path"], f"{target}/{os.path.basename(entry['path']) if own else name + suffix}")
