"""loop.toml: every mistake is explained at once, with its line and its cure."""

import re
import time
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.domain.loopfile import Problem, check_endpoint, parse
from loopline.domain.tomllines import key_lines
from loopline.errors import InvalidInput

MINIMAL = '[project]\nname = "p"\n[model]\nname = "m"\n'
FULL = """\
# a whole loop
[project]
name = "patients"

[model]
name = "patients"

[data.train]
path = "data/train.csv"
[data.test]
path = "data/test.csv"

[gate]
test = "test:1"
label = "diagnosis"
thresholds = { accuracy = 0.9, recall = 0.8 }
slices = { "sex=f" = { accuracy = 0.85 } }

[endpoint]
name = "patients"

[rollout]
steps = [5, 50]

[[alarms]]
name = "errors"
metric = "error_rate"
threshold = 0.05

[[alarms]]
name = "drift"
metric = "psi.age"
threshold = 0.2
actions = ["notify", "retrain"]

[retrain]
enabled = true
asset = "train"

[[triggers]]
kind = "cron"
cron = "0 3 * * 1"
"""


def only(text: str, files: list[str] | None = None) -> Problem:
    loop, problems = parse(text, files=files)
    assert len(problems) == 1, [str(problem) for problem in problems]
    assert (loop is None) == (problems[0].level == "error")
    return problems[0]


def test_a_whole_loop_has_no_mistake() -> None:
    loop, problems = parse(FULL)
    assert problems == []
    assert loop is not None
    assert loop.rollout.steps == (5.0, 50.0)
    assert loop.gate.slices == {"sex=f": {"accuracy": 0.85}}


def test_all_mistakes_are_told_at_once_in_order_of_lines() -> None:
    text = FULL.replace("steps = [5, 50]", "steps = [50, 5]\nstrategi = 1").replace("recall = 0.8", "recal = 8")
    text = text.replace('"0 3 * * 1"', '"0 3 * *"').replace('name = "drift"', 'name = "errors"')
    text = text.replace('[model]\nname = "patients"', "[model]\nname = 5")
    loop, problems = parse(text, "loop.toml")
    assert loop is None
    assert [problem.line for problem in problems] == sorted(problem.line for problem in problems)
    told = {problem.key: str(problem) for problem in problems}
    assert set(told) == {
        "model.name",
        "gate.thresholds.recal",
        "rollout.steps[1]",
        "rollout.strategi",
        "alarms[1].name",
        "triggers[0].cron",
    }
    assert told["model.name"] == 'loop.toml:6: error: model.name must be text in quotes, not 5; write name = "5"'
    assert "did you mean 'recall'?" in told["gate.thresholds.recal"]
    assert told["rollout.strategi"].startswith("loop.toml:24: ") and "'strategy'" in told["rollout.strategi"]


@pytest.mark.parametrize(
    ("text", "line", "message", "cure"),
    [
        ("[checks]\ncommands = pytest", 6, "Invalid value", 'commands = "pytest"'),
        ("[retrain]\nenabled = True", 6, "Invalid value", "enabled = true"),
        ("[checks\ncommands = []", 5, "[checks", "[name]"),
        ("just words", 5, "not TOML", "key = value"),
        ("[checks]\ncommands = []\ncommands = []", 7, "twice", "keep one"),
    ],
)
def test_a_mistake_of_grammar_is_told_with_its_line_and_a_cure(text: str, line: int, message: str, cure: str) -> None:
    bad = only(MINIMAL + text)
    assert message in bad.message
    assert cure in bad.cure
    assert bad.line == line


def test_mistakes_behind_a_mistake_of_grammar_are_told_too() -> None:
    _, problems = parse('[project]\nname = p\n[model]\nname = "m"\nhandlr = "predict"\n[retrain]\nenabled = True\n')
    assert [(problem.line, problem.key) for problem in problems] == [(2, "name"), (5, "model.handlr"), (7, "enabled")]


