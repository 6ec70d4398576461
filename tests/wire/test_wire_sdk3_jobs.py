"""The SageMaker SDK 3 in its own style, from an environment of its own (`make clients`): a processing job, a training
by a ModelTrainer, a ModelBuilder's model, version and endpoint, and the resource classes of sagemaker.core."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopline.testing.live import Platform, write_files

PYTHON = Path(__file__).resolve().parents[2] / ".clients" / "sagemaker3" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="the SageMaker SDK 3 is not there: make clients")
SECONDS = 400  # importing the SDK alone takes many on a busy machine

TRAIN = """
import argparse, os, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--factor", type=float)
factor = parser.parse_args().factor
rows = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"], "rows.csv").read_text().split()
notes = pathlib.Path(os.environ["SM_CHANNEL_NOTES"], "notes.txt").read_text()
slope = sum(map(float, rows)) / len(rows) * factor
print(f"slope={slope}; {notes}")
pathlib.Path(os.environ["SM_MODEL_DIR"], "slope").write_text(str(slope))
"""
CLEAN = """
import pathlib, sys
rows = pathlib.Path("/opt/ml/processing/input/raw.csv").read_text().split()
kept = [row for row in rows if float(row) >= float(sys.argv[2])]
pathlib.Path("/opt/ml/processing/output/rows.csv").write_text("\\n".join(kept))
print("kept", len(kept))
"""
INFERENCE = """
import pathlib

def model_fn(model_dir):
    return float(pathlib.Path(model_dir, "slope").read_text())

def predict_fn(rows, slope):
    return [[slope * float(row[0])] for row in rows]
"""
RUN = """
import json

from sagemaker.core.helper.session_helper import Session, get_execution_role
from sagemaker.core.processing import ScriptProcessor
from sagemaker.core.resources import (
    Endpoint, EndpointConfig, Model, ModelPackage, ModelPackageGroup, ProcessingJob, TrainingJob,
)
from sagemaker.core.shapes import (
    ContainerDefinition, ProcessingInput, ProcessingOutput, ProcessingS3Input, ProcessingS3Output, ProductionVariant,
)
from sagemaker.serve import ModelBuilder
from sagemaker.train import ModelTrainer
from sagemaker.train.configs import Compute, InputData, MetricDefinition, SourceCode

session = Session()
role = get_execution_role()
bucket = session.default_bucket()
image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/plain:1"
found = {}

# data, by a processing job
session.upload_string_as_file_body("1\\n2\\n3\\n4", bucket, "raw/raw.csv")
processor = ScriptProcessor(
    image_uri=image, command=["python3"], instance_type="ml.m5.large", instance_count=1, base_job_name="clean",
    role=role, sagemaker_session=session,
)
processor.run(
    code="clean.py",
    arguments=["--least", "2"],
    inputs=[ProcessingInput(input_name="raw", s3_input=ProcessingS3Input(
        s3_uri=f"s3://{bucket}/raw", local_path="/opt/ml/processing/input", s3_data_type="S3Prefix",
        s3_input_mode="File", s3_data_distribution_type="ShardedByS3Key"))],
    outputs=[ProcessingOutput(output_name="clean", s3_output=ProcessingS3Output(
        s3_uri=f"s3://{bucket}/clean", local_path="/opt/ml/processing/output", s3_upload_mode="EndOfJob"))],
)
found["processing"] = [job.get_name() for job in ProcessingJob.get_all(name_contains="clean")]

# a training
trainer = ModelTrainer(
    training_image=image,
    source_code=SourceCode(source_dir="training", entry_script="train.py", requirements="needs.txt"),
    compute=Compute(instance_type="ml.m5.large", instance_count=1),
    hyperparameters={"factor": 2},
    base_job_name="slope",
).with_metric_definitions([MetricDefinition(name="slope", regex="slope=([0-9.]+);")])
trainer.train(input_data_config=[
    InputData(channel_name="train", data_source=f"s3://{bucket}/clean"),
    InputData(channel_name="notes", data_source="notes"),
])
job = TrainingJob.get(training_job_name=trainer._latest_training_job.training_job_name)
found["training"] = [job.training_job_name, job.training_job_status, job.secondary_status]
found["metrics"] = {each.metric_name: each.value for each in job.final_metric_data_list}

