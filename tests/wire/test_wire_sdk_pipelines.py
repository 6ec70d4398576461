"""A pipeline by the SageMaker SDK 2.257, from an environment of its own (`make clients`), as its users write one."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopline.testing.live import Platform, until, write_files

PYTHON = Path(__file__).resolve().parents[2] / ".clients" / "sagemaker2" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="the SageMaker SDK is not there: make clients")
Kill = Callable[..., None]
ENDED = ("Succeeded", "Failed", "Skipped")
SECONDS = 600  # importing the SDK alone takes many on a busy machine

TRAIN = """
import argparse, json, os, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--shift", type=float)
args, _ = parser.parse_known_args()
rows = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"], "rows.csv").read_text().split()
limit = sum(map(float, rows)) / len(rows) + args.shift
print(f"limit={limit:.3f};")
pathlib.Path(os.environ["SM_MODEL_DIR"], "model.json").write_text(json.dumps({"limit": limit}))
"""
PREPARE = """
import pathlib, sys
rows = pathlib.Path("/opt/ml/processing/input/raw.csv").read_text().split()
pathlib.Path("/opt/ml/processing/train/rows.csv").write_text("\\n".join(rows[: int(sys.argv[1])]))
"""
MEASURE = """
import json, pathlib, tarfile
with tarfile.open("/opt/ml/processing/model/model.tar.gz") as tar:
    limit = json.load(tar.extractfile("model.json"))["limit"]
pathlib.Path("/opt/ml/processing/report/report.json").write_text(json.dumps({"metrics": {"limit": {"value": limit}}}))
"""
PIPELINE = """
import json, sys

import sagemaker
from sagemaker.estimator import Estimator
from sagemaker.inputs import TrainingInput
from sagemaker.model import Model
from sagemaker.model_metrics import MetricsSource, ModelMetrics
from sagemaker.processing import ProcessingInput, ProcessingOutput, ScriptProcessor
from sagemaker.workflow.condition_step import ConditionStep
from sagemaker.workflow.conditions import ConditionLessThanOrEqualTo
from sagemaker.workflow.fail_step import FailStep
from sagemaker.workflow.functions import Join, JsonGet
from sagemaker.workflow.model_step import ModelStep
from sagemaker.workflow.parameters import ParameterFloat, ParameterInteger, ParameterString
from sagemaker.workflow.pipeline import Pipeline
from sagemaker.workflow.pipeline_context import PipelineSession
from sagemaker.workflow.properties import PropertyFile
from sagemaker.workflow.steps import CacheConfig, ProcessingStep, TrainingStep

session = PipelineSession()
role = sagemaker.get_execution_role(sagemaker_session=sagemaker.Session())
bucket = session.default_bucket()
image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/plain:1"
session.upload_string_as_file_body("1 2 3 4 100", bucket, "raw/raw.csv")
approval = ParameterString("ModelApprovalStatus", default_value="PendingManualApproval")
count = ParameterInteger("Rows", default_value=4)
most = ParameterFloat("Most", default_value=5.0)
common = {"role": role, "instance_count": 1, "instance_type": "ml.m5.large", "sagemaker_session": session}
cache = CacheConfig(enable_caching=True, expire_after="P7D")

prepare = ProcessingStep(
    "Prepare",
    step_args=ScriptProcessor(image_uri=image, command=["python3"], **common).run(
        code="prepare.py",
        arguments=[count.to_string()],
        inputs=[ProcessingInput(source=f"s3://{bucket}/raw", destination="/opt/ml/processing/input")],
        outputs=[ProcessingOutput(output_name="train", source="/opt/ml/processing/train")],
    ),
    cache_config=cache,
)
rows = prepare.properties.ProcessingOutputConfig.Outputs["train"].S3Output.S3Uri
estimator = Estimator(
    image_uri=image,
    entry_point="train.py",
    source_dir="source",
    hyperparameters={"shift": 0.5},
    metric_definitions=[{"Name": "limit", "Regex": "limit=([0-9.]+);"}],
    **common,
)
train = TrainingStep("Train", step_args=estimator.fit({"train": TrainingInput(rows)}), cache_config=cache)
artifacts = train.properties.ModelArtifacts.S3ModelArtifacts
report = PropertyFile(name="Report", output_name="report", path="report.json")
measure = ProcessingStep(
    "Measure",
    step_args=ScriptProcessor(image_uri=image, command=["python3"], **common).run(
        code="measure.py",
        inputs=[ProcessingInput(source=artifacts, destination="/opt/ml/processing/model")],
        outputs=[ProcessingOutput(output_name="report", source="/opt/ml/processing/report")],
    ),
    property_files=[report],
)
uri = measure.properties.ProcessingOutputConfig.Outputs["report"].S3Output.S3Uri
statistics = MetricsSource(content_type="application/json", s3_uri=Join(on="/", values=[uri, "report.json"]))
model = Model(image_uri=image, model_data=artifacts, role=role, sagemaker_session=session)
register = ModelStep(
    "Limits",
    step_args=model.register(
        content_types=["text/csv"],
        response_types=["text/csv"],
        inference_instances=["ml.m5.large"],
        transform_instances=["ml.m5.large"],
        model_package_group_name=sys.argv[1],
        approval_status=approval,
        model_metrics=ModelMetrics(model_statistics=statistics),
    ),
)
small = ConditionLessThanOrEqualTo(
    left=JsonGet(step_name=measure.name, property_file=report, json_path="metrics.limit.value"), right=most
)
fail = FailStep("TooLarge", error_message=Join(on=" ", values=["the limit is above", most]))
decide = ConditionStep("SmallEnough", conditions=[small], if_steps=[register], else_steps=[fail])
pipeline = Pipeline(sys.argv[1], parameters=[approval, count, most], steps=[prepare, train, measure, decide],
                    sagemaker_session=session)

