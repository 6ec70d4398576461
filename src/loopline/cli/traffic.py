"""Endpoints and their traffic: counters, weights by hand, shadows, live comparisons, variants to stop."""

from typing import Any

import click

from loopline.cli.session import Session, assignments, moment, options

METRICS = ("error_rate", "latency", "accuracy", "label_rate", "mae")


@click.command()
@click.argument("endpoint")
@click.argument("weights", nargs=-1, metavar="[VARIANT=WEIGHT]...")
@click.option("--set", "change", is_flag=True, help="Give the variants these weights, and all others none.")
@click.option("--reason", help="Why, with --set.")
@click.option("--since", default="1h", show_default=True, help="A time, or 10m, 2h, 1d ago.")
@click.option("--period", default=60, show_default=True, help="Seconds.")
@options
def traffic(
    session: Session,
    endpoint: str,
    weights: tuple[str, ...],
    *,
    change: bool,
    reason: str | None,
    since: str,
    period: int,
) -> None:
    """Requests, errors and latency; with --set, which variant gets which share."""
    if change or weights:
        if not (change and weights):
            raise click.UsageError(f"write: loopline endpoints traffic {endpoint} --set VARIANT=WEIGHT ...")
        _set(session, endpoint, weights, reason)
        return
    found = session.client.get("endpoints", endpoint, "traffic", start=moment(since), period_seconds=period)
    columns = (
        ("AT", "at"),
        ("VARIANT", "variant"),
        ("REQUESTS", "requests"),
        ("4XX", "errors_4xx"),
        ("5XX", "errors_5xx"),
        ("P50 MS", "latency_ms.p50"),
        ("P99 MS", "latency_ms.p99"),
    )
    session.table(found, columns, empty="no requests in this time")


def _set(session: Session, endpoint: str, weights: tuple[str, ...], reason: str | None) -> None:
    given = assignments(weights)
    for name, weight in given.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise click.UsageError(f"the weight of {name} is a number such as 90, unlike {weight!r}")
    found = session.client.put("endpoints", endpoint, "traffic", weights=given, reason=reason)
    shares = ", ".join(f"{row['name']} {row['share']:.1%}" for row in found["items"])
    session.done(found, f"{endpoint}: {shares} (snapshot {found['snapshot']})")


@click.command()
@click.argument("endpoint")
@click.argument("variant")
@options
def stop(session: Session, endpoint: str, variant: str) -> None:
    """End a variant that takes no traffic: a shadow, or one that stands by."""
    found = session.client.post("endpoints", endpoint, "variants", variant, "stop")
    session.done(found, f"{endpoint}/{variant} {found['status']}")


@click.command()
@click.argument("endpoint")
@click.option("--variant", help="Whose report (default: the shadow of now, or the last one).")
@click.option("--stop", "ending", is_flag=True, help="End the shadow; its report stays.")
@options
def shadow(session: Session, endpoint: str, variant: str | None, ending: bool) -> None:
    """How the answers of a shadow differ from what callers got."""
    found = session.client.get("endpoints", endpoint, "shadow", variant=variant)
    if ending:
        stopped = session.client.post("endpoints", endpoint, "variants", found["variant"], "stop")
        session.done(stopped, f"{endpoint}/{found['variant']} {stopped['status']}")
        return
    if session.as_json:
        session.json(found)
        return
    session.record(_told(found))
    if found["labels"]:
        columns = (("CALLER", "caller"), ("SHADOW", "shadow"), ("ROWS", "rows"), ("", _mark))
        session.table({"items": found["labels"]}, columns)


def _mark(row: dict[str, Any]) -> str:
    return "same" if row["same"] else "differs"


def _what(found: dict[str, Any]) -> str:
    return f"{found['model']} v{found['version']}" if found["version"] else "ungated"


def _told(found: dict[str, Any]) -> dict[str, Any]:
    """The figures of a shadow's report, a line each."""
    copies = found["copy_percent"]
    latency, errors, numbers = found["latency_ms"], found["errors"], found["numbers"]
    share = found["differing_share"]
    told = {
        "shadow": f"{found['variant']} ({_what(found)}) {found['status']}",
        "copies": "none any more" if copies is None else f"{copies:g} % of the requests",
        "since": found["start_at"],
        "compared": f"{found['compared']} requests",
        "dropped": f"{found['dropped']} copies: the shadow was behind" if found["dropped"] else None,
        "differing": None if share is None else f"{found['differing']} requests ({share:.1%})",
        "p50 ms": f"{_number(latency['shadow']['p50'])} against {_number(latency['caller']['p50'])} of callers",
        "p99 ms": f"{_number(latency['shadow']['p99'])} against {_number(latency['caller']['p99'])} of callers",
        "5xx": f"{errors['shadow']} against {errors['caller']} of callers",
    }
    if numbers is not None:
        told["numbers"] = (
            f"differ by {numbers['mean_abs']:.4g} on average, p99 {numbers['p99_abs']:.4g}, "
            f"at most {numbers['max_abs']:.4g} ({numbers['rows']} rows)"
        )
    told["examples"] = " ".join(found["examples"][-5:]) or None
    return told


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


@click.command()
@click.argument("endpoint")
@click.option("--metric", type=click.Choice(METRICS), default="error_rate", show_default=True)
@click.option("--champion", help="A variant (default: the one with most traffic).")
@click.option("--challenger", help="A variant (default: the one with second most).")
@click.option("--alpha", type=float, help="How often, at most, a verdict may be wrong (default: 0.05).")
@click.option("--min-effect", type=float, help="A difference that does not matter (default: 0).")
@click.option("--slow-ms", type=float, help="latency: compares the share of slower requests (default: 100).")
@click.option("--since", help="A time, or 10m, 2h, 1d ago (default: since the weights last changed).")
@options
def compare(session: Session, endpoint: str, since: str | None, **asked: Any) -> None:
    """Champion against challenger while both answer: figures, confidence sequence, verdict."""
    found = session.client.get("endpoints", endpoint, "comparison", start=moment(since), **asked)
    if session.as_json:
        session.json(found)
        return
    rows = [
        {
            "role": role,
            "variant": found[f"{role}_variant"],
            "n": found[f"{role}_n"],
            "value": found[role],
            "interval": _interval(found[f"{role}_interval"]),
        }
        for role in ("champion", "challenger")
    ]
    rows.append({"role": "difference", "variant": "", "n": "", "value": "", "interval": _interval(found["interval"])})
    columns = (("", "role"), ("VARIANT", "variant"), ("N", "n"), (found["metric"].upper(), "value"))
    level = f"{100 * (1 - found['alpha']):g} % AT ANY TIME"
    session.table({"items": rows}, (*columns, (level, "interval")))
    session.done(found, f"verdict: {found['verdict']}")


def _interval(ends: list[float | None]) -> str:
    low, high = ends
    return f"{'-' if low is None else f'{low:.4g}'} to {'-' if high is None else f'{high:.4g}'}"
