"""Pipeline definitions in SageMaker's language: what they compile to, and that it means the same.

``definitions/*.json`` is what the sagemaker SDK 2.257.7 writes (``Pipeline.definition()``) for the pipelines of two of
the documents that loopline was designed against (``sentiment``, ``surgical``), and for one that uses every function,
condition and option (``abalone``).
"""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.control.context import Context
from loopline.domain import calls
from loopline.domain.access import Actor
from loopline.domain.pipelines import ActionStep, ConditionStep, FailStep, Index, Output, ScriptStep, parse_spec
from loopline.domain.values import Value
from loopline.errors import InvalidInput
from loopline.fronts.aws import definitions, models, stepkinds
from loopline.fronts.aws.call import Call
from loopline.fronts.aws.expressions import Expressions, split_path
from loopline.fronts.aws.late import Late

FOLDER = Path(__file__).parent / "definitions"
FACTS = {"id": "ex_1", "pipeline": "p", "started_at": "2024-05-01T12:00:00Z", "now": "2024-05-01T12:00:09Z"}
Json = dict[str, Any]


def call() -> Call:
    return Call(
        ctx=cast("Context", None),
        actor=Actor("tester", "admin"),
        service="sagemaker",
        operation="CreatePipeline",
        account="123456789012",
        region="us-east-1",
        request_id="rq_1",
    )


def compiled(definition: Json | str, name: str = "p") -> Index:
    text = definition if isinstance(definition, str) else json.dumps(definition)
    return Index(parse_spec(definitions.compile_(text, name, call(), stepkinds.KINDS)))


def definition(*steps: Json, parameters: list[Json] | None = None) -> Json:
    return {"Version": "2020-12-01", "Parameters": parameters or [], "Steps": list(steps)}


def given_json(**values: Any) -> dict[str, Output]:
    return {name: Output("json", "", 0, "", value=value) for name, value in values.items()}


# -- the pipelines of the documents -----------------------------------------------------------------------------------


def test_the_pipeline_that_trains_and_registers_compiles() -> None:
    index = compiled((FOLDER / "sentiment.json").read_text(), "mlops-sentiment-pipeline")

    assert index.order == ("TrainModel", "RegisterModel-RegisterModel")
    train, register = (index.steps[name] for name in index.order)
    assert isinstance(train, ScriptStep)
    settings = calls.resolve_value(train.settings, {}, {})
    assert settings["hyperparameters"]["learning_rate"] == "2e-05"
    assert settings["image"].partition("/")[2].startswith("huggingface-pytorch-training")
    assert isinstance(register, ActionStep)
    outputs = {"TrainModel": given_json(result={"name": "t", "model": "s3://b/m/model.tar.gz"})}
    wanted = {
        key: calls.resolve_value(value, {"ModelApprovalStatus": "Approved"}, outputs)
        for key, value in register.arguments.items()
    }
    assert (register.action, wanted["model"]) == ("version.register", "mlops-sentiment-model-group")
    assert (wanted["status"], wanted["gate_mode"]) == ("Approved", "advisory")
    assert wanted["source"]["data"] == "s3://b/m/model.tar.gz"
    assert index.parameters["ModelApprovalStatus"].default == "PendingManualApproval"


def test_the_pipeline_that_prepares_trains_and_registers_compiles() -> None:
    index = compiled((FOLDER / "surgical.json").read_text(), "SurgicalObjectDetectionPipeline")

    assert index.order == ("VideoFrameExtraction", "ModelTraining", "RegisterModel-RegisterModel")
    prepare, train = index.steps["VideoFrameExtraction"], index.steps["ModelTraining"]
    assert isinstance(prepare, ScriptStep)
    assert isinstance(train, ScriptStep)
    parameters = {"InputData": "s3://raw/", "InstanceType": "ml.m5.large", "Epochs": 7}
    taken = calls.resolve_value(prepare.settings, parameters, {})
    assert taken["channels"]["input-1"]["uri"] == "s3://raw/"
    assert taken["entrypoint"] == ["python3", "/opt/ml/processing/input/code/video_frame_extractor.py"]
    outputs = {"VideoFrameExtraction": given_json(result={"outputs": {"frames": "s3://b/frames/"}})}
    taken = calls.resolve_value(train.settings, parameters, outputs)
    assert (taken["hyperparameters"]["epochs"], taken["machine"]) == ("7", "ml.m5.large")
    assert taken["channels"]["training"]["uri"] == "s3://b/frames/"