arns = [pipeline.upsert(role_arn=role)["PipelineArn"] for _ in range(2)]
found = {"arns": arns, "executions": []}
for given in ({}, {"Rows": 5}):
    execution = pipeline.start(parameters={"ModelApprovalStatus": "Approved", **given})
    try:
        execution.wait(delay=1, max_attempts=120)
    except Exception as error:
        found["error"] = str(error)
    steps = [
        {key: step.get(key) for key in ("StepName", "StepStatus", "FailureReason")} for step in execution.list_steps()
    ]
    described = execution.describe()
    found["executions"].append({"arn": execution.arn, "status": described["PipelineExecutionStatus"], "steps": steps})
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {"source/train.py": TRAIN, "prepare.py": PREPARE, "measure.py": MEASURE, "pipeline.py": PIPELINE}
    return write_files(tmp_path_factory.mktemp("sdk"), files)


def begin(shell: dict[str, str], project: Path, name: str) -> subprocess.Popen[str]:
    """The user's script, with a pipeline and a group of models of that name."""
    argv, environ = [str(PYTHON), "pipeline.py", name], {**shell, "HOME": str(project)}
    return subprocess.Popen(
        argv, cwd=project, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )


def printed(script: subprocess.Popen[str]) -> dict[str, Any]:
    """What the script printed last, once it has ended well."""
    try:
        out, complaints = script.communicate(timeout=SECONDS)
    finally:
        script.kill()
    assert script.returncode == 0, complaints[-4000:]
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def versions(platform: Platform, model: str) -> list[tuple[Any, ...]]:
    items = platform.call("GET", f"/api/models/{model}/versions")["items"]
    return [(row["number"], row["status"], row["metrics"]) for row in items]


def test_upsert_start_wait_and_list_steps(platform: Platform, project: Path, shell: dict[str, str]) -> None:
    found = printed(begin(shell, project, "limits"))

    assert found["arns"] == ["arn:aws:sagemaker:us-east-1:123456789012:pipeline/limits"] * 2
    good, bad = found["executions"]
    assert (good["status"], bad["status"]) == ("Succeeded", "Failed")
    names = ["Limits-RegisterModel", "SmallEnough", "Measure", "Train", "Prepare"]  # the last first
    assert [step["StepName"] for step in good["steps"]] == names
    assert bad["steps"][0] == {
        "StepName": "TooLarge",
        "StepStatus": "Failed",
        "FailureReason": "the limit is above 5.0",
    }
    assert versions(platform, "limits") == [(1, "Approved", {"limit": 3.0})]
    assert platform.call("GET", "/api/pipelines/limits")["version"] == 1


def test_the_script_waits_through_every_death_of_control(
    platform: Platform, project: Path, shell: dict[str, str]
) -> None:
    script = begin(shell, project, "survivors")
    ended, deaths = 0, 0
    until(lambda: script.poll() is not None or executions(platform, "survivors"), "an execution has begun", SECONDS)
    while script.poll() is None:
        until(lambda n=ended: script.poll() is not None or steps_ended(platform, "survivors") > n, "a step ends", 180)  # type: ignore[misc]
        if script.poll() is None:
            ended = steps_ended(platform, "survivors")
            platform.kill("control")
            deaths += 1
    found = printed(script)

    assert deaths >= 5
    assert [execution["status"] for execution in found["executions"]] == ["Succeeded", "Failed"], found
    assert versions(platform, "survivors") == [(1, "Approved", {"limit": 3.0})]


def executions(platform: Platform, pipeline: str) -> list[Any]:
    items = platform.call("GET", "/api/executions")["items"]
    return [each["id"] for each in items if each["pipeline"] == pipeline]


def steps_ended(platform: Platform, pipeline: str) -> int:
    """How many steps of all its executions have come to their end."""
    found = [platform.call("GET", f"/api/executions/{each}")["steps"] for each in executions(platform, pipeline)]
    return sum(step["status"] in ENDED for steps in found for step in steps)