@pytest.mark.parametrize(
    ("extra", "line", "key", "message", "cure"),
    [
        ("[gat]", 5, "gat", "no table or key", "'gate'"),
        ('[model2]\nname="x"', 5, "model2", "no table or key", "'model'"),
        ('[endpoint]\nname="e"\nmetric="f1"', 7, "endpoint.metric", "no key 'metric'", "belongs in [gate]"),
        ('[endpoint]\nname="e"\ncapture=1.5', 7, "endpoint.capture", "cannot be 1.5", "between 0 and 1"),
        ('[endpoint]\nname="e"\nauth="yes"', 7, "endpoint.auth", "true or false", "auth = true"),
        ("[rollout]\nsteps=[5]", 5, "rollout", "no endpoint", "[endpoint]"),
        ('[endpoint]\nname="e"\n[rollout]\nsteps=[5,100]', 8, "rollout.steps[1]", "100 percent", "below 100"),
        ('[endpoint]\nname="e"\n[rollout]\nstrategy="canari"', 8, "rollout.strategy", "cannot be", "'canary'"),
        ('[data]\ntrain="x.csv"', 6, "data.train", "is a table", "[data.train]"),
        ('[alarms]\nname="x"', 5, "alarms", "list of tables", "[[alarms]]"),
        ('[checks]\ncommands="pytest"', 6, "checks.commands", "is a list", '["pytest"]'),
        ('[checks]\ncommands=["a \'b"]', 6, "checks.commands[0]", "cannot be split", "quote"),
        ('[gate]\nmode="enforce"', 5, "gate", "no test data", "label"),
        ('[gate]\nmode="off"\nmetric="acuracy"', 7, "gate.metric", "no metric", "'accuracy'"),
        ('[gate]\nmode="off"\nslices={"sex"={f1=0.5}}', 7, "gate.slices.sex", "not column=value", "sex=f"),
        ('[gate]\nmode="off"\nthresholds={f1=90}', 7, "gate.thresholds.f1", "never be 90", "between 0 and 1"),
        ('[[triggers]]\nkind="cron"\ncron="0 99 * * *"', 7, "triggers[0].cron", "not a cron", "0 3 * * 1"),
        ('[[triggers]]\nkind="cron"', 5, "triggers[0].cron", "without an expression", "cron ="),
        ('[[triggers]]\nkind="cron"\ncron="0 0 30 2 *"', 7, "triggers[0].cron", "", "0 3 * * 1"),
        ('[[notifications]]\nkind="slack"\nurl="hooks"', 7, "notifications[0].url", "web address", "https://"),
        (
            '[[notifications]]\nkind="slack"\nurl="https://h/x"\nevents=["verson.*"]',
            8,
            "notifications[0].events[0]",
            "no event",
            "version.*",
        ),
        ("[retrain]\nenabled=true", 5, "retrain.asset", "does not say", "captured = false"),
        ('[branches."x/*"]\nmodel="a b"', 6, 'branches."x/*".model', "not a name", "letters"),
        ("[pipeline]\nparameters={when=2024-01-01}", 6, "pipeline.parameters.when", "is a date", '"2024-01-01"'),
        ('[endpoint]\nname="e"\n[monitor]\nrule="psi over 1"', 8, "monitor.rule", "no drift rule", "psi > 0.1"),
        ('[pipeline]\nfile="../x.py"', 6, "pipeline.file", "not a path in the project", "relative"),
    ],
)
def test_each_mistake_names_key_line_and_cure(extra: str, line: int, key: str, message: str, cure: str) -> None:
    problem = only(MINIMAL + extra + "\n")
    assert (problem.line, problem.key, problem.level) == (line, key, "error")
    assert message in problem.message
    assert cure in problem.cure


ALARM = '[endpoint]\nname="e"\n[[alarms]]\nname="a"\n'


@pytest.mark.parametrize(
    ("alarm", "key", "message", "level"),
    [
        ('metric="error_rate"\nthreshold=5', "alarms[0].threshold", "can never fire", "error"),
        ('metric="accuracy"\nthreshold=0.9', "alarms[0].comparison", "is good", "warning"),
        ('metric="roc_auc"\nthreshold=0.5\ncomparison="<"', "alarms[0].metric", "only a gate measures", "error"),
        ('metric="latncy_ms"\nthreshold=5', "alarms[0].metric", "nothing measures", "error"),
        ('metric="latency_ms"\nthreshold=5\nstatistic="p101"', "alarms[0].statistic", "no statistic", "error"),
        (
            'metric="drift"\nthreshold=1\nevaluation_periods=2\ndatapoints_to_alarm=3',
            "alarms[0].datapoints_to_alarm",
            "cannot be 3",
            "error",
        ),
        ('metric="drift"\nthreshold=1\nactions=["retrain"]', "alarms[0].actions", "which is off", "warning"),
        ("threshold=1", "alarms[0].metric", "is missing", "error"),
    ],
)
def test_alarms_are_judged(alarm: str, key: str, message: str, level: str) -> None:
    problem = only(MINIMAL + ALARM + alarm + "\n")
    assert (problem.key, problem.level) == (key, level)
    assert message in problem.message


def test_missing_tables_are_told_although_nothing_else_is_there() -> None:
    _, problems = parse("")
    assert [problem.key for problem in problems] == ["project", "model"]


def test_files_that_the_loop_names_must_be_there() -> None:
    files = ["loop.toml", "pipeline.py", "data/test.csv", "data/train/part-0.csv"]
    text = FULL.replace('"data/train.csv"', '"data/train"')
    loop, problems = parse(text, files=files)
    assert loop is None
    assert {(problem.key, problem.level) for problem in problems} == {
        ("environment.requirements", "warning"),
        ("model.handler", "error"),
    }
    assert "predict.py" in next(problem for problem in problems if problem.level == "error").message