# its model, registered, and served
builder = ModelBuilder(
    image_uri=image,
    s3_model_data_url=job.model_artifacts.s3_model_artifacts,
    source_code=SourceCode(source_dir="serving", entry_script="inference.py"),
    instance_type="ml.m5.large",
    sagemaker_session=session,
    role_arn=role,
)
model = builder.build(model_name="slope")
arn = builder.register(
    model_package_group_name="slopes", content_types=["text/csv"], response_types=["text/csv"],
    inference_instances=["ml.m5.large"], approval_status="PendingManualApproval",
)
endpoint = builder.deploy(endpoint_name="slope", initial_instance_count=1, wait=False)
package = ModelPackage.get(model_package_name=arn)
package.update(model_approval_status="Approved", approval_description="a person looked at it")
package.refresh()
group = ModelPackageGroup.get(model_package_group_name="slopes")
found["package"] = [package.model_approval_status, package.model_package_version, group.model_package_group_arn]
endpoint.wait_for_status("InService", poll=1, timeout=120)
answer = endpoint.invoke(body="10\\n20\\n", content_type="text/csv", accept="text/csv")
found["answer"] = [answer.body.read().decode(), answer.invoked_production_variant]

# the same by resources alone, and an update
Model.create(
    model_name="registered", primary_container=ContainerDefinition(model_package_name=arn), execution_role_arn=role,
)
EndpointConfig.create(
    endpoint_config_name="registered",
    production_variants=[ProductionVariant(
        variant_name="AllTraffic", model_name="registered", initial_instance_count=1, instance_type="ml.m5.large",
    )],
)
before = endpoint.endpoint_config_name
endpoint.endpoint_config_name = "registered"
endpoint.update()
endpoint.wait_for_status("InService", poll=1, timeout=120)
found["updated"] = [before, Endpoint.get(endpoint_name="slope").endpoint_config_name]
found["again"] = endpoint.invoke(body="1", content_type="text/csv", accept="text/csv").body.read().decode()
found["listed"] = {
    "endpoints": [each.endpoint_name for each in Endpoint.get_all()],
    "configs": sorted(each.endpoint_config_name for each in EndpointConfig.get_all()),
    "models": sorted(each.model_name for each in Model.get_all()),
    "groups": [each.model_package_group_name for each in ModelPackageGroup.get_all()],
    "packages": [each.model_package_arn for each in ModelPackage.get_all(model_package_group_name="slopes")],
    "jobs": [each.training_job_name for each in TrainingJob.get_all(status_equals="Completed")],
}
EndpointConfig.get(endpoint_config_name=before).delete()
try:
    Endpoint.get(endpoint_name="none")
except Exception as error:
    found["unknown"] = str(error)
print("\\nFOUND " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {
        "training/train.py": TRAIN,
        "training/needs.txt": "# nothing beyond the image\n",
        "serving/inference.py": INFERENCE,
        "notes/notes.txt": "noted",
        "clean.py": CLEAN,
        "run.py": RUN,
    }
    return write_files(tmp_path_factory.mktemp("sdk3"), files)


def test_process_train_register_deploy_and_update(
    platform: Platform, project: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_script(PYTHON, project / "run.py", SECONDS, COLUMNS="400")

    found: dict[str, Any] = json.loads(done.stdout.rpartition("FOUND ")[2])
    name = found["training"][0]
    assert name.startswith("slope-") and found["training"][1:] == ["Completed", "Completed"]
    assert found["metrics"] == {"slope": 6.0}
    said = done.stdout + done.stderr
    assert "slope=6.0; noted" in said and "kept 3" in said  # the logs
    assert found["package"] == ["Approved", 1, "arn:aws:sagemaker:us-east-1:123456789012:model-package-group/slopes"]
    assert [float(line) for line in found["answer"][0].split()] == [60.0, 120.0]
    assert found["answer"][1] == "AllTraffic"
    assert found["updated"][1] == "registered" and float(found["again"]) == 6.0
    listed = found["listed"]
    assert (listed["endpoints"], listed["groups"], listed["jobs"]) == (["slope"], ["slopes"], [name])
    assert listed["configs"] == sorted([found["updated"][0], "registered"])
    assert listed["models"] == ["registered", "slope"] and len(listed["packages"]) == 1
    assert "Could not find" in found["unknown"]
    # and what loopline's own interface says of all that
    assert [row["name"] for row in platform.call("GET", "/api/blueprints")["items"]] == ["registered"]
    script = platform.call("GET", f"/api/scripts/training/{name}")
    assert platform.call("GET", f"/api/runs/{script['run']}")["metrics"]["slope"]["value"] == 6.0
    [version] = platform.call("GET", "/api/models/slopes/versions")["items"]
    assert (version["status"], version["comment"]) == ("Approved", "a person looked at it")
    served = platform.ask("POST", "/endpoints/slope/invocations", b"5", headers={"content-type": "text/csv"})
    assert served.status == 200 and json.loads(served.body)[0][0] == 30.0
