"""Tracing: what a pipeline function becomes, and how its mistakes are explained."""

import inspect
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

import loopline
from loopline.domain.pipelines import Index, parse_spec
from loopline.sdk.pipeline import (
    Pipeline,
    PipelineError,
    asset,
    fail,
    otherwise,
    pipeline,
    register,
    step,
    when,
)


@step(outputs=["train", "test"], retries=2, backoff_seconds=5, timeout_seconds=600, limits={"memory_mb": 2000})
def prepare(data, test_share: float = 0.2): ...


@step(code=["features.py"])
def fit(train, epochs, rate=0.1): ...


@step
def evaluate(model, test): ...


@step
def merge(parts): ...


@step
def awkward(value, ref, asset, step, path): ...


def steps_of(function: Any) -> dict[str, Any]:
    compiled = Pipeline(function).compile("pipeline.py")
    Index(parse_spec(json.dumps(compiled).encode()))  # what the sdk writes, the platform takes
    return {item["name"]: item for item in compiled["steps"]}


def mistake(function: Any) -> PipelineError:
    with pytest.raises(PipelineError) as caught:
        Pipeline(function).compile("pipeline.py")
    return caught.value


def line_of(function: Any, text: str) -> int:
    lines, start = inspect.getsourcelines(function)
    return start + next(number for number, line in enumerate(lines) if text in line)


def test_the_graph_follows_the_data() -> None:
    def training(epochs: int = 3):
        """Train and judge.

        More text.
        """
        train, test = prepare(asset("patients"), test_share=0.3)
        report = evaluate(fit(train, epochs=epochs), test)
        with when(report["accuracy"]["value"] >= 0.9):
            register(report, name="patients", metrics=report)
        with otherwise():
            fail("accuracy too low:", report["accuracy"]["value"])

    compiled = Pipeline(training).compile("pipeline.py")
    assert compiled["description"] == "Train and judge."
    assert compiled["parameters"] == [{"name": "epochs", "type": "integer", "choices": None, "default": 3}]
    steps = steps_of(training)
    assert list(steps) == ["prepare", "fit", "evaluate", "condition", "register", "fail"]
    assert steps["prepare"]["arguments"] == {
        "data": {"asset": {"name": "patients", "version": None}},
        "test_share": {"value": 0.3},
    }
    assert steps["fit"]["arguments"] == {
        "train": {"ref": {"step": "prepare", "output": "train"}},
        "epochs": {"ref": {"parameter": "epochs"}},
        "rate": {"value": 0.1},
    }
    assert steps["condition"]["condition"] == {
        "op": "ge",
        "left": {"ref": {"step": "evaluate", "output": "result", "path": ["accuracy", "value"]}},
        "right": {"value": 0.9},
    }
    assert steps["register"]["parents"] == [{"step": "condition", "branch": True}]
    assert steps["fail"]["parents"] == [{"step": "condition", "branch": False}]
    assert steps["prepare"]["limits"] == {"memory_mb": 2000}
    assert steps["prepare"]["line"] == line_of(training, "prepare(")


def test_the_same_step_twice_gets_names_of_its_own() -> None:
    def twice():
        train, test = prepare(asset("a:3"))
        merge([fit(train, 1), fit(test, 2), fit.named("last")(train, 3)])

    steps = steps_of(twice)
    assert list(steps) == ["prepare", "fit", "fit_2", "last", "merge"]
    assert [part["ref"]["step"] for part in steps["merge"]["arguments"]["parts"]["list"]] == ["fit", "fit_2", "last"]
    assert steps["prepare"]["arguments"]["data"]["asset"] == {"name": "a", "version": 3}


def test_conditions_nest_and_join() -> None:
    def nested(rate: float = 0.1, mode: Literal["quick", "full"] = "full"):
        report = merge(1)
        with when((report["a"] > rate) & ~(mode == "quick") | report["ok"], name="good"):
            with when(mode.is_in(["full"])):
                evaluate(1, 2)
            with otherwise():
                merge(2)
        with otherwise():
            fail()

    steps = steps_of(nested)
    assert steps["evaluate"]["parents"] == [{"step": "good", "branch": True}, {"step": "condition", "branch": True}]
    assert steps["merge_2"]["parents"] == [{"step": "good", "branch": True}, {"step": "condition", "branch": False}]
    assert steps["good"]["condition"]["op"] == "or"
    assert [part["op"] for part in steps["good"]["condition"]["of"]] == ["and", "eq"]
    assert steps["condition"]["parents"] == [{"step": "good", "branch": True}]


def test_after_orders_without_data() -> None:
    def ordered():
        first = merge(1)
        second = merge(2).after(first)
        prepare(3).after(first, second, first)

    steps = steps_of(ordered)
    assert steps["merge_2"]["after"] == ["merge"]
    assert steps["prepare"]["after"] == ["merge", "merge_2"]


def test_arguments_may_be_named_like_words_of_the_compiled_form() -> None:
    def named():
        one = merge(1)
        two = merge(awkward(value=one, ref=[merge(2)], asset=asset("a"), step={"ref": 1}, path={"step": "x"}))
        with when(two == {"ref": {"step": "x"}}):
            evaluate(1, 2)

    trace = Pipeline(named).trace()
    index = Index(parse_spec(json.dumps(Pipeline(named).compile("pipeline.py")).encode()))
    needs = {name: node.needs() for name, node in trace.nodes.items()}
    assert needs == {name: set(names) for name, names in index.needs.items()}
    assert needs["awkward"] == {"merge", "merge_2"}
    assert [leaf["asset"]["name"] for leaf in trace.nodes["awkward"].leaves() if "asset" in leaf] == ["a"]


