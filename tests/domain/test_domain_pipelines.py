"""Compiled pipelines: what is refused, what runs next, what a step is called with, and when a result is known."""

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.domain import calls
from loopline.domain.decisions import Decision, decide
from loopline.domain.pipelines import (
    Index,
    JobStep,
    Output,
    PipelineSpec,
    dump_spec,
    parse_outputs,
    parse_spec,
    resolve_parameters,
)
from loopline.domain.states import ExecutionStatus
from loopline.domain.values import Condition
from loopline.errors import InvalidInput
from loopline.runtime import local

PENDING, RUNNING, SUCCEEDED, FAILED, SKIPPED, STOPPED = (
    "Pending",
    "Running",
    "Succeeded",
    "Failed",
    "Skipped",
    "Stopped",
)


def ref(step: str, *path: str | int, output: str = "result") -> dict[str, Any]:
    return {"ref": {"step": step, "output": output, **({"path": list(path)} if path else {})}}


def job(name: str, *needs: str, after: tuple[str, ...] = (), parents: Any = (), **more: Any) -> dict[str, Any]:
    arguments = {f"a{number}": ref(need) for number, need in enumerate(needs)}
    arguments |= more.pop("arguments", {})
    head = {"name": name, "kind": "job", "function": "f", "after": list(after)}
    return {**head, "parents": list(parents), "arguments": arguments, **more}


def condition(name: str, expression: dict[str, Any], parents: Any = ()) -> dict[str, Any]:
    return {"name": name, "kind": "condition", "condition": expression, "parents": list(parents)}


def document(*steps: dict[str, Any], parameters: Any = (), **more: Any) -> dict[str, Any]:
    head = {"version": 1, "name": "p", "file": "pipeline.py", "parameters": list(parameters)}
    return {**head, "steps": list(steps), **more}


def spec_of(*steps: dict[str, Any], **more: Any) -> PipelineSpec:
    return parse_spec(json.dumps(document(*steps, **more)).encode())


def next_of(index: Index, results: dict[str, bool] | None = None, **statuses: str) -> Decision:
    return decide(index, {name: statuses.get(name, PENDING) for name in index.order}, results or {})


DIAMOND = (job("a"), job("b", "a"), job("c", "a"), job("d", "b", "c"))


def test_a_diamond_runs_its_middle_in_parallel() -> None:
    index = Index(spec_of(*DIAMOND))
    assert next_of(index).start == ("a",)
    assert next_of(index, a=RUNNING) == Decision((), (), None)
    assert set(next_of(index, a=SUCCEEDED).start) == {"b", "c"}
    assert next_of(index, a=SUCCEEDED, b=SUCCEEDED, c=RUNNING).start == ()
    assert next_of(index, a=SUCCEEDED, b=SUCCEEDED, c=SUCCEEDED).start == ("d",)
    done = next_of(index, a=SUCCEEDED, b=SUCCEEDED, c=SUCCEEDED, d=SUCCEEDED)
    assert done.status == ExecutionStatus.SUCCEEDED


def test_a_failure_skips_what_needs_it_and_nothing_else() -> None:
    index = Index(spec_of(*DIAMOND, job("e", "d"), job("other")))
    decision = next_of(index, a=SUCCEEDED, b=FAILED, c=RUNNING)
    assert decision.skip == (("d", "b failed"), ("e", "d was skipped"))
    assert decision.start == ("other",)
    assert decision.status is None
    end = next_of(index, a=SUCCEEDED, b=FAILED, c=SUCCEEDED, other=SUCCEEDED)
    assert end.status == ExecutionStatus.FAILED


def test_an_execution_with_a_stopped_step_ends_as_stopped_unless_one_failed() -> None:
    index = Index(spec_of(job("a"), job("b", "a"), job("c")))
    stopped = next_of(index, a=STOPPED, c=SUCCEEDED)
    assert (stopped.skip, stopped.status) == ((("b", "a was stopped"),), ExecutionStatus.STOPPED)
    assert next_of(index, a=STOPPED, c=FAILED).status == ExecutionStatus.FAILED


