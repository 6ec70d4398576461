"""Online prediction, side by side: loopline, eight peers at their best settings, and the limits of the machine.

    python benchmarks/serving/run.py [--only loopline,mlflow] [--models logistic] [--seconds 3] [--quick] [--fresh]

Same model, same rows, wrk on one core, each server's whole process tree on another. Prints one table, draws one plot,
ends with one line of JSON. The exit code is 1 when a target is missed or a peer could not be measured (unless it is
named by --skip). What was measured is kept in benchmarks/.venvs/serving-results.json: --only measures these anew and
shows them beside the others, a run that was broken off goes on behind what it has, --fresh begins anew.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import load
from figures import (
    BARE,
    CODE,
    CONNECTIONS,
    FULL,
    LABELS,
    LIMIT,
    MODELS,
    MOST,
    OFF,
    ORDER,
    RIVAL,
    Results,
    missed,
    shares,
    table,
    target_table,
    targets,
)
from installation import Installation
from load import BenchError
from servers import PEERS, PEERS_TABLE, VENVS, Peer, Server, prepare, version

STORE = VENVS / "serving-results.json"
PLOT = VENVS / "serving.svg"
MODEL_FOLDER = VENVS / "serving-data"
WARM_SECONDS = 1
TRIES = 5  # of most connections
LATENCY_TRIES = 3  # of one
OWN = (FULL, BARE, OFF)
AGAIN = (FULL, RIVAL)  # measured once more when all others have been: the promises are about these two
PAIRS = 7  # of runs at one connection, of loopline and that peer in turn
PINNED = ("scikit-learn", "numpy", "joblib", "onnxruntime")


def note(text: str) -> None:
    """Progress, on stderr."""
    print(f"[{os.getloadavg()[0]:.1f}] {text}", file=sys.stderr, flush=True)


def pins() -> dict[str, str]:
    """The versions that loopline's project gets: those of the models' environment."""
    lines = (PEERS / "requirements-models.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line.partition("==")[0] in PINNED)


def make_models() -> dict[str, Any]:
    """Train, unless it is done; gives the payload."""
    python = prepare("models")
    stamp, wanted = (
        MODEL_FOLDER / ".made-by",
        (PEERS / "train.py").read_bytes() + (PEERS / "requirements-models.txt").read_bytes(),
    )
    if not stamp.exists() or stamp.read_bytes() != wanted:
        note("training the models")
        subprocess.run([str(python), str(PEERS / "train.py"), str(MODEL_FOLDER)], check=True)
        stamp.write_bytes(wanted)
    rows: dict[str, Any] = json.loads((MODEL_FOLDER / "rows.json").read_text())
    return rows


class Bench:
    """What is measured in one run."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.seconds, self.warm = options.seconds, min(WARM_SECONDS, options.seconds)
        self.work, self.rows = work, make_models()
        self.sent = 0  # requests of the last `runs`

    def runs(self, given: load.Load, connections: tuple[int, ...] = CONNECTIONS, tries: int = TRIES) -> dict[str, Any]:
        """A warm-up, then each number of connections: the best of so many runs of most, and of some of one."""
        self.sent = load.fire(given, max(connections), self.warm, self.work)["requests"]
        counts = {1: LATENCY_TRIES, MOST: tries}
        return {
            str(each): self.best(each, [self.run(given, each) for _ in range(counts.get(each, 1))])
            for each in connections
        }

    def run(self, given: load.Load, connections: int) -> dict[str, Any]:
        """One run."""
        found = load.fire(given, connections, self.seconds, self.work)
        self.sent += found["requests"]
        return found

    @staticmethod
    def best(connections: int, tries: list[dict[str, Any]]) -> dict[str, Any]:
        """The run that was disturbed least, with the errors of all: by its latency at one connection, by its cost at
        more."""
        errors, costs = sum(tried["errors"] for tried in tries), [round(tried["cpu_us"], 2) for tried in tries]
        least = min(tries, key=lambda run: run["p50_ms" if connections == 1 else "cpu_us"])
        run = {**least, "errors": errors, "tries_us": costs}
        note(
            f"    {connections:3} connections: {run['rps']:9,.0f}/s, p50 {run['p50_ms']:.2f} ms, {run['cpu_us']:.1f} us"
        )
        return run

    def peer(self, peer: Peer, model: str) -> dict[str, Any]:
        """One peer with one model."""
        try:
            server = Server(peer, MODEL_FOLDER / model, self.rows, self.work)
        except BenchError as error:
            note(f"    once more, because {error}")
            server = Server(peer, MODEL_FOLDER / model, self.rows, self.work)
        try:
            return {"cold_s": server.cold_seconds, "pss_mb": load.pss_mb(), "runs": self.runs(server.load)}
        finally:
            server.stop()

    def own(self, model: str) -> dict[str, dict[str, Any]]:
        """loopline with everything on, without what watches, and with nothing that can be switched off."""
        installation = Installation(MODEL_FOLDER / model, self.rows, pins(), self.work)
        try:
            cold = installation.cold_start()
            full = {"cold_s": cold, "pss_mb": load.pss_mb(), "runs": self.runs(installation.load, tries=1)}
            full["pairs"] = self.pairs(installation, model)
            full["drift_rows"] = installation.watched_rows()
            found: dict[str, list[dict[str, Any]]] = {FULL: [full["runs"][str(MOST)]], OFF: [], BARE: []}
            for turn in range(TRIES):  # in turn, because machines have better and worse minutes
                for name in (FULL, OFF, BARE):
                    if turn or name != FULL:
                        installation.set(capture=name == FULL, auth=name != BARE)
                        installation.watch(name == FULL)
                        found[name].append(self.run(installation.load, MOST))
                        installation.watch(True)
                        load.wait_until_quiet()
            installation.check_counted(self.sent)
            full["runs"][str(MOST)] = self.best(MOST, found[FULL])
            off = {"runs": {str(MOST): self.best(MOST, found[OFF])}}
            installation.set(capture=False, auth=False)
            installation.watch(False)
            bare = {"pss_mb": load.pss_mb(), "runs": self.runs(installation.load, tries=1)}
            bare["runs"][str(MOST)] = self.best(MOST, [bare["runs"][str(MOST)], *found[BARE]])
            installation.watch(True)
            return {FULL: full, BARE: bare, OFF: off}
        finally:
            installation.stop()

    def pairs(self, installation: Installation, model: str) -> list[list[float]]:
        """Median latencies in ms at one connection, loopline's and the leanest peer's, of runs one right after the
        other: what both have to bear from the machine is the same."""
        peer = next(peer for peer in PEERS_TABLE if peer.name == RIVAL)
        rival = Server(peer, MODEL_FOLDER / model, self.rows, self.work)
        try:
            load.fire(rival.load, 1, self.warm, self.work)
            found = []
            for _ in range(PAIRS):
                with rival.paused():  # a library's idle threads may spin
                    own = self.run(installation.load, 1)
                other = load.fire(rival.load, 1, self.seconds, self.work)
                found.append([own["p50_ms"], other["p50_ms"]])
        finally:
            rival.leave()
        own_ms, other_ms = (min(column) for column in zip(*found, strict=True))
        note(f"    in pairs: p50 {own_ms:.3f} ms, {LABELS[RIVAL]} {other_ms:.3f} ms")
        return found

    def own_code(self, model: str) -> dict[str, Any]:
        """loopline with everything on, where the project's own code predicts."""
        installation = Installation(MODEL_FOLDER / model, self.rows, pins(), self.work, own_code=True)
        try:
            found = {"pss_mb": load.pss_mb(), "runs": self.runs(installation.load)}
            installation.check_counted(self.sent)
            return found
        finally:
            installation.stop()

    def limit(self, model: str) -> dict[str, Any]:
        """The model alone, and what reading a request and writing its answer cost alone."""
        environ = {
            **os.environ,
            "BENCH_MODEL": str(MODEL_FOLDER / model),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        command = [str(prepare("models")), str(PEERS / "bare.py"), str(MODEL_FOLDER / "rows.json"), str(self.seconds)]
        done = subprocess.run(load.pinned(command), check=True, capture_output=True, text=True, env=environ)
        found = json.loads(done.stdout)
        command = [sys.executable, str(PEERS / "codec.py"), str(MODEL_FOLDER / "rows.json"), str(self.seconds)]
        done = subprocess.run(load.pinned(command), check=True, capture_output=True, text=True)
        codec = json.loads(done.stdout)["cpu_us"]
        return {"runs": {"1": found["1"]}, "us_per_row_of_64": found["64"]["cpu_us"], "codec_us": codec}


def measure(bench: Bench, model: str, name: str) -> dict[str, dict[str, Any]]:
    """{server: what was measured, or why it was not}."""
    doing: Callable[[], dict[str, dict[str, Any]]]
    if name == FULL:
        doing = lambda: bench.own(model)  # noqa: E731
    elif name == CODE:
        doing = lambda: {CODE: bench.own_code(model)}  # noqa: E731
    elif name == LIMIT:
        doing = lambda: {LIMIT: bench.limit(model)}  # noqa: E731
    else:
        peer = next(peer for peer in PEERS_TABLE if peer.name == name)
        doing = lambda: {name: bench.peer(peer, model)}  # noqa: E731
    note(f"{model}: {LABELS[name]}")
    try:
        found = doing()
    except (BenchError, OSError, subprocess.SubprocessError) as error:
        note(f"    not measured: {error}")
        found = {each: {"failed": str(error)} for each in (OWN if name == FULL else (name,))}
    return {each: {**result, "at": time.time(), "seconds": bench.seconds} for each, result in found.items()}


def better(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What was measured of one server, of two measurements: of each number of connections the run that was disturbed
    less, with the errors of both. What failed once has failed."""
    for found in (before, now):
        if "runs" not in found:
            return {**found, "times": 2}
    pairs = {each: (before["runs"][each], now["runs"][each]) for each in now["runs"]}
    runs = {
        each: {**_better_run(each, pair), "errors": sum(run["errors"] for run in pair)} for each, pair in pairs.items()
    }
    least = {name: min(before[name], now[name]) for name in ("cold_s", "pss_mb") if name in now}
    pairs = {"pairs": before.get("pairs", []) + now["pairs"]} if "pairs" in now else {}
    return {**now, **least, **pairs, "runs": runs, "times": 2}


def _better_run(connections: str, runs: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return min(runs, key=lambda run: run["p50_ms" if connections == "1" else "cpu_us"])


def plan(options: argparse.Namespace, stored: Results) -> list[tuple[str, str, bool]]:
    """(model, server, whether for the second time) in the order of measuring: one model after the other, and at its end
    those of ``AGAIN``."""
    names = [name for name in ORDER if name not in (BARE, OFF)]
    wanted = [name for name in names if (not options.only or name in options.only) and name not in options.skip]
    found = []
    for model in options.models:
        for name in wanted:
            peer = next((peer for peer in PEERS_TABLE if peer.name == name), None)
            if peer is not None and peer.limit and model != MODELS[0]:
                continue  # it knows no model
            if options.only or "runs" not in stored.get(f"{model}/{name}", {}):
                found.append((model, name, False))
        for name in AGAIN:
            if name in wanted and (options.only or stored.get(f"{model}/{name}", {}).get("times") != 2):
                found.append((model, name, True))
    return found


def draw(results: Results) -> None:
    """The plot."""
    values: dict[str, dict[str, float]] = {}
    for key, found in results.items():
        model, _, name = key.partition("/")
        run = found.get("runs", {}).get(str(MOST))
        if run is not None and name != OFF:
            values.setdefault(model, {})[name] = 1e6 / run["cpu_us"]
    if not values:
        return
    data = PLOT.with_suffix(".json")
    ordered = {model: values[model] for model in MODELS if model in values}
    data.write_text(json.dumps({"values": ordered, "order": ORDER, "labels": LABELS, "connections": MOST}))
    subprocess.run([str(prepare("models")), str(Path(__file__).parent / "plot.py"), str(data), str(PLOT)], check=True)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    names = lambda text: [part for part in text.split(",") if part]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", type=names, default=[], help=f"of {', '.join(n for n in ORDER if n not in (BARE, OFF))}"
    )
    parser.add_argument("--skip", type=names, default=[], help="do not measure these")
    parser.add_argument("--models", type=names, default=list(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--seconds", type=int, default=3, help="of each run")
    parser.add_argument("--quick", action="store_true", help="1 second a run, the logistic regression alone")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    options = parser.parse_args()
    if options.seconds < 1:
        parser.error("--seconds is 1 or more: wrk knows whole seconds only")
    if options.quick:
        options.seconds, options.models = 1, [MODELS[0]]
    for given, known in ((options.only + options.skip, ORDER), (options.models, MODELS)):
        for name in given:
            if name not in known:
                parser.error(f"there is no {name!r}; there are {', '.join(known)}")
    return options


def main() -> int:
    """Measure, print, and say by the exit code whether everything holds."""
    options = arguments()
    try:
        load.require_wrk()
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    load.adopt_orphans()
    VENVS.mkdir(exist_ok=True)
    kept = json.loads(STORE.read_text()) if STORE.exists() and not options.fresh else {}
    broken_off = kept.get("complete") is False
    results: Results = kept.get("results", {}) if broken_off or options.only else {}
    whole = not broken_off if options.only else False  # until a run of everything has come to its end
    doing = plan(options, results)
    before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        bench = Bench(options, Path(place))
        for model, name, again in doing:
            for each, found in measure(bench, model, name).items():
                key = f"{model}/{each}"
                results[key] = better(results[key], found) if again else found
            STORE.write_text(json.dumps({"complete": whole, "results": results}))
    if not options.only:
        STORE.write_text(json.dumps({"complete": True, "results": results}))
    return report(results, [f"{model}/{name}" for model, name, again in doing if not again], before)


def report(results: Results, wanted: list[str], before: tuple[float, float, float]) -> int:
    """The table, the plot, the line of JSON; gives the exit code."""
    found = missed(results, wanted)
    versions = {
        name: version(name) for name in ("fastapi", "mlflow", "bentoml", "litserve", "mlserver", "kserve", "ray")
    }
    print(f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}")
    print(f"wrk on core {load.CLIENT_CORE}, the servers on core {load.SERVER_CORE}")
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    print(f"load average {before[0]:.2f} before, {os.getloadavg()[0]:.2f} after\n")
    print(table(results))
    print()
    print(target_table(results))
    print()
    print("\n".join(shares(results)))
    draw(results)
    print(f"\nplot: {PLOT}")
    print()
    result = {
        "benchmark": "serving",
        "met": not found,
        "missed": found,
        "targets": {
            f"{t.model}/{t.key}": {"value": t.value, "least": t.least, "met": t.met, "judged": t.judged, "asks": t.asks}
            for t in targets(results)
        },
        "results": results,
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "peers": versions,
    }
    print(json.dumps(result))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
