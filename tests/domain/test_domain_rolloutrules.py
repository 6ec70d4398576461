"""What [rollout], [comparison] and sticky may say together."""

import pytest

from loopline.domain import loopfile

HEAD = '[project]\nname = "p"\n\n[model]\nname = "p"\n\n'
ENDPOINT = '[endpoint]\nname = "p"\n\n'


def _told(text: str) -> list[tuple[str, str, str]]:
    _, problems = loopfile.parse(HEAD + text, "loop.toml", None)
    return [(problem.level, problem.key, problem.message) for problem in problems]


@pytest.mark.parametrize("strategy", ["canary", "linear", "rolling", "blue-green", "all-at-once"])
def test_every_strategy_may_be_written(strategy: str) -> None:
    assert _told(f'{ENDPOINT}[rollout]\nstrategy = "{strategy}"\n') == []


def test_a_key_of_another_strategy_is_warned_of() -> None:
    told = _told(f'{ENDPOINT}[rollout]\nstrategy = "linear"\nsteps = [5]\nbatch = 2\n')
    assert [(level, key) for level, key, _ in told] == [("warning", "rollout.steps"), ("warning", "rollout.batch")]


@pytest.mark.parametrize("line", ["step_percent = 0", "step_percent = 101", "batch = 0"])
def test_steps_have_their_ranges(line: str) -> None:
    strategy = "linear" if "percent" in line else "rolling"
    told = _told(f'{ENDPOINT}[rollout]\nstrategy = "{strategy}"\n{line}\n')
    assert [level for level, _, _ in told] == ["error"]


def test_a_comparison_needs_a_metric_and_somebody_to_compare_with() -> None:
    assert _told(f"{ENDPOINT}[comparison]\nalpha = 0.1\n")[0][1] == "comparison.metric"
    told = _told(f'{ENDPOINT}[rollout]\nstrategy = "blue-green"\n[comparison]\nmetric = "mae"\n')
    assert "leaves nothing to compare with" in told[0][2]
    assert "there is no endpoint" in _told('[comparison]\nmetric = "mae"\n')[0][2]
    assert _told(f'{ENDPOINT}[comparison]\nmetric = "error_rate"\nmin_effect = 0.01\n') == []


@pytest.mark.parametrize(("header", "good"), [("x-user-id", True), ("X-User", True), ("a b", False), ("Host", False)])
def test_a_sticky_header_tells_callers_apart(header: str, good: bool) -> None:
    told = _told(f'[endpoint]\nname = "p"\nsticky = "{header}"\n')
    assert [key for _, key, _ in told] == ([] if good else ["endpoint.sticky"])
