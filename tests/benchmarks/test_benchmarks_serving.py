"""What the serving benchmark makes of what it measured: which promises are judged, and which are missed."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "serving"


MODULES = ("run", "figures", "installation", "servers", "load")


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """One of the benchmark's modules, which are scripts' and in no package."""
    monkeypatch.syspath_prepend(FOLDER)
    for known in MODULES:
        monkeypatch.delitem(sys.modules, known, raising=False)
    found = __import__(name)
    for known in MODULES:
        sys.modules.pop(known, None)
    return found


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return module("figures", monkeypatch)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return module("run", monkeypatch)


def measured(cpu_us: float, p50_ms: float = 0.3, **more: Any) -> dict[str, Any]:
    run = {"cpu_us": cpu_us, "p50_ms": p50_ms, "errors": 0}
    return {"runs": {"1": run, "64": run}, **more}


def results(full: float, peer: float, model_us: float) -> dict[str, dict[str, Any]]:
    """Everything of one model: an echo of 9 us, 1 us of JSON, and so much for a row of the model."""
    return {
        "logistic/loopline": measured(full),
        "logistic/loopline-bare": measured(full * 0.9),
        "logistic/loopline-off": measured(full * 0.85),
        "logistic/fastapi-tuned": measured(peer, p50_ms=0.4),
        "logistic/fastapi-document": measured(peer * 4, p50_ms=1.2),
        "logistic/echo": measured(9.0),
        "logistic/predict": measured(90.0, codec_us=1.0, us_per_row_of_64=model_us),
    }


def verdicts(figures: ModuleType, given: dict[str, dict[str, Any]]) -> dict[str, tuple[bool, bool]]:
    """{promise: (judged, met)} of the one model there is."""
    return {each.key: (each.judged, each.met) for each in figures.targets(given) if each.model == "logistic"}


def test_what_is_met_is_met(figures: ModuleType) -> None:
    found = verdicts(figures, results(25.0, 290.0, 2.0))

    assert set(found.values()) == {(True, True)}
    assert figures.missed(results(25.0, 290.0, 2.0), []) == []


def test_a_ratio_that_the_limit_leaves_room_for_is_judged(figures: ModuleType) -> None:
    given = results(32.0, 290.0, 2.0)  # ten times the peer is 29 us, and the limit 12 us

    assert verdicts(figures, given)["best_peer"] == (True, False)
    assert [line for line in figures.missed(given, []) if "best-tuned" in line] == [
        "logistic: requests per CPU second, times the best-tuned peer's: 9.06 is below 10"
    ]


def test_a_ratio_beyond_the_limit_is_shown_and_not_judged(figures: ModuleType) -> None:
    given = results(28.0, 170.0, 6.0)  # ten times the peer is 17 us, and the limit 16 us

    assert verdicts(figures, given)["best_peer"] == (False, False)
    assert not any("best-tuned" in line for line in figures.missed(given, []))
    assert "6.07  target >= 10    not met, not judged: it asks for 94% of the limit" in figures.target_table(given)


def test_a_share_of_the_limit_is_always_judged(figures: ModuleType) -> None:
    given = results(60.0, 170.0, 6.0)

    assert verdicts(figures, given)["limit"] == (True, False)
    assert any("share of the limit: 0.267 is below 0.35" in line for line in figures.missed(given, []))


def test_what_was_not_measured_is_no_promise_kept_or_broken(figures: ModuleType) -> None:
    given = results(25.0, 290.0, 2.0)
    del given["logistic/loopline-off"]

    assert verdicts(figures, given)["watching"] == (False, False)
    assert not any("capture" in line for line in figures.missed(given, []))


def test_of_two_measurements_the_better_runs_count_and_every_error_does(script: ModuleType) -> None:
    first, second = measured(30.0, p50_ms=0.2, cold_s=2.0), measured(25.0, p50_ms=0.3, cold_s=3.0)
    first["runs"]["64"] = {**first["runs"]["64"], "errors": 1}

    found = script.better(first, second)

    assert (found["runs"]["1"]["p50_ms"], found["runs"]["64"]["cpu_us"], found["cold_s"]) == (0.2, 25.0, 2.0)
    assert found["runs"]["64"]["errors"] == 1
    assert "failed" in script.better(first, {"failed": "it did not start"})


def test_latencies_of_pairs_decide_between_the_two_that_are_near(figures: ModuleType) -> None:
    given = results(25.0, 290.0, 2.0)
    given["logistic/loopline"]["pairs"] = [[0.5, 0.45], [0.3, 0.36]]
    assert verdicts(figures, given)["p50"] == (True, True)

    given["logistic/loopline"]["pairs"] = [[0.5, 0.45], [0.31, 0.3]]
    assert verdicts(figures, given)["p50"] == (True, False)

    given["logistic/loopline"]["pairs"] = [[0.3, 0.36]]
    given["logistic/kserve"] = measured(500.0, p50_ms=0.2)
    assert verdicts(figures, given)["p50"] == (True, False)
