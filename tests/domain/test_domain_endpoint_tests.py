"""Tests of endpoints: what counts as the expected answer, what a report says, which definitions are mistakes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.domain import endpoint_tests as rules
from loopline.domain import loopfile
from loopline.domain.projects import CallTable, CaseTable, EndpointTest
from loopline.errors import InvalidInput

FILE = """
[project]
name = "boxes"

[model]
name = "boxes"

[endpoint]
name = "boxes"
"""


def golden(**fields: Any) -> EndpointTest:
    return EndpointTest(name="known", kind="golden", **fields)


def reply(value: Any, status: int = 200, milliseconds: float = 3.0, **headers: str) -> rules.Reply:
    return rules.Reply(status, {"content-type": "application/json", **headers}, value, milliseconds)


def judged(expected: Any, got: Any, **fields: Any) -> list[str]:
    case = CaseTable(request=[[1]], expected=expected)
    return [str(each) for each in rules.judge_case(golden(**fields), 3, case, reply(got))]


@pytest.mark.parametrize(
    ("expected", "got", "fields", "told"),
    [
        (["small"], {"predictions": ["small"]}, {}, []),
        (["small"], {"predictions": ["large"]}, {}, ['case 3, [0]: expected "small", got "large"']),
        ({"predictions": [0.5]}, {"predictions": [0.5004]}, {"absolute": 0.001}, []),
        ({"predictions": [100]}, {"predictions": [101.0]}, {"relative": 0.01}, []),
        ([0.5], {"predictions": [0.6]}, {"absolute": 0.05}, ["case 3, [0]: expected 0.5, got 0.6"]),
        ([1], {"predictions": [True]}, {}, ["case 3, [0]: expected 1, got true"]),
        (["a", "b"], {"predictions": ["a"]}, {}, ["case 3, the answer: expected 2 elements, got 1 elements"]),
        ({"score": 1}, {"predictions": [1]}, {}, ["case 3, score: expected 1, got nothing"]),
        ({"a": {"at": 1, "n": 2}}, {"a": {"at": 9, "n": 2}}, {"ignore": ("a.at",)}, []),
        ({"p": [{"t": 1, "n": 2}]}, {"p": [{"t": 3, "n": 2}]}, {"ignore": ("p[].t",)}, []),
        ({"p": {"x": 1, "y": 2}}, {"p": {"x": 3, "y": 4}}, {"ignore": ("p.*",)}, []),
        ({"n": 2}, {"n": 2, "version": "v7"}, {}, []),
    ],
)
def test_an_answer_is_the_expected_one_or_the_report_says_where_not(
    expected: Any, got: Any, fields: dict[str, Any], told: list[str]
) -> None:
    assert judged(expected, got, **fields) == told


def test_an_error_is_told_with_its_status_and_message() -> None:
    answer = reply({"error": {"code": "model_error", "message": "KeyError: 'age'", "request_id": "rq"}}, 500)
    case = CaseTable(request=1, expected=1, name="no age")
    (failure,) = rules.judge_case(golden(), 1, case, answer)
    assert str(failure) == "case 1 (no age): expected an answer, got 500 KeyError: 'age'"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_every_answer_is_like_itself(value: Any) -> None:
    assert list(rules.differences(value, value, absolute=0, relative=0, ignore=())) == []


@given(values, values)
def test_whatever_is_compared_the_difference_can_be_told(one: Any, other: Any) -> None:
    for part, expected, got in rules.differences(one, other, absolute=0, relative=0, ignore=()):
        assert part and expected != "" and got != ""


def test_a_call_is_judged_by_status_time_headers_and_parts() -> None:
    call = CallTable(
        body={},
        max_ms=10,
        json={"predictions[0].score": {"min": 0, "max": 1}, "predictions[].label": "a"},
        answer_headers={"Content-Type": "application/json*", "x-loopline-variant": "v2"},
    )
    good = {"predictions": [{"score": 0.5, "label": "a"}, {"score": 0.1, "label": "a"}]}
    assert rules.judge_call(1, call, reply(good, **{"x-loopline-variant": "v2"})) == []
    bad = {"predictions": [{"score": 1.5, "label": "a"}, {"label": "b"}]}
    told = [str(each) for each in rules.judge_call(2, call, reply(bad, milliseconds=12.5))]
    assert told == [
        "call 2, time: expected at most 10 ms, got 12.5 ms",
        "call 2, header x-loopline-variant: expected v2, got nothing",
        "call 2, predictions[0].score: expected at least 0 and at most 1, got 1.5",
        'call 2, predictions[].label: expected "a", got "b"',
    ]
    assert str(rules.judge_call(1, call, reply({}, 404))[0]).startswith("call 1, status: expected 200, got 404")


def figures(**changed: Any) -> dict[str, Any]:
    plain = {"requests": 100, "error_share": 0.0, "good_per_second": 50.0, "p50_ms": 2.0, "p99_ms": 9.0}
    return {**plain, "statuses": {"200": 100}, **changed}


@pytest.mark.parametrize(
    ("limits", "found", "told"),
    [
        ({"max_p99_ms": 10, "max_p50_ms": 5, "min_rate": 40}, {}, []),
        ({"max_p99_ms": 8}, {}, ["p99: expected at most 8 ms, got 9.0 ms"]),
        ({"max_p50_ms": 1}, {}, ["p50: expected at most 1 ms, got 2.0 ms"]),
        ({"min_rate": 60}, {}, ["good answers per second: expected at least 60, got 50.0"]),
        (
            {},
            {"error_share": 0.1, "statuses": {"200": 90, "500": 10}},
            ["errors: expected none, got 10.00% (90 x 200, 10 x 500)"],
        ),
        ({"max_error_share": 0.2}, {"error_share": 0.1}, []),
        ({}, {"requests": 0}, ["requests: expected answers, got none"]),
    ],
)
def test_a_load_has_limits(limits: dict[str, Any], found: dict[str, Any], told: list[str]) -> None:
    test = EndpointTest(name="load", kind="load", **limits)
    assert [str(each) for each in rules.judge_load(test, figures(**found))] == told


def test_enough_cases_may_be_enough() -> None:
    assert rules.judge_cases(golden(min_share=0.9), 9, 10) == []
    (failure,) = rules.judge_cases(golden(min_share=0.9), 8, 10)
    assert str(failure) == "cases: expected 90.0% of the cases as expected, got 8 of 10"


def test_a_summary_names_what_failed_and_stays_short() -> None:
    failure = {"check": "case 1, [0]", "expected": "1", "got": "2" * 200}
    passed = {"test": "smoke", "checks": 3, "failed": []}
    assert rules.summary([passed]) == "3 checks of 1 tests passed"
    told = rules.summary([passed, {"test": "known", "checks": 30, "failed": [failure] * 30}])
    assert told.startswith("known failed\n• known, case 1, [0]: expected 1, got 2222")
    assert len(told) <= rules.MAX_REASON_CHARS + 20 and told.endswith("• and more")


@pytest.mark.parametrize("text", ["", "a..b", "[", "a[x]", "a[0"])
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="part of an answer"):
        rules.parse_path(text)


def test_cases_come_from_lines() -> None:
    text = (
        '{"request": [[1]], "expected": ["small"]}\n\n{"request": "1,2", "expected": 3, "content_type": "text/csv"}\n'
    )
    cases = rules.read_cases(text, "golden.jsonl")
    assert cases[0] == {"request": [[1]], "expected": ["small"]}
    assert cases[1]["content_type"] == "text/csv"
    with pytest.raises(InvalidInput, match=r"golden.jsonl:2: .*expected"):
        rules.read_cases('{"request": 1, "expected": 2}\n{"request": 1}', "golden.jsonl")
    with pytest.raises(InvalidInput, match="at most 1000"):
        rules.read_cases('{"request": 1, "expected": 2}\n' * 1001, "golden.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[tests]]\nname = "a"\nkind = "golden"', "has no cases"),
        ('[[tests]]\nname = "a"\nkind = "call"', "calls nothing"),
        ('[[tests]]\nname = "a"\nkind = "load"', "sends nothing"),
        ('[[tests]]\nname = "a"\nkind = "load"\nbody = 1\nrelative = 0.1', "means nothing in a test of kind load"),
        ('[[tests]]\nname = "a"\nkind = "load"\nbody = 1\nseconds = 60', "does not end within"),
        ('[[tests]]\nname = "a"\nkind = "load"\nbody = 1\nmax_error_share = 1.0', "can never fail"),
        ('[[tests]]\nname = "a"\nkind = "load"\nbody = 1\nconnections = 0', "connections cannot be 0"),
        ('[[tests]]\nname = "a b"\nkind = "load"\nbody = 1', "is not a name for a test"),
        ('[[tests]]\nname = "a"\nkind = "call"\n[[tests.calls]]\nbody = 1\nmax_ms = 0.0', "max_ms cannot be 0"),
        ('[[tests]]\nname = "a"\nkind = "call"\n[[tests.calls]]\nbody = 1\nstatus = 20', "no HTTP status"),
        ('[[tests]]\nname = "a"\nkind = "call"\n[[tests.calls]]\njson = { "a[" = 1 }', "names no part"),
        ('[[tests]]\nname = "a"\nkind = "call"\n[[tests.calls]]\npath = "/api/users"', "is no route of a function"),
        (
            '[[tests]]\nname = "a"\nkind = "call"\n[[tests.calls]]\nheaders = { Content-Length = "9" }',
            "the platform itself writes the header Content-Length",
        ),
        (
            '[[tests]]\nname = "a"\nkind = "call"\n[[tests.calls]]\nheaders = { "X Y" = "9" }',
            "is no header that can be sent",
        ),
        ('[[tests]]\nname = "a"\nkind = "golden"\nfile = "../x"', "is not a path in the project"),
        ('[[tests]]\nname = "a"\nkind = "golden"\nfile = "none.jsonl"', "there is no file none.jsonl"),
        ('[[tests]]\nname = "a"\nkind = "golden"\n[[tests.cases]]\nrequest = 1', "'expected' is missing"),
        ('[[tests]]\nname = "a"\nkind = "smoke"', "cannot be 'smoke'"),
        (2 * '[[tests]]\nname = "a"\nkind = "call"\n[[tests.calls]]\nbody = 1\n', "two tests are called 'a'"),
    ],
)
def test_mistakes_in_a_file_are_explained(text: str, message: str) -> None:
    files = {"pipeline.py", "predict.py", "requirements.txt"}
    _, problems = loopfile.parse(FILE + text, files=files)
    told = [str(problem) for problem in problems if problem.level == "error"]
    assert any(message in each for each in told), told
    assert all(problem.cure for problem in problems)


def test_a_good_file_is_read() -> None:
    text = """
    [[tests]]
    name = "known"
    kind = "golden"
    relative = 0.01
    ignore = ["predictions[].at"]
    cases = [{ request = { instances = [[1.5]] }, expected = ["small"] }]

    [[tests]]
    name = "smoke"
    kind = "call"
    [[tests.calls]]
    body = { instances = [[1.5]] }
    json = { "predictions[0]" = "small" }
    [[tests.calls]]
    body = "nonsense"
    status = 400

    [[tests]]
    name = "busy"
    kind = "load"
    body = { instances = [[1.5]] }
    rate = 100
    max_p99_ms = 50
    """
    loop, problems = loopfile.parse(FILE + text)
    assert problems == [] and loop is not None
    assert [rules.stages_of(test) for test in loop.tests] == ["every", "every", "staging"]
    assert loop.tests[1].calls[1].status == 400


def test_a_test_made_by_hand_is_judged_as_one_in_the_file() -> None:
    made = loopfile.check_test("boxes", {"name": "a", "kind": "load", "body": [[1]], "max_p99_ms": 20})
    assert made.max_p99_ms == 20
    with pytest.raises(InvalidInput, match=r"max_p99: there is no key 'max_p99'.*\n?.*did you mean 'max_p99_ms'"):
        loopfile.check_test("boxes", {"name": "a", "kind": "load", "body": [[1]], "max_p99": 20})
    with pytest.raises(InvalidInput, match="rate: rate means nothing in a test of kind golden"):
        loopfile.check_test(
            "boxes", {"name": "a", "kind": "golden", "rate": 5, "cases": [{"request": 1, "expected": 1}]}
        )
