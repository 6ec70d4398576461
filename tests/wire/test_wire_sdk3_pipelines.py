"""A pipeline by the SageMaker SDK 3, from an environment of its own (`make clients`), as its users write one."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopline.testing.live import Platform, write_files

PYTHON = Path(__file__).resolve().parents[2] / ".clients" / "sagemaker3" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="the SageMaker SDK 3 is not there: make clients")
SECONDS = 600  # importing the SDK alone takes many on a busy machine

PREPARE = """
import pathlib, sys
rows = pathlib.Path("/opt/ml/processing/input/raw.csv").read_text().split()
pathlib.Path("/opt/ml/processing/train/rows.csv").write_text("\\n".join(rows[: int(sys.argv[1])]))
"""
TRAIN = """
import argparse, json, os, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--shift", type=float)
args = parser.parse_args()
rows = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"], "rows.csv").read_text().split()
limit = sum(map(float, rows)) / len(rows) + args.shift
pathlib.Path(os.environ["SM_MODEL_DIR"], "model.json").write_text(json.dumps({"limit": limit}))
"""
MEASURE = """
import json, pathlib, tarfile
with tarfile.open("/opt/ml/processing/model/model.tar.gz") as tar:
    limit = json.load(tar.extractfile("model.json"))["limit"]
pathlib.Path("/opt/ml/processing/report/report.json").write_text(json.dumps({"metrics": {"limit": {"value": limit}}}))
"""
PIPELINE = """
import json

from sagemaker.core.helper.session_helper import get_execution_role
from sagemaker.core.model_metrics import MetricsSource, ModelMetrics
from sagemaker.core.processing import ScriptProcessor
from sagemaker.core.shapes import ProcessingInput, ProcessingOutput, ProcessingS3Input, ProcessingS3Output
from sagemaker.core.workflow.conditions import ConditionLessThanOrEqualTo
from sagemaker.core.workflow.functions import Join, JsonGet
from sagemaker.core.workflow.parameters import ParameterFloat, ParameterInteger, ParameterString
from sagemaker.core.workflow.pipeline_context import PipelineSession
from sagemaker.core.workflow.properties import PropertyFile
from sagemaker.mlops.workflow import (
    CacheConfig, ConditionStep, FailStep, ModelStep, Pipeline, ProcessingStep, TrainingStep,
)
from sagemaker.serve.model_builder import ModelBuilder
from sagemaker.train import ModelTrainer
from sagemaker.train.configs import Compute, InputData, SourceCode

session = PipelineSession()
role = get_execution_role()
bucket = session.default_bucket()
image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/plain:1"
session.upload_string_as_file_body("1 2 3 4 100", bucket, "raw/raw.csv")
approval = ParameterString(name="ModelApprovalStatus", default_value="PendingManualApproval")
machine = ParameterString(name="InstanceType", default_value="ml.m5.large")
count = ParameterInteger(name="Rows", default_value=4)
shift = ParameterFloat(name="Shift", default_value=0.5)
most = ParameterFloat(name="Most", default_value=5.0)
cache = CacheConfig(enable_caching=True, expire_after="P7D")


def processor():
    return ScriptProcessor(
        image_uri=image, command=["python3"], instance_type=machine, instance_count=1, role=role,
        base_job_name="limits", sagemaker_session=session,
    )


def given(name, uri, path):
    return ProcessingInput(input_name=name, s3_input=ProcessingS3Input(
        s3_uri=uri, local_path=path, s3_data_type="S3Prefix", s3_input_mode="File"))


def left(name, path):
    return ProcessingOutput(output_name=name, s3_output=ProcessingS3Output(
        s3_uri=f"s3://{bucket}/limits/{name}", local_path=path, s3_upload_mode="EndOfJob"))