def test_the_branch_not_taken_is_skipped_with_everything_below_it() -> None:
    good = {"op": "ge", "left": ref("a", "x"), "right": {"value": 1}}
    yes, no = [{"step": "when", "branch": True}], [{"step": "when", "branch": False}]
    inner = [*yes, {"step": "inner", "branch": True}]
    index = Index(
        spec_of(
            job("a"),
            condition("when", good),
            condition("inner", good, parents=yes),
            job("deep", parents=inner),
            job("taken", parents=yes),
            job("other", parents=no),
            job("joins", "taken"),
        )
    )
    assert next_of(index, a=SUCCEEDED).start == ("when",)
    decision = next_of(index, {"when": False}, a=SUCCEEDED, when=SUCCEEDED)
    assert decision.start == ("other",)
    assert dict(decision.skip) == {
        "inner": "when was false",
        "deep": "when was false",
        "taken": "when was false",
        "joins": "taken was skipped",
    }
    decision = next_of(index, {"when": True}, a=SUCCEEDED, when=SUCCEEDED)
    assert set(decision.start) == {"inner", "taken"}
    assert decision.skip == (("other", "when was true"),)
    done = {"a": SUCCEEDED, "when": SUCCEEDED, "inner": SUCCEEDED, "taken": SUCCEEDED, "joins": SUCCEEDED}
    decision = next_of(index, {"when": True, "inner": False}, **done, other=SKIPPED)
    assert decision == Decision((), (("deep", "inner was false"),), ExecutionStatus.SUCCEEDED)


def test_after_waits_without_data() -> None:
    index = Index(spec_of(job("b", after=("a",)), job("a")))
    assert index.order == ("a", "b")
    assert next_of(index).start == ("a",)
    assert next_of(index, a=SUCCEEDED).start == ("b",)
    assert next_of(index, a=FAILED).skip == (("b", "a failed"),)


def test_values_in_lists_and_conditions_are_needs_too() -> None:
    parts = {"parts": {"list": [ref("a"), {"dict": {"x": ref("b")}}]}}
    either = {"op": "eq", "left": ref("c"), "right": {"value": 1}}
    twice = {"op": "or", "of": [either, {"op": "not", "of": [either]}]}
    index = Index(spec_of(job("d", arguments=parts), job("a"), job("b"), job("c"), condition("when", twice)))
    assert set(index.needs["d"]) == {"a", "b"}
    assert index.needs["when"] == ("c",)