def test_a_pipeline_with_everything_compiles() -> None:
    index = compiled((FOLDER / "abalone.json").read_text(), "AbalonePipeline")

    assert index.order == (
        "Prepare",
        "Train",
        "Evaluate",
        "Check",
        "Abalone-RegisterModel",
        "Inner",
        "Fail",
        "AbaloneCreate-CreateModel",
    )
    prepare = index.steps["Prepare"]
    assert isinstance(prepare, ScriptStep)
    assert (prepare.cache, prepare.cache_seconds) == (True, 30 * 86400)
    assert prepare.retry is not None
    assert (prepare.retries, prepare.backoff_seconds, prepare.retry.only) == (1000, 5, "faults")
    assert (prepare.retry.rate, prepare.retry.seconds) == (2.0, 3600)
    parameters = {"ProcessingInstanceCount": 2, "Threshold": 0.7, "Deploy": True, "Mode": "fast"}
    settings = calls.resolve_value(prepare.settings, parameters, {}, FACTS)
    assert settings["hosts"] == 2
    assert settings["arguments"] == ["--mode", "fast", "--at", FACTS["started_at"]]
    assert settings["outputs"]["test"]["uri"].endswith("/test/ex_1")
    evaluate, check, fail = (index.steps[name] for name in ("Evaluate", "Check", "Fail"))
    assert isinstance(evaluate, ScriptStep)
    assert list(evaluate.reports) == ["EvaluationReport"]
    assert isinstance(check, ConditionStep)
    outputs = {"Evaluate": given_json(EvaluationReport={"metrics": {"accuracy": {"value": 0.8}}})}
    assert calls.evaluate_condition(check.condition, parameters, outputs)
    assert not calls.evaluate_condition(check.condition, {**parameters, "Threshold": 0.9}, outputs)
    assert isinstance(fail, FailStep)
    assert calls.resolve_value(fail.message[0], parameters, {}) == "Execution failed due to accuracy < 0.7"
    inner = index.steps["Inner"]
    assert isinstance(inner, ConditionStep)
    outputs["Train"] = given_json(result={"metrics": {"acc": 1.5}})
    assert calls.evaluate_condition(inner.condition, parameters, outputs)
    assert not calls.evaluate_condition(inner.condition, {**parameters, "Mode": "slow"}, outputs)


# -- conditions mean the same -----------------------------------------------------------------------------------------

NUMBERS = st.integers(-5, 5) | st.sampled_from([-0.5, 0.0, 0.25, 1.0, 2.5])
SCALARS = NUMBERS | st.booleans() | st.sampled_from(["", "a", "b"])
PARAMETERS = {"I": "Integer", "F": "Float", "S": "String", "B": "Boolean"}
ORDERS = {
    "GreaterThan": lambda a, b: a > b,
    "GreaterThanOrEqualTo": lambda a, b: a >= b,
    "LessThan": lambda a, b: a < b,
    "LessThanOrEqualTo": lambda a, b: a <= b,
}
REPORT = {"Std:JsonGet": {"PropertyFile": {"Get": "Steps.E.PropertyFiles.R"}, "Path": "$.found['x'][1].value"}}


def expressions(literals: st.SearchStrategy[Any], parameters: str) -> st.SearchStrategy[Any]:
    gets = st.sampled_from([{"Get": f"Parameters.{name}"} for name in parameters])
    return literals | gets | st.just(REPORT)


def compared() -> st.SearchStrategy[Json]:
    number = expressions(NUMBERS, "IF")
    scalar = expressions(SCALARS, "IFSB")
    order = st.fixed_dictionaries({"Type": st.sampled_from(sorted(ORDERS)), "LeftValue": number, "RightValue": number})
    equal = st.fixed_dictionaries({"Type": st.just("Equals"), "LeftValue": scalar, "RightValue": scalar})
    inside = st.fixed_dictionaries(
        {"Type": st.just("In"), "QueryValue": scalar, "Values": st.lists(scalar, min_size=1, max_size=3)}
    )
    return order | equal | inside