def test_positions_survive_strings_comments_and_nesting() -> None:
    text = (
        '''\
a = """
[not.a.table]
b = 1 "" """ # x = 2
"q.k".c = 'it''s' # '''.replace("'it''s'", "'it'")
        + """
arr = [ # [
  1, {x = "]", y = [2,
  3]},
]
[[t]]
k = 1
[t.sub]
k = 2
[[t]]
[t.sub]
k = 3
"""
    )
    tomllib.loads(text)
    lines = key_lines(text)
    assert lines["a",] == 1
    assert lines["q.k", "c"] == 4
    assert lines["arr",] == 5
    assert lines["arr", 1, "y", 1] == 7
    assert lines["t", 0, "sub", "k"] == 12
    assert lines["t", 1, "sub", "k"] == 15
    assert ("not",) not in lines


_words = st.text(alphabet="ab=\"'[]{}#., \n1\\t", max_size=40)


@given(_words)
def test_any_text_gets_an_answer(text: str) -> None:
    loop, problems = parse(text)
    assert loop is None
    assert problems
    assert all(1 <= problem.line <= text.count("\n") + 1 for problem in problems)


@given(st.lists(st.sampled_from([line for line in FULL.splitlines() if line]), max_size=25))
def test_any_order_of_lines_gets_an_answer(lines: list[str]) -> None:
    loop, problems = parse("\n".join(lines))
    assert (loop is None) == any(problem.level == "error" for problem in problems)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"capture": "a"}, "endpoint.capture"),
        ({"capture": 2}, "endpoint.capture"),
        ({"timeout_seconds": 0.0001}, "endpoint.timeout_seconds"),
        ({"max_concurrent": 10**12}, "endpoint.max_concurrent"),
        ({"instances": True}, "endpoint.instances"),
        ({"auth": None}, "endpoint.auth"),
        ({"surprise": 1}, "endpoint.surprise"),
        ({"name": "other"}, "name"),
        ({"rollout": 3}, "rollout"),
        ({"rollout": {"steps": ["x"]}}, "rollout.steps"),
        ({"monitor": {"rule": "psi >"}}, "monitor.rule"),
    ],
)
def test_settings_of_an_endpoint_made_by_hand_are_judged_as_those_of_the_file(
    settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidInput, match=f"^{re.escape(named)}"):
        check_endpoint("boxes", "boxes", settings)


def test_right_settings_of_an_endpoint_are_taken() -> None:
    check_endpoint("boxes", "boxes", {})
    check_endpoint("boxes", "boxes", {"capture": 0.5, "rollout": {"steps": [5], "bake_seconds": 1}})


@pytest.mark.parametrize(
    "text",
    [
        "[gate]\npositive = " + "[" * 100_000 + "]" * 100_000,
        "[gate]\npositive = " + "[\n" * 10_000 + "]\n" * 10_000,
        "[gate]\npositive = " + "9" * 5000,
        "x = " + "{a=" * 10_000 + "1" + "}" * 10_000,
        "a" + ".a" * 50_000 + " = 1",
        "[" + "a." * 50_000 + "a]",
        "\r" * 100_000,
    ],
    ids=["deep", "deep over lines", "a long number", "inline tables", "a dotted key", "a dotted header", "returns"],
)
def test_a_file_made_to_hold_up_the_reader_is_told_at_once(text: str) -> None:
    began = time.process_time()
    loop, problems = parse(MINIMAL + text)
    assert loop is None and problems and all(problem.cure for problem in problems)
    assert time.process_time() - began < 2


COMPILED = """[project]
name = "p"
[model]
name = "p"
handler = "joblib"
compile = "onnx"
[data.t]
path = "t.csv"
[gate]
test = "t"
label = "y"
"""


@pytest.mark.parametrize(
    ("before", "after", "line", "message"),
    [
        ('handler = "joblib"\n', "", 5, "only a model that is served by itself"),
        ('handler = "joblib"', 'handler = "onnx"', 6, "not by handler 'onnx'"),
        ('label = "y"\n', "", 6, "which [gate] does not name"),
        ('"onnx"', '"onxx"', 6, "cannot be"),
        ('"onnx"', '"onnx"\ncompile_tolerance = -1', 7, "cannot be -1"),
    ],
)
def test_what_is_to_be_compiled_is_served_by_itself_and_can_be_compared(before, after, line, message) -> None:
    assert not [problem for problem in parse(COMPILED)[1] if problem.level == "error"]
    loop, problems = parse(COMPILED.replace(before, after))
    assert loop is None
    assert next((problem.line, message in problem.message) for problem in problems if problem.level == "error") == (
        line,
        True,
    )


def test_a_table_inside_a_list_is_cured_by_the_header_that_the_file_would_have() -> None:
    text = '[project]\nname="p"\n[model]\nname="m"\n[endpoint]\nname="e"\n[[tests]]\nname="x"\nkind="call"\ncalls=1\n'
    assert "write [[tests.calls]]" in [problem.cure for problem in parse(text)[1]]