def test_a_cycle_is_listed() -> None:
    with pytest.raises(InvalidInput) as caught:
        spec_of(job("a", "c"), job("b", "a"), job("c", "b"), job("d"))
    circle = caught.value.message.partition(": ")[2].partition(" (")[0].split(" -> ")
    assert circle[0] == circle[-1] and set(circle) == {"a", "b", "c"}
    needs = {"a": "c", "b": "a", "c": "b"}
    assert all(needs[one] == other for one, other in itertools.pairwise(circle))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (document(), "1 to 2000 steps"),
        (document(job("a"), job("a")), "two steps are named 'a'"),
        (document(job("a", "b")), "needs 'b', which is no step"),
        (document(job("a", after=("b",))), "needs 'b', which is no step"),
        (document(job("a"), job("b", arguments={"x": ref("a", output="y")})), "'a' gives result"),
        (document(job("a", arguments={"x": {"ref": {"parameter": "p"}}})), "parameter 'p', which is not declared"),
        (document(job("a"), job("b", parents=[{"step": "a", "branch": True}])), "which is no condition"),
        (document(job("a", surprise=1)), "unknown field `surprise`"),
        (document(job("a"), surprise=1), "unknown field `surprise`"),
        (document(job("a", arguments={"x": {"value": 1, "asset": {"name": "y"}}})), "exactly one of"),
        (document(job("a", arguments={"x": {}})), "exactly one of"),
        (document(job("a", arguments={"x": {"ref": {"step": "a"}}})), "a ref is"),
        (document(condition("w", {"op": "and", "left": {"value": 1}, "right": {"value": 1}})), "conditions in `of`"),
        (document(condition("w", {"op": "eq", "left": {"value": 1}})), "`left` and `right`"),
        (document(job("a", retries=-1)), "retries"),
        (document(job("a", timeout_seconds=0)), "timeout_seconds is above 0"),
        (document(job("a", limits={"gpus": 1})), "limits"),
        (document(job("a", outputs=[])), "at least one"),
        (document(job("a", function="os.system('x')")), "not the name of a function"),
        (document(job("../a")), "not a name for a step"),
        (document(job("a"), file="../pipeline.py"), "not the path of a Python file"),
        (document(job("a"), version=2), "2"),
        (document(job("a"), parameters=[{"name": "n", "type": "integer", "default": "x"}]), "is of type integer"),
        (document({"name": "r", "kind": "register", "model": {"value": 1}}), "what no step gave"),
        (
            document(job("a"), {"name": "r", "kind": "register", "model": ref("a"), "status": {"value": "Fine"}}),
            "no status of a version",
        ),
    ],
)
def test_what_cannot_run_is_refused(made: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_spec(json.dumps(made).encode())
    assert says in caught.value.message


def test_a_spec_is_the_same_after_a_round_trip() -> None:
    spec = spec_of(*DIAMOND, parameters=[{"name": "n", "type": "integer", "default": 1}])
    assert parse_spec(dump_spec(spec)) == spec
    assert dump_spec(parse_spec(dump_spec(spec))) == dump_spec(spec)


PARAMETERS = (
    {"name": "epochs", "type": "integer", "default": 3},
    {"name": "rate", "type": "number", "default": 0.1},
    {"name": "mode", "type": "string", "choices": ["quick", "full"], "default": "full"},
    {"name": "dry", "type": "boolean"},
)


def test_parameters_take_defaults_and_overrides() -> None:
    spec = spec_of(job("a"), parameters=PARAMETERS)
    assert resolve_parameters(spec, {"dry": True, "rate": 1}) == {"epochs": 3, "rate": 1.0, "mode": "full", "dry": True}
    texts = {"dry": "False", "epochs": "7", "rate": "1e-3"}
    assert resolve_parameters(spec, texts, from_text=True) == {"epochs": 7, "rate": 1e-3, "mode": "full", "dry": False}
    assert resolve_parameters(spec, {"dry": True}, defaults={"epochs": 9})["epochs"] == 9


@pytest.mark.parametrize(
    ("given_values", "says"),
    [
        ({}, "needs the parameter 'dry' (boolean)"),
        ({"dry": 1}, "'dry' is of type boolean; 1 is not"),
        ({"dry": True, "epochs": 2.5}, "'epochs' is of type integer; 2.5 is not"),
        ({"dry": True, "epochs": True}, "'epochs' is of type integer; True is not"),
        ({"dry": True, "epochs": "2"}, "'epochs' is of type integer; '2' is not"),
        ({"dry": True, "rate": float("nan")}, "'rate' is of type number"),
        ({"dry": True, "mode": "slow"}, "'mode' is one of 'quick', 'full'; 'slow' is not"),
        ({"dry": True, "epoch": 2}, "has no parameter 'epoch'; it takes epochs (integer), rate (number)"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_type(given_values: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve_parameters(spec_of(job("a"), parameters=PARAMETERS), given_values)
    assert says in caught.value.message


def output(value: Any = None, **more: Any) -> Output:
    return Output(
        **{"format": "json", "path": "outputs/r.json", "size_bytes": 1, "sha256": "0" * 64, **more, "value": value}
    )


SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.sampled_from(["a", "b", ""])
SIDES = st.builds(lambda value: {"value": value}, SCALARS | st.lists(SCALARS, max_size=3)) | st.just(ref("a", "x"))
COMPARISONS = st.builds(
    lambda op, left, right: {"op": op, "left": left, "right": right},
    st.sampled_from(["eq", "ne", "lt", "le", "gt", "ge", "in"]),
    SIDES,
    SIDES,
)
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda inner: (
        st.builds(
            lambda op, of: {"op": op, "of": of}, st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3)
        )
        | st.builds(lambda of: {"op": "not", "of": [of]}, inner)
    ),
    max_leaves=5,
)


@given(CONDITIONS, SCALARS)
def test_a_condition_holds_here_exactly_when_it_holds_in_a_local_run(expression: dict[str, Any], x: Any) -> None:
    index = Index(spec_of(job("a"), condition("w", expression)))
    parsed = index.steps["w"].condition  # type: ignore[union-attr]
    assert isinstance(parsed, Condition)

    def platform() -> bool:
        return calls.evaluate_condition(parsed, {}, {"a": {"result": output({"x": x})}})

    def here() -> bool:
        return local.holds(expression, lambda side: side.get("value", x))

    answers = []
    for evaluate in (platform, here):
        try:
            answers.append(str(evaluate()))
        except (InvalidInput, ValueError) as error:
            answers.append(str(error))
    assert answers[0] == answers[1]


def test_a_condition_says_what_is_missing() -> None:
    index = Index(spec_of(job("a"), condition("w", {"op": "ge", "left": ref("a", "m", "auc"), "right": {"value": 1}})))
    test = index.steps["w"].condition  # type: ignore[union-attr]
    for given_output, says in (
        (output({"m": {"acc": 1}}), "a.result has no ['auc']; there is acc"),
        (output({"m": {"auc": None}}), "None and 1 have no order"),
        (Output("json", "p", 99_999, "0" * 64), "too large"),
        (Output("joblib", "p", 9, "0" * 64), "joblib, not JSON"),
    ):
        with pytest.raises(InvalidInput) as caught:
            calls.evaluate_condition(test, {}, {"a": {"result": given_output}})
        assert says in caught.value.message


def call_of(spec: PipelineSpec, outputs: Any, assets: Any = None, **parameters: Any) -> tuple[JobStep, dict[str, Any]]:
    step = next(step for step in spec.steps if step.name == "b")
    assert isinstance(step, JobStep)
    return step, calls.resolve_arguments(step, parameters, outputs, assets or {})


def test_a_call_carries_values_and_where_inputs_lie() -> None:
    arguments = {
        "part": ref("a", "x", 0),
        "model": ref("a", output="model"),
        "rate": {"ref": {"parameter": "rate"}},
        "data": {"asset": {"name": "patients", "version": None}},
        "both": {"list": [ref("a", output="model"), {"value": 1}]},
    }
    spec = spec_of(
        job("a", outputs=["result", "model"]),
        job("b", arguments=arguments),
        parameters=[{"name": "rate", "type": "number"}],
    )
    outputs = {"a": {"result": output({"x": [7]}), "model": Output("joblib", "outputs/model.joblib", 9, "1" * 64)}}
    assets = {("patients", None): calls.Asset("patients", 4, "file", "2" * 64, "rows.csv")}
    step, resolved = call_of(spec, outputs, assets, rate=0.5)
    laid = calls.call_arguments(resolved, lambda item: f"/in/{item.source}")
    model = {"input": {"path": "/in/a.model", "format": "joblib", "select": []}}
    assert laid == {
        "part": {"value": 7, "given": False},
        "model": model,
        "rate": {"value": 0.5},
        "data": {"input": {"path": "/in/patients:4", "format": "asset", "select": []}},
        "both": {"list": [model, {"value": 1}]},
    }
    assert [item.source for item in calls.inputs_of(resolved)] == ["a.model", "patients:4", "a.model"]
    assert calls.step_call(spec, step, "/tree", laid)["arguments"] == laid


def test_the_cache_key_changes_with_what_the_result_depends_on_and_with_nothing_else() -> None:
    def key(*, code: str = "c", environment: str = "e", digest: str = "1" * 64, name: str = "a", **more: Any) -> str:
        spec = spec_of(job(name), job("b", name, arguments={"n": {"value": more.pop("n", 1)}}, **more))
        step, resolved = call_of(spec, {name: {"result": Output("npy", "outputs/r.npy", 9, digest)}})
        return calls.cache_key(spec, step, code, environment, resolved)

    same = [key(), key(), key(name="z"), key(retries=3, timeout_seconds=9.0, limits={"memory_mb": 1})]
    assert len(set(same)) == 1
    others = [
        key(code="d"),
        key(environment="f"),
        key(digest="2" * 64),
        key(n=2),
        key(n=True),
        key(n=1.0),
        key(n="1"),
        key(function="g"),
        key(outputs=["x", "y"]),
    ]
    assert len({same[0], *others}) == 1 + len(others)


def test_code_patterns_narrow_what_a_result_depends_on() -> None:
    files = {"pipeline.py": "1", "features.py": "2", "lib/a.py": "3", "README.md": "4", "steps/fit.py": "5"}

    def digest(step: dict[str, Any], **changed: str) -> str:
        spec = spec_of(step)
        only = spec.steps[0]
        assert isinstance(only, JobStep)
        return calls.digest_code({**files, **changed}, spec, only)

    narrow, own, whole = job("a", code=["features.py", "lib/*"]), job("a", code=[], function="steps.fit:fit"), job("a")
    for step, matter in (
        (narrow, {"pipeline.py", "features.py", "lib/a.py"}),
        (own, {"pipeline.py", "steps/fit.py"}),
        (whole, set(files)),
    ):
        assert {name for name in files if digest(step, **{name: "x"}) != digest(step)} == matter


def test_a_manifest_is_read_strictly() -> None:
    entry = {"format": "json", "path": "outputs/r.json", "size_bytes": 2, "sha256": "0" * 64, "executable": False}
    read = parse_outputs(json.dumps({"r": {**entry, "value": None}}).encode())
    assert read["r"].value is None
    with pytest.raises(InvalidInput):
        parse_outputs(json.dumps({"r": {**entry, "format": "exe"}}).encode())
    with pytest.raises(InvalidInput):
        parse_outputs(b"")


def test_a_chain_of_100_steps_is_decided_step_by_step() -> None:
    index = Index(spec_of(job("s0"), *(job(f"s{n}", f"s{n - 1}") for n in range(1, 100))))
    statuses = dict.fromkeys(index.order, PENDING)
    began = time.perf_counter()
    for number in range(100):
        decision = decide(index, statuses, {})
        assert decision == Decision((f"s{number}",), (), None)
        statuses[f"s{number}"] = SUCCEEDED
    assert decide(index, statuses, {}).status == ExecutionStatus.SUCCEEDED
    print(f"a decision about 100 steps takes {(time.perf_counter() - began) / 101 * 1e6:.0f} us")