def conditions() -> st.SearchStrategy[Json]:
    return st.recursive(
        compared(),
        lambda inner: (
            st.fixed_dictionaries({"Type": st.just("Not"), "Condition": inner})
            | st.fixed_dictionaries({"Type": st.just("Not"), "Expression": inner})
            | st.fixed_dictionaries({"Type": st.just("Or"), "Conditions": st.lists(inner, min_size=1, max_size=3)})
        ),
        max_leaves=8,
    )


def plainly(node: Json, known: dict[str, Any], report: Any) -> bool:
    """A condition as its documentation reads: true and false are no numbers."""

    def value(side: Any) -> Any:
        if side == REPORT:
            return report
        return known[side["Get"].partition(".")[2]] if isinstance(side, dict) else side

    def same(a: Any, b: Any) -> bool:
        return (isinstance(a, bool) == isinstance(b, bool)) and a == b

    kind = node["Type"]
    if kind == "Not":
        return not plainly(node["Condition"] if "Condition" in node else node["Expression"], known, report)
    if kind == "Or":
        return any(plainly(each, known, report) for each in node["Conditions"])
    if kind == "In":
        return any(same(value(node["QueryValue"]), value(each)) for each in node["Values"])
    left, right = value(node["LeftValue"]), value(node["RightValue"])
    return same(left, right) if kind == "Equals" else ORDERS[kind](left, right)


EVALUATE = {
    "Name": "E",
    "Type": "Processing",
    "Arguments": {
        "AppSpecification": {"ImageUri": "plain:1", "ContainerEntrypoint": ["true"]},
        "ProcessingResources": {
            "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 1}
        },
        "RoleArn": "arn:aws:iam::123456789012:role/r",
    },
    "PropertyFiles": [{"PropertyFileName": "R", "OutputName": "o", "FilePath": "report.json"}],
}


@given(
    wanted=st.lists(conditions(), min_size=1, max_size=3),
    known=st.fixed_dictionaries(
        {
            "I": st.integers(-5, 5),
            "F": st.sampled_from([-0.5, 0.25, 1.0, 3.0]),
            "S": st.sampled_from(["", "a", "b"]),
            "B": st.booleans(),
        }
    ),
    report=NUMBERS,
)
def test_random_conditions_agree_with_a_plain_evaluator(wanted: list[Json], known: Json, report: Any) -> None:
    step = {"Name": "C", "Type": "Condition", "Arguments": {"Conditions": wanted, "IfSteps": [], "ElseSteps": []}}
    parameters = [{"Name": name, "Type": kind} for name, kind in PARAMETERS.items()]
    index = compiled(definition(EVALUATE, step, parameters=parameters))

    condition = cast("ConditionStep", index.steps["C"]).condition
    outputs = {"E": given_json(R={"found": {"x": [0, {"value": report}]}})}
    assert calls.evaluate_condition(condition, known, outputs) == all(plainly(each, known, report) for each in wanted)


# -- values that are known late ---------------------------------------------------------------------------------------

LITERALS = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(0, 1) | st.text(max_size=3)
TEXTS = st.text(max_size=3)