def test_a_pipeline_inside_a_pipeline_adds_its_steps() -> None:
    @pipeline
    def inner(value):
        return merge(value)

    def outer(rate: float = 0.5):
        evaluate(inner(rate), 1)

    assert list(steps_of(outer)) == ["merge", "evaluate"]


def test_a_step_outside_a_pipeline_is_the_plain_function() -> None:
    @step
    def double(value):
        return 2 * value

    assert double(4) == 8
    assert double.__wrapped__(4) == 8


def if_on_a_condition():
    report = merge(1)
    if report["a"] > 1:
        merge(2)


def if_on_a_reference():
    if merge(1):
        merge(2)


def loop_over_a_reference():
    for _ in merge(1):
        merge(2)


def format_a_reference():
    merge(f"model of {merge(1)}")


def calculate():
    merge(merge(1) + 1)


def attribute_of_a_reference():
    merge(1).predict(2)


def chained():
    report = merge(1)
    with when(0 < report["a"] < 1):
        merge(2)


def wrong_argument():
    prepare(asset("a"), test_shar=0.1)


def missing_argument():
    fit(1)


def not_json():
    merge({1, 2})


def not_finite():
    merge(math.nan)


def whole_of_many():
    merge(prepare(1))


def no_such_output():
    prepare(1)["training"]


def circle():
    first = merge(1)
    second = evaluate(first, 2)
    first.after(second)


def same_name():
    merge.named("one")(1)
    merge.named("one")(2)


def lonely_otherwise():
    with when(merge(1)["a"] > 1):
        merge(2)
    merge(3)
    with otherwise():
        merge(4)


def register_a_literal():
    register("model.bin")


def wrong_status():
    register(merge(1), status="approved")


def bad_asset():
    merge(asset("patients:new"))


@pytest.mark.parametrize(
    ("function", "place", "says"),
    [
        (if_on_a_condition, "if report", "with when(...):"),
        (if_on_a_reference, "if merge", "with when(...):"),
        (loop_over_a_reference, "for _", "outputs=["),
        (format_a_reference, "merge(f", "inside a step"),
        (calculate, "+ 1", "calculate with it inside a step"),
        (attribute_of_a_reference, ".predict", "use .predict inside a step"),
        (chained, "with when", "(a < b) & (b < c)"),
        (wrong_argument, "prepare(", "did you mean 'test_share'?); it takes data, test_share"),
        (missing_argument, "fit(", "missing a required argument: 'epochs'"),
        (not_json, "merge(", "merge's parts is builtins.set, which is not JSON"),
        (not_finite, "merge(", "merge's parts is builtins.float, which is not JSON"),
        (whole_of_many, "merge(", "prepare gives train, test: pass one of them"),
        (no_such_output, "prepare(", "prepare gives train, test; it has no 'training'"),
        (circle, "first.after", "merge -> evaluate -> merge"),
        (same_name, "(2)", "two steps named 'one'"),
        (lonely_otherwise, "with otherwise", "must directly follow"),
        (register_a_literal, "register(", "takes what a step gave"),
        (wrong_status, "register(", "PendingManualApproval, Approved, Rejected"),
        (bad_asset, "merge(asset", "asset('name:3')"),
    ],
)
def test_a_mistake_names_its_line_and_its_cure(function: Any, place: str, says: str) -> None:
    error = mistake(function)
    assert says in error.message
    assert (error.file, error.line) == (__file__, line_of(function, place))
    assert str(error).startswith(f"{__file__}:{error.line}: ")


def test_parameters_need_a_type_that_is_known() -> None:
    def untyped(rate): ...
    def a_list(rates: list[float]): ...
    def wrong_default(epochs: int = 0.5): ...  # type: ignore[assignment]
    def not_a_choice(mode: Literal["a", "b"] = "c"): ...  # type: ignore[assignment]
    def taken(assets: str): ...

    assert "'rate' has no type known here; annotate it" in mistake(untyped).message
    assert "'rates' has no type known here" in mistake(a_list).message
    assert "'epochs' is of type integer; 0.5 is not" in mistake(wrong_default).message
    assert "'mode' is one of 'a', 'b'; 'c' is not" in mistake(not_a_choice).message
    assert "'assets' is taken by run()" in mistake(taken).message


def test_a_pipeline_without_steps_is_a_mistake() -> None:
    def nothing(): ...

    assert "has no steps" in mistake(nothing).message


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"outputs": ["a", "a"]}, "each output once"),
        ({"outputs": ["baseline"]}, "no name for an output"),
        ({"outputs": "model"}, "are lists"),
        ({"retries": -1}, "at least 0"),
        ({"retries": 1.5}, "whole number"),
        ({"timeout_seconds": 0}, "above 0"),
        ({"limits": {"gpus": 1}}, "memory_mb"),
    ],
)
def test_wrong_options_of_a_step_are_refused_where_they_stand(options: Any, says: str) -> None:
    with pytest.raises(PipelineError) as caught:
        step(**options)
    assert says in caught.value.message
    assert caught.value.file == __file__


def test_words_of_a_pipeline_are_refused_outside_of_one() -> None:
    for call in (lambda: fail("x"), otherwise, lambda: when(True), lambda: register(1)):
        with pytest.raises(PipelineError, match="only inside a @pipeline"):
            call()


def test_the_module_imports_neither_loopline_nor_slow_modules() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules)\n"
        "import loopline.sdk.pipeline\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    source = str(Path(loopline.__file__).parents[1])
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code, source], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert {name for name in loaded if name.startswith("loopline")} == {
        "loopline",
        "loopline.sdk",
        "loopline.sdk.pipeline",
    }
    assert not loaded & {"inspect", "json", "pathlib", "dataclasses"}
