"""Jobs by the SageMaker SDK 2.257, from an environment of its own (`make clients`): fit, run, transform, and logs."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loopline.testing.live import Platform, write_files

PYTHON = Path(__file__).resolve().parents[2] / ".clients" / "sagemaker2" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="the SageMaker SDK is not there: make clients")
SECONDS = 300

TRAIN = """
import argparse, os, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--factor", type=float)
args, _ = parser.parse_known_args()
rows = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"], "rows.csv").read_text().split()
slope = sum(map(float, rows)) / len(rows) * args.factor
print(f"slope={slope};")
pathlib.Path(os.environ["SM_MODEL_DIR"], "slope").write_text(str(slope))
"""
INFERENCE = """
import pathlib

def model_fn(model_dir):
    return float(pathlib.Path(model_dir, "slope").read_text())

def predict_fn(rows, slope):
    return [[slope * float(row[0])] for row in rows]
"""
CLEAN = """
import argparse, pathlib
import tidy
parser = argparse.ArgumentParser()
parser.add_argument("--least", type=float)
least = parser.parse_args().least
rows = pathlib.Path("/opt/ml/processing/input/data/raw.csv").read_text().split()
pathlib.Path("/opt/ml/processing/output/rows.csv").write_text("\\n".join(tidy.above(rows, least)))
print("kept", len(tidy.above(rows, least)))
"""
TIDY = "def above(rows, least):\n    return [row for row in rows if float(row) >= least]\n"
RUN = """
import json

import sagemaker
from sagemaker.estimator import Estimator
from sagemaker.inputs import TrainingInput
from sagemaker.model import Model
from sagemaker.processing import FrameworkProcessor, ProcessingInput, ProcessingOutput
from sagemaker.s3 import S3Downloader, S3Uploader
from sagemaker.sklearn import SKLearn

session = sagemaker.Session()
role = sagemaker.get_execution_role(sagemaker_session=session)
bucket = session.default_bucket()
image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/plain:1"
machine = {"instance_count": 1, "instance_type": "ml.m5.large"}
common = {"role": role, "image_uri": image, "sagemaker_session": session, **machine}

raw = S3Uploader.upload_string_as_file_body("1\\n2\\n3\\n4", f"s3://{bucket}/raw/raw.csv")
cleaner = FrameworkProcessor(estimator_cls=SKLearn, framework_version="1.2-1", base_job_name="clean", **common)
cleaner.run(
    code="clean.py",
    source_dir="cleaning",
    arguments=["--least", "2"],
    inputs=[ProcessingInput(source=raw, destination="/opt/ml/processing/input/data", input_name="raw")],
    outputs=[
        ProcessingOutput(source="/opt/ml/processing/output", destination=f"s3://{bucket}/clean", output_name="clean")
    ],
)
estimator = Estimator(
    entry_point="train.py",
    source_dir="training",
    hyperparameters={"factor": 2},
    metric_definitions=[{"Name": "slope", "Regex": "slope=([0-9.]+);"}],
    output_path=f"s3://{bucket}/models",
    **common,
)
estimator.fit({"train": TrainingInput(f"s3://{bucket}/clean")}, wait=True, logs="All", job_name="slope-1")
model = Model(
    image_uri=image,
    model_data=estimator.model_data,
    role=role,
    entry_point="inference.py",
    source_dir="serving",
    sagemaker_session=session,
    name="slope",
)
S3Uploader.upload_string_as_file_body("10\\n20\\n", f"s3://{bucket}/ask/numbers.csv")
model.create(instance_type="ml.m5.large")
transformer = sagemaker.transformer.Transformer(
    model_name="slope", output_path=f"s3://{bucket}/told", accept="text/csv", assemble_with="Line",
    sagemaker_session=session, **machine,
)
transformer.transform(f"s3://{bucket}/ask", content_type="text/csv", split_type="Line", job_name="told-1", logs=True)
print(json.dumps({
    "data": estimator.model_data,
    "clean": S3Downloader.read_file(f"s3://{bucket}/clean/rows.csv", sagemaker_session=session),
    "told": S3Downloader.read_file(f"s3://{bucket}/told/numbers.csv.out", sagemaker_session=session),
}))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {
        "training/train.py": TRAIN,
        "serving/inference.py": INFERENCE,
        "cleaning/clean.py": CLEAN,
        "cleaning/tidy.py": TIDY,
        "cleaning/requirements.txt": "# nothing beyond the image\n",
        "run.py": RUN,
    }
    return write_files(tmp_path_factory.mktemp("sdk"), files)


def test_fit_run_and_transform_with_logs(
    platform: Platform, project: Path, run_script: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_script(PYTHON, project / "run.py", SECONDS)

    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["clean"].split() == ["2", "3", "4"]
    assert [float(line) for line in found["told"].split()] == [60.0, 120.0]
    assert (done.stdout.count("slope=6.0;"), done.stdout.count("kept 3")) == (1, 1)  # the logs, each line once
    assert found["data"].endswith("/models/slope-1/output/model.tar.gz")
    native = platform.call("GET", "/api/scripts/training/slope-1")
    assert platform.call("GET", f"/api/runs/{native['run']}")["metrics"]["slope"]["value"] == 6.0