def joins(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    return st.builds(lambda on, values: {"Std:Join": {"On": on, "Values": values}}, TEXTS, st.lists(parts, max_size=3))


GETS = st.sampled_from(["Parameters.S", "Parameters.N", "Execution.PipelineExecutionId", "Execution.PipelineName"]).map(
    lambda path: {"Get": path}
)
EXPRESSIONS = st.recursive(GETS | joins(TEXTS | GETS), joins, max_leaves=5)
TREES = st.recursive(
    LITERALS | EXPRESSIONS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=10,
)
KNOWN = {"S": "text", "N": 7}


def substituted(node: Any) -> Any:
    """A request with everything in its place, by plain recursion."""
    if isinstance(node, list):
        return [substituted(item) for item in node]
    if not isinstance(node, dict):
        return node
    if set(node) == {"Get"}:
        root, _, name = node["Get"].partition(".")
        return KNOWN[name] if root == "Parameters" else {"PipelineExecutionId": "ex_1", "PipelineName": "p"}[name]
    if set(node) == {"Std:Join"}:
        parts = (substituted(item) for item in node["Std:Join"]["Values"])
        return node["Std:Join"]["On"].join(part if isinstance(part, str) else json.dumps(part) for part in parts)
    return {key: substituted(item) for key, item in node.items()}


@given(tree=TREES, before=st.text("xy", max_size=2))
def test_a_translated_request_is_what_a_direct_call_would_have_been(tree: Any, before: str) -> None:
    reader, late = Expressions("p", {}, lambda resource: f"arn:{resource}"), Late()

    def hidden(node: Any) -> Any:
        if isinstance(node, dict) and set(node) in ({"Get"}, {"Std:Join"}):
            return late.hide(reader.value(node), None)
        if isinstance(node, dict):
            return {key: hidden(item) for key, item in node.items()}
        return [hidden(item) for item in node] if isinstance(node, list) else node

    def moved(node: Any) -> Any:
        """What translations do: leaves go elsewhere, texts are put together."""
        return {"inner": [node], "text": f"{before}/{node}"} if isinstance(node, str) else {"inner": [node]}

    restored = late.restore(moved(hidden(tree)))

    resolved = calls.resolve_value(restored, KNOWN, {}, FACTS)
    assert resolved["inner"] == [substituted(tree)]
    if isinstance(substituted(tree), str):
        assert resolved.get("text", f"{before}/{substituted(tree)}") == f"{before}/{substituted(tree)}"


def test_a_number_that_is_known_late_stays_a_number() -> None:
    shape = models.service("sagemaker").model.shape_for("CreateProcessingJobRequest")
    cluster = shape.members["ProcessingResources"].members["ClusterConfig"].members["InstanceCount"]
    late = Late()

    marker = late.hide(Value(execution="id"), cluster)

    assert isinstance(marker, int)
    assert late.restore({"hosts": float(marker)}) == Value(entries={"hosts": Value(execution="id")})


def test_a_truth_value_has_to_be_written_out() -> None:
    step = json.loads(json.dumps(EVALUATE))
    step["Arguments"]["NetworkConfig"] = {"EnableNetworkIsolation": {"Get": "Parameters.Alone"}}

    with pytest.raises(InvalidInput, match="Step 'E': Boolean has to be written out"):
        compiled(definition(step, parameters=[{"Name": "Alone", "Type": "Boolean", "DefaultValue": True}]))


# -- what else is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("P30D", 30 * 86400), ("PT1H", 3600), ("p1dt30m", 88200), ("T5M", 300), ("30d", 30 * 86400), ("P1W", 604800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert definitions.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "P", "PT", "soon", "P1", 5, None])
def test_what_is_no_duration_is_refused(text: Any) -> None:
    with pytest.raises(InvalidInput, match="is no duration"):
        definitions.duration(text)


def test_paths() -> None:
    assert split_path("a.b['c.d'][0].e", "x") == ("a", "b", "c.d", 0, "e")
    assert split_path('$.a["b"]', "x") == ("a", "b")
    for wrong in ("", "$", "a[", "a['b]", "a..b"):
        with pytest.raises(InvalidInput, match="is not a path"):
            split_path(wrong, "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "It is not JSON"),
        ("[]", "Version"),
        ('{"Version": "2019-01-01"}', "2020-12-01"),
        ('{"Version": "2020-12-01", "Steps": {}}', "Steps is a list"),
        ('{"Version": "2020-12-01", "Steps": [{"Name": "x"}]}', "A step has a Name, a Type and Arguments"),
        ('{"Version": "2020-12-01", "Steps": [5]}', "A step is an object"),
        ('{"Version": "2020-12-01", "Parameters": [{"Name": "x"}]}', "A parameter has a Name and a Type"),
        ("[" * 100_000, "It is not JSON"),
    ],
)
def test_what_is_no_definition_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match="Unable to parse pipeline definition") as refused:
        compiled(text)
    assert said in refused.value.message


def test_a_property_that_is_not_known_is_refused_by_name() -> None:
    step = {
        "Name": "F",
        "Type": "Fail",
        "Arguments": {"ErrorMessage": {"Get": "Steps.E.LastModifiedTime"}},
    }
    with pytest.raises(InvalidInput, match=r"Step 'F': 'Steps\.E\.LastModifiedTime'.*no property LastModifiedTime"):
        compiled(definition(EVALUATE, step))


def test_what_a_step_was_asked_is_known_before_it_ran_and_still_waited_for() -> None:
    message = {"Get": "Steps.E.AppSpecification.ImageUri"}
    index = compiled(definition(EVALUATE, {"Name": "F", "Type": "Fail", "Arguments": {"ErrorMessage": message}}))

    assert index.needs["F"] == ("E",)
    assert cast("FailStep", index.steps["F"]).message == (Value(value="plain:1"),)