prepare = ProcessingStep(
    name="Prepare",
    step_args=processor().run(
        code="prepare.py",
        arguments=[count.to_string()],
        inputs=[given("raw", f"s3://{bucket}/raw", "/opt/ml/processing/input")],
        outputs=[left("train", "/opt/ml/processing/train")],
    ),
    cache_config=cache,
)
trainer = ModelTrainer(
    training_image=image,
    source_code=SourceCode(source_dir="source", entry_script="train.py"),
    compute=Compute(instance_type=machine, instance_count=1),
    hyperparameters={"shift": shift},
    base_job_name="limits",
    sagemaker_session=session,
    role=role,
    input_data_config=[InputData(
        channel_name="train", data_source=prepare.properties.ProcessingOutputConfig.Outputs["train"].S3Output.S3Uri,
        content_type="text/csv",
    )],
)
train = TrainingStep(name="Train", step_args=trainer.train(), cache_config=cache)
artifacts = train.properties.ModelArtifacts.S3ModelArtifacts
report = PropertyFile(name="Report", output_name="report", path="report.json")
measure = ProcessingStep(
    name="Measure",
    step_args=processor().run(
        code="measure.py",
        inputs=[given("model", artifacts, "/opt/ml/processing/model")],
        outputs=[left("report", "/opt/ml/processing/report")],
    ),
    property_files=[report],
)
uri = measure.properties.ProcessingOutputConfig.Outputs["report"].S3Output.S3Uri
statistics = MetricsSource(content_type="application/json", s3_uri=Join(on="/", values=[uri, "report.json"]))
builder = ModelBuilder(
    s3_model_data_url=artifacts, image_uri=image, sagemaker_session=session, role_arn=role, instance_type="ml.m5.large",
)
create = ModelStep(name="Create", step_args=builder.build())
register = ModelStep(
    name="Register",
    step_args=builder.register(
        model_package_group_name="limits", content_types=["text/csv"], response_types=["text/csv"],
        inference_instances=["ml.m5.large"], approval_status=approval,
        model_metrics=ModelMetrics(model_statistics=statistics),
    ),
)
small = ConditionLessThanOrEqualTo(
    left=JsonGet(step_name=measure.name, property_file=report, json_path="metrics.limit.value"), right=most,
)
fail = FailStep(name="TooLarge", error_message=Join(on=" ", values=["the limit is above", most]))
decide = ConditionStep(name="SmallEnough", conditions=[small], if_steps=[create, register], else_steps=[fail])
pipeline = Pipeline(
    name="limits", parameters=[approval, machine, count, shift, most], steps=[prepare, train, measure, decide],
    sagemaker_session=session,
)

arns = [pipeline.upsert(role_arn=role)["PipelineArn"] for _ in range(2)]
found = {"arns": arns, "executions": []}
for parameters in ({}, {"Shift": 1.5}, {"Rows": 5}):
    execution = pipeline.start(parameters={"ModelApprovalStatus": "Approved", **parameters})
    try:
        execution.wait(delay=1, max_attempts=180)
    except Exception as error:
        found["error"] = str(error)
    steps = execution.list_steps()
    steps = steps if isinstance(steps, list) else steps["PipelineExecutionSteps"]
    told = {
        step["StepName"]: [step["StepStatus"], "CacheHitResult" in step, step.get("FailureReason")] for step in steps
    }
    found["executions"].append([execution.describe()["PipelineExecutionStatus"], told])
found["executions_listed"] = len(pipeline.list_executions()["PipelineExecutionSummaries"])
print("\\nFOUND " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {"source/train.py": TRAIN, "prepare.py": PREPARE, "measure.py": MEASURE, "pipeline.py": PIPELINE}
    return write_files(tmp_path_factory.mktemp("sdk3"), files)


def test_upsert_start_wait_and_list_steps(
    platform: Platform, project: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_script(PYTHON, project / "pipeline.py", SECONDS)

    found: dict[str, Any] = json.loads(done.stdout.rpartition("FOUND ")[2])
    assert found["arns"] == ["arn:aws:sagemaker:us-east-1:123456789012:pipeline/limits"] * 2
    (good, first), (other, second), (bad, third) = found["executions"]
    assert (good, other, bad, found["executions_listed"]) == ("Succeeded", "Succeeded", "Failed", 3)
    assert set(first) == {"Prepare", "Train", "Measure", "SmallEnough", "Create", "Register"}
    assert all(status == "Succeeded" for status, *_ in first.values())
    assert second["Prepare"][1] and not second["Train"][1]  # what was known of the first is taken again
    assert third["TooLarge"] == ["Failed", False, "the limit is above 5.0"] and "Register" not in third
    versions = platform.call("GET", "/api/models/limits/versions")["items"]
    told = sorted((row["number"], row["status"], row["metrics"]["limit"]) for row in versions)
    assert told == [(1, "Approved", 3.0), (2, "Approved", 4.0)]
    assert platform.call("GET", "/api/pipelines/limits")["version"] == 2  # each upsert uploads its code anew
    servables = platform.call("GET", "/api/servables")["items"]
    assert len([row for row in servables if row["handler"] == "sagemaker"]) >= 2
