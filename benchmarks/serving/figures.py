"""What was measured against what was promised: the table, the targets, the plot's data."""

from dataclasses import dataclass
from typing import Any

from servers import PEERS_TABLE

CONNECTIONS = (1, 16, 64)
MODELS = ("logistic", "boosting", "network")
FULL, BARE, OFF, CODE, LIMIT = "loopline", "loopline-bare", "loopline-off", "loopline-code", "predict"
ECHO, DOCUMENT, RIVAL = "echo", "fastapi-document", "fastapi-tuned"
LABELS = {
    FULL: "loopline: key, capture, metrics, drift",
    BARE: "loopline: no key, no capture, no monitor",
    OFF: "loopline: key, no capture, no monitor",
    CODE: "loopline: predict.py, everything on",
    LIMIT: "limit: the model alone, 1 row a call",
    **{peer.name: peer.label for peer in PEERS_TABLE},
}
ORDER = (FULL, BARE, OFF, CODE, *(peer.name for peer in PEERS_TABLE), LIMIT)
DISTURBED = 0.1  # cores busy with something else
REACH = 0.5  # a ratio to a peer that asks for more of the limit than this is shown, and not judged
MOST = 64

Results = dict[str, dict[str, Any]]  # "model/server" -> what was measured, or {"failed": why}


@dataclass(frozen=True)
class Target:
    """A promise about one model and what came of it; ``value`` None: what it compares was not measured.

    ``asks``: the share of the limit at which the value would be ``least``, where the limit is known and the promise is
    a ratio to a peer.
    """

    model: str
    key: str
    label: str
    least: float
    value: float | None
    asks: float | None = None

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.value is not None and self.value >= self.least

    @property
    def judged(self) -> bool:
        """Whether it counts: it was measured, and the limit leaves room for more than the model and HTTP."""
        return self.value is not None and (self.asks is None or self.asks <= REACH)


def _cpu(results: Results, model: str, server: str) -> float | None:
    found = results.get(f"{model}/{server}", {}).get("runs", {}).get(str(MOST))
    return None if found is None else float(found["cpu_us"])


def _p50(results: Results, model: str, server: str) -> float | None:
    found = results.get(f"{model}/{server}", {}).get("runs", {}).get("1")
    return None if found is None else float(found["p50_ms"])


def _latency(results: Results, model: str) -> float | None:
    """The fastest peer's median latency at one connection divided by loopline's. The leanest peer is measured in pairs
    with loopline, because the others are far from both, and a machine's minutes differ more than these two."""
    pairs = results.get(f"{model}/{FULL}", {}).get("pairs")
    peers = [peer.name for peer in PEERS_TABLE if not peer.limit and not (pairs and peer.name == RIVAL)]
    others = min((p50 for name in peers if (p50 := _p50(results, model, name)) is not None), default=None)
    found = [ratio for ratio in (_ratio(others, _p50(results, model, FULL)),) if ratio is not None]
    if pairs:
        found.append(min(peer for _, peer in pairs) / min(own for own, _ in pairs))
    return min(found, default=None)


def limit_us(results: Results, model: str) -> float | None:
    """What a request costs where nothing is done but what must be: the echo of its HTTP on the same stack, its JSON to
    numbers and a number to JSON, its share of a prediction of 64 rows. Microseconds of processor time."""
    echo, alone = _cpu(results, MODELS[0], ECHO), results.get(f"{model}/{LIMIT}", {})  # the echo knows no model
    if echo is None or "codec_us" not in alone:
        return None
    return echo + float(alone["codec_us"]) + float(alone["us_per_row_of_64"])


def shares(results: Results) -> list[str]:
    """What the limit of each model is made of, and how far everything is from HTTP alone, which no model can be part
    of."""
    found = []
    for model in MODELS:
        limit, alone, echo = (
            limit_us(results, model),
            results.get(f"{model}/{LIMIT}", {}),
            _cpu(results, MODELS[0], ECHO),
        )
        if limit is None or echo is None:
            continue
        parts = f"echo {echo:.1f} + JSON {alone['codec_us']:.1f} + predict / 64 {alone['us_per_row_of_64']:.1f}"
        found.append(f"{model}, the limit: {limit:.1f} us a request = {parts}")
        for name in (FULL, BARE, OFF):
            cpu = _cpu(results, model, name)
            if cpu is not None:
                share = f"{limit / cpu:.0%} of the limit, {echo / cpu:.0%} of the echo"
                found.append(f"    {LABELS[name]}: {cpu:.1f} us, {share}")
    return found


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def targets(results: Results) -> list[Target]:
    """The promises, model by model."""
    return [target for model in MODELS for target in _targets(results, model)]


def _targets(results: Results, model: str) -> list[Target]:
    peers = [peer.name for peer in PEERS_TABLE if not peer.limit]
    tuned = [cpu for name in peers if name != DOCUMENT and (cpu := _cpu(results, model, name)) is not None]
    full, bare, off = (_cpu(results, model, name) for name in (FULL, BARE, OFF))
    best, document, limit = min(tuned, default=None), _cpu(results, model, DOCUMENT), limit_us(results, model)
    asks = [_ratio(limit, None if peer is None else peer / least) for peer, least in ((best, 10), (document, 30))]
    return [
        Target(
            model, "best_peer", "requests per CPU second, times the best-tuned peer's", 10, _ratio(best, full), asks[0]
        ),
        Target(model, "document", "... times those of a data frame a request", 30, _ratio(document, full), asks[1]),
        Target(model, "limit", "... share of the limit", 0.35, _ratio(limit, full)),
        Target(model, "limit_bare", "... share of the limit, with all of that off", 0.45, _ratio(limit, bare)),
        Target(model, "watching", "... share of those without capture, metrics and drift", 0.8, _ratio(off, full)),
        Target(
            model,
            "p50",
            "p50 at 1 connection: the fastest peer's divided by it",
            1,
            _latency(results, model),
        ),
    ]


def missed(results: Results, wanted: list[str]) -> list[str]:
    """What does not hold, in words; ``wanted``: the "model/server" that were to be measured."""
    found = [f"{name}: {results[name]['failed']}" for name in wanted if "failed" in results.get(name, {})]
    for name in wanted:
        for connections, run in results.get(name, {}).get("runs", {}).items():
            if run.get("errors"):
                found.append(f"{name}: {run['errors']} errors at {connections} connections")
    return found + [
        f"{target.model}: {target.label}: {target.value:.3g} is below {target.least:g}"
        for target in targets(results)
        if target.judged and not target.met
    ]


def table(results: Results) -> str:
    """Everything that was measured, in aligned columns."""
    head = [
        "model",
        "server",
        "cold s",
        "MB",
        *(f"{c}: req/s" if part == "rps" else part for c in CONNECTIONS for part in ("rps", "p50 ms", "p99 ms")),
        f"CPU us/req ({MOST})",
        "",
    ]
    rows = [head]
    for model in MODELS:
        for server in ORDER:
            found = results.get(f"{model}/{server}")
            if found is not None:
                rows.append(_row(model, server, found))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _row(model: str, server: str, found: dict[str, Any]) -> list[str]:
    cells = [model, LABELS[server]]
    if "failed" in found:
        return [*cells, *[""] * (3 + 3 * len(CONNECTIONS)), f"not measured: {found['failed'][:120]}"]
    cells += [
        "" if (value := found.get(name)) is None else f"{value:.{digits}f}"
        for name, digits in (("cold_s", 1), ("pss_mb", 0))
    ]
    runs = found["runs"]
    for connections in CONNECTIONS:
        run = runs.get(str(connections))
        cells += ["", "", ""] if run is None else [f"{run['rps']:,.0f}", f"{run['p50_ms']:.2f}", f"{run['p99_ms']:.2f}"]
    last = runs.get(str(MOST)) or runs.get("1")
    cells.append(f"{last['cpu_us']:.1f}" if last else "")
    foreign = max((run.get("foreign", 0.0) for run in runs.values()), default=0.0)
    errors = sum(run.get("errors", 0) for run in runs.values())
    notes = [f"{errors} errors"] if errors else []
    notes += (
        [f"64 rows a call: {found['us_per_row_of_64']:.2f} us a row, JSON {found['codec_us']:.2f} us"]
        if "codec_us" in found
        else []
    )
    notes += [f"disturbed: {foreign:.1f} cores elsewhere"] if foreign > DISTURBED else []
    return [*cells, ", ".join(notes)]


def target_table(results: Results) -> str:
    """The promises and what came of them."""
    lines = []
    for target in targets(results):
        value = "not measured" if target.value is None else f"{target.value:.3g}"
        line = f"{target.model:10} {target.label:56} {value:>12}  target >= {target.least:<5g} {_verdict(target)}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _verdict(target: Target) -> str:
    if target.value is None:
        return ""
    if target.met:
        return "met"
    return "MISSED" if target.judged else f"not met, not judged: it asks for {target.asks:.0%} of the limit"
