"""Pipelines in SageMaker's language, asked by boto3: every step really runs, and the effects are read elsewhere."""

import json
import os
import signal
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from loopline.testing.live import Platform, packed, until

Client = Callable[..., Any]
Json = dict[str, Any]
ACCOUNT = "123456789012"
IMAGE = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/plain:1"  # the standard library alone
ROLE = f"arn:aws:iam::{ACCOUNT}:role/pipelines"
BUCKET = "wire-pipelines"
FOLDER = "/opt/ml/processing"
OVER = ("Succeeded", "Failed", "Stopped")

SPLIT = """
import argparse, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--share", type=float)
args = parser.parse_args()
rows = pathlib.Path("/opt/ml/processing/input/boxes.csv").read_text().split()
cut = 1 + int((len(rows) - 1) * args.share)
out = pathlib.Path("/opt/ml/processing/output")
(out / "train" / "boxes.csv").write_text("\\n".join(rows[:cut]))
(out / "test" / "boxes.csv").write_text("\\n".join([rows[0], *rows[cut:]]))
"""
TRAIN = """
import argparse, csv, json, os, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--shift", type=float, default=0.0)
args = parser.parse_args()
sizes = {}
for row in csv.DictReader(open(os.environ["SM_CHANNEL_TRAIN"] + "/boxes.csv")):
    sizes.setdefault(row["kind"], []).append(float(row["size"]))
limit = sum(sum(found) / len(found) for found in sizes.values()) / len(sizes) + args.shift
folder = pathlib.Path(os.environ["SM_MODEL_DIR"])
(folder / "model.json").write_text(json.dumps({"limit": limit}))
(folder / "code").mkdir()
(folder / "code" / "inference.py").write_text(pathlib.Path("inference.py").read_text())
"""
INFERENCE = """
import json, pathlib
def model_fn(folder):
    return json.loads(pathlib.Path(folder, "model.json").read_text())["limit"]
def input_fn(body, content_type):
    return json.loads(body)
def predict_fn(sizes, limit):
    return ["large" if size > limit else "small" for size in sizes]
def output_fn(kinds, accept):
    return json.dumps(kinds)
"""
EVALUATE = """
import csv, json, pathlib, tarfile
with tarfile.open("/opt/ml/processing/model/model.tar.gz") as tar:
    limit = json.load(tar.extractfile("model.json"))["limit"]
rows = list(csv.DictReader(open("/opt/ml/processing/test/boxes.csv")))
right = sum((float(row["size"]) > limit) == (row["kind"] == "large") for row in rows)
report = {"binary_classification_metrics": {"accuracy": {"value": right / len(rows), "standard_deviation": "NaN"}}}
pathlib.Path("/opt/ml/processing/evaluation/evaluation.json").write_text(json.dumps(report))
"""


@pytest.fixture(scope="module", autouse=True)
def ground(platform: Platform, client: Client) -> None:
    """A bucket with data and programs, and an image without packages."""
    platform.call("PUT", "/api/images/plain", {"requirements": ""})
    s3 = client("s3")
    s3.create_bucket(Bucket=BUCKET)
    rows = "size,kind\n1,small\n12,large\n3,small\n8,large\n2,small\n11,large\n4,small\n9,large\n"
    s3.put_object(Bucket=BUCKET, Key="raw/boxes.csv", Body=rows.encode())
    s3.put_object(Bucket=BUCKET, Key="code/split.py", Body=SPLIT.encode())
    s3.put_object(Bucket=BUCKET, Key="code/evaluate.py", Body=EVALUATE.encode())
    s3.put_object(
        Bucket=BUCKET,
        Key="code/sourcedir.tar.gz",
        Body=packed({"train.py": TRAIN, "inference.py": INFERENCE}, compressed=True),
    )


# -- definitions as the SageMaker SDK writes them ---------------------------------------------------------------------


def get(path: str) -> Json:
    return {"Get": path}


def join(on: str, *values: Any) -> Json:
    return {"Std:Join": {"On": on, "Values": list(values)}}


def place(step: str, output: str) -> Json:
    """Where the SDK puts a processing job's output unless it is told."""
    return join("/", "s3:/", BUCKET, "boxes", get("Execution.PipelineExecutionId"), step, "output", output)


def processing(
    name: str, program: str, inputs: dict[str, tuple[str, Any]], outputs: dict[str, str], *words: Any, **more: Any
) -> Json:
    def given(key: str, path: str, uri: Any) -> Json:
        source = {"S3Uri": uri, "LocalPath": f"{FOLDER}/{path}", "S3DataType": "S3Prefix", "S3InputMode": "File"}
        kinds = {"S3DataDistributionType": "FullyReplicated", "S3CompressionType": "None"}
        return {"InputName": key, "AppManaged": False, "S3Input": {**source, **kinds}}

    code = given("code", "input/code", f"s3://{BUCKET}/code/{program}")
    return {
        "Name": name,
        "Type": "Processing",
        "Arguments": {
            "ProcessingResources": {
                "ClusterConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30}
            },
            "AppSpecification": {
                "ImageUri": IMAGE,
                **({"ContainerArguments": list(words)} if words else {}),
                "ContainerEntrypoint": ["python3", f"{FOLDER}/input/code/{program}"],
            },
            "RoleArn": ROLE,
            "ProcessingInputs": [*(given(key, path, uri) for key, (path, uri) in inputs.items()), code],
            "ProcessingOutputConfig": {
                "Outputs": [
                    {
                        "OutputName": key,
                        "AppManaged": False,
                        "S3Output": {
                            "S3Uri": place(name, key),
                            "LocalPath": f"{FOLDER}/{path}",
                            "S3UploadMode": "EndOfJob",
                        },
                    }
                    for key, path in outputs.items()
                ]
            },
        },
        **more,
    }


def training(name: str, train: Any, **more: Any) -> Json:
    return {
        "Name": name,
        "Type": "Training",
        "Arguments": {
            "AlgorithmSpecification": {"TrainingInputMode": "File", "TrainingImage": IMAGE},
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/models"},
            "StoppingCondition": {"MaxRuntimeInSeconds": 600},
            "ResourceConfig": {"VolumeSizeInGB": 30, "InstanceCount": 1, "InstanceType": "ml.m5.large"},
            "RoleArn": ROLE,
            "InputDataConfig": [
                {
                    "DataSource": {
                        "S3DataSource": {
                            "S3DataType": "S3Prefix",
                            "S3Uri": train,
                            "S3DataDistributionType": "FullyReplicated",
                        }
                    },
                    "ChannelName": "train",
                }
            ],
            "HyperParameters": {
                "shift": join("", get("Parameters.Shift")),
                "sagemaker_submit_directory": json.dumps(f"s3://{BUCKET}/code/sourcedir.tar.gz"),
                "sagemaker_program": json.dumps("train.py"),
                "sagemaker_region": json.dumps("us-east-1"),
            },
        },
        **more,
    }


TRAINED = get("Steps.Train.ModelArtifacts.S3ModelArtifacts")
ACCURACY = {
    "Std:JsonGet": {
        "PropertyFile": get("Steps.Evaluate.PropertyFiles.Report"),
        "Path": "binary_classification_metrics.accuracy.value",
    }
}
CACHED = {"CacheConfig": {"Enabled": True, "ExpireAfter": "P30D"}}
PARAMETERS = [
    {"Name": "Data", "Type": "String", "DefaultValue": f"s3://{BUCKET}/raw/boxes.csv"},
    {"Name": "Share", "Type": "Float", "DefaultValue": 0.5},
    {"Name": "Shift", "Type": "Float", "DefaultValue": 0.0},
    {"Name": "Accuracy", "Type": "Float", "DefaultValue": 0.9},
    {
        "Name": "Approval",
        "Type": "String",
        "DefaultValue": "PendingManualApproval",
        "EnumValues": ["PendingManualApproval", "Approved"],
    },
]


def register(group: str) -> Json:
    report = join(
        "/", get("Steps.Evaluate.ProcessingOutputConfig.Outputs['evaluation'].S3Output.S3Uri"), "evaluation.json"
    )
    return {
        "Name": "Boxes-RegisterModel",
        "Type": "RegisterModel",
        "Arguments": {
            "ModelPackageGroupName": group,
            "ModelMetrics": {
                "ModelQuality": {"Statistics": {"ContentType": "application/json", "S3Uri": report}},
                "Bias": {},
                "Explainability": {},
            },
            "InferenceSpecification": {
                "Containers": [
                    {"Image": IMAGE, "Environment": {"SAGEMAKER_PROGRAM": "inference.py"}, "ModelDataUrl": TRAINED}
                ],
                "SupportedContentTypes": ["application/json"],
                "SupportedResponseMIMETypes": ["application/json"],
                "SupportedRealtimeInferenceInstanceTypes": ["ml.m5.large"],
                "SupportedTransformInstanceTypes": ["ml.m5.large"],
            },
            "ModelApprovalStatus": get("Parameters.Approval"),
        },
    }


def boxes(group: str, **cached: Any) -> Json:
    """Processing, training, evaluation, and a condition that registers or fails."""
    split = processing(
        "Split",
        "split.py",
        {"input-1": ("input", get("Parameters.Data"))},
        {"train": "output/train", "test": "output/test"},
        "--share",
        join("", get("Parameters.Share")),
        **cached,
    )
    evaluate = processing(
        "Evaluate",
        "evaluate.py",
        {
            "input-1": ("model", TRAINED),
            "input-2": ("test", get("Steps.Split.ProcessingOutputConfig.Outputs['test'].S3Output.S3Uri")),
        },
        {"evaluation": "evaluation"},
        PropertyFiles=[{"PropertyFileName": "Report", "OutputName": "evaluation", "FilePath": "evaluation.json"}],
        **cached,
    )
    train = training("Train", get("Steps.Split.ProcessingOutputConfig.Outputs['train'].S3Output.S3Uri"), **cached)
    fail = {
        "Name": "TooBad",
        "Type": "Fail",
        "Arguments": {"ErrorMessage": join(" ", "accuracy is below", get("Parameters.Accuracy"))},
    }
    good = {
        "Name": "GoodEnough",
        "Type": "Condition",
        "Arguments": {
            "Conditions": [
                {
                    "Type": "GreaterThanOrEqualTo",
                    "LeftValue": ACCURACY,
                    "RightValue": get("Parameters.Accuracy"),
                }
            ],
            "IfSteps": [register(group)],
            "ElseSteps": [fail],
        },
    }
    return definition(split, train, evaluate, good)


def definition(*steps: Json, parameters: list[Json] | None = None) -> Json:
    return {
        "Version": "2020-12-01",
        "Metadata": {},
        "Parameters": PARAMETERS if parameters is None else parameters,
        "PipelineExperimentConfig": {
            "ExperimentName": get("Execution.PipelineName"),
            "TrialName": get("Execution.PipelineExecutionId"),
        },
        "Steps": list(steps),
    }


def sleeper(name: str, program: str, *, after: str = "", **more: Any) -> Json:
    """A processing step whose program is written out."""
    depends = {"DependsOn": [after]} if after else {}
    step = processing(name, "split.py", {}, {}, **more, **depends)
    step["Arguments"]["AppSpecification"]["ContainerEntrypoint"] = ["python3", "-c", program]
    return step


# -- asking -----------------------------------------------------------------------------------------------------------


def create(sagemaker: Any, name: str, wanted: Json, **more: Any) -> str:
    text = json.dumps(wanted)
    made = sagemaker.create_pipeline(PipelineName=name, PipelineDefinition=text, RoleArn=ROLE, **more)
    return str(made["PipelineArn"])


def start(sagemaker: Any, name: str, parameters: dict[str, str] | None = None, **more: Any) -> str:
    given = [{"Name": key, "Value": value} for key, value in (parameters or {}).items()]
    return str(
        sagemaker.start_pipeline_execution(PipelineName=name, PipelineParameters=given, **more)["PipelineExecutionArn"]
    )


def over(sagemaker: Any, arn: str, seconds: float = 120.0) -> Json:
    def look() -> Json | None:
        try:
            found: Json = sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500:
                return None  # control is not there
            raise
        return found if found["PipelineExecutionStatus"] in OVER else None

    return until(look, f"{arn} is over", seconds)


def steps(sagemaker: Any, arn: str) -> dict[str, Json]:
    found = sagemaker.list_pipeline_execution_steps(PipelineExecutionArn=arn, SortOrder="Ascending")
    return {step["StepName"]: step for step in found["PipelineExecutionSteps"]}


def identifier(arn: str) -> str:
    return arn.rpartition("/")[2]


# -- tests ------------------------------------------------------------------------------------------------------------


def test_a_pipeline_processes_trains_evaluates_decides_and_registers(
    platform: Platform, client: Client, sagemaker: Any
) -> None:
    arn = create(sagemaker, "boxes", boxes("box-group"), PipelineDescription="sizes of boxes")
    assert arn == f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:pipeline/boxes"

    started = start(sagemaker, "boxes", {"Share": "0.75"}, PipelineExecutionDisplayName="first")
    found = over(sagemaker, started)

    assert (found["PipelineExecutionStatus"], found.get("FailureReason")) == ("Succeeded", None)
    assert found["PipelineExecutionDisplayName"] == "first"
    done = steps(sagemaker, started)
    assert list(done) == ["Split", "Train", "Evaluate", "GoodEnough", "Boxes-RegisterModel"]
    assert {step["StepStatus"] for step in done.values()} == {"Succeeded"}
    assert done["GoodEnough"]["Metadata"] == {"Condition": {"Outcome": "True"}}
    job = done["Train"]["Metadata"]["TrainingJob"]["Arn"].rpartition("/")[2]
    model = sagemaker.describe_training_job(TrainingJobName=job)["ModelArtifacts"]["S3ModelArtifacts"]
    package = sagemaker.describe_model_package(
        ModelPackageName=done["Boxes-RegisterModel"]["Metadata"]["RegisterModel"]["Arn"]
    )
    assert package["ModelPackageGroupName"] == "box-group"
    assert package["InferenceSpecification"]["Containers"][0]["ModelDataUrl"] == model
    # what loopline itself says
    version = platform.call("GET", "/api/models/box-group/versions/1")
    assert (version["status"], version["execution"]) == ("PendingManualApproval", identifier(started))
    assert version["metrics"]["accuracy"] == 1.0
    bucket, _, key = model.removeprefix("s3://").partition("/")
    with tarfile.open(fileobj=client("s3").get_object(Bucket=bucket, Key=key)["Body"], mode="r|gz") as tar:
        names = [member.name for member in tar if member.isfile()]
    assert sorted(names) == ["code/inference.py", "model.json"]
    native = platform.call("GET", f"/api/executions/{identifier(started)}")
    assert (native["status"], native["pipeline"], native["parameters"]["Share"]) == ("Succeeded", "boxes", 0.75)
    listed = platform.call("GET", "/api/pipelines")["items"]
    assert [row["name"] for row in listed] == ["boxes"]


def test_a_condition_that_does_not_hold_fails_with_its_message(platform: Platform, sagemaker: Any) -> None:
    create(sagemaker, "strict", boxes("strict-group"))

    started = start(sagemaker, "strict", {"Accuracy": "1.5", "Share": "0.75"})
    found = over(sagemaker, started)

    assert found["PipelineExecutionStatus"] == "Failed"
    assert "accuracy is below 1.5" in found["FailureReason"]
    done = steps(sagemaker, started)
    assert done["GoodEnough"]["Metadata"] == {"Condition": {"Outcome": "False"}}
    assert done["TooBad"]["Metadata"] == {"Fail": {"ErrorMessage": "accuracy is below 1.5"}}
    assert "Boxes-RegisterModel" not in done
    assert platform.ask("GET", "/api/models/strict-group").status == 404


def test_results_are_taken_again_until_their_data_change(client: Client, sagemaker: Any) -> None:
    create(sagemaker, "cached", boxes("cached-group", **CACHED))
    known = client("s3").get_object(Bucket=BUCKET, Key="raw/boxes.csv")["Body"].read()
    rows = known.replace(b"kind\n", b"kind\n2.5,small\n")  # nothing else has been made of these
    client("s3").put_object(Bucket=BUCKET, Key="raw/cached.csv/boxes.csv", Body=rows)
    data = {"Data": f"s3://{BUCKET}/raw/cached.csv", "Share": "0.75"}
    first = start(sagemaker, "cached", data)
    assert over(sagemaker, first)["PipelineExecutionStatus"] == "Succeeded"

    second = start(sagemaker, "cached", data)
    assert over(sagemaker, second)["PipelineExecutionStatus"] == "Succeeded"
    client("s3").put_object(Bucket=BUCKET, Key="raw/cached.csv/boxes.csv", Body=rows + b"5,small\n")
    third = start(sagemaker, "cached", data)
    assert over(sagemaker, third)["PipelineExecutionStatus"] == "Succeeded"

    again = steps(sagemaker, second)
    for name in ("Split", "Train", "Evaluate"):
        assert again[name]["CacheHitResult"] == {"SourcePipelineExecutionArn": first}, name
    assert "CacheHitResult" not in again["Boxes-RegisterModel"]
    assert "CacheHitResult" not in steps(sagemaker, third)["Split"]


def test_a_retry_goes_on_at_the_step_that_failed(client: Client, sagemaker: Any) -> None:
    create(sagemaker, "mended", boxes("mended-group"))
    late = f"s3://{BUCKET}/late/boxes.csv"
    client("s3").put_object(
        Bucket=BUCKET, Key="code/broken.tar.gz", Body=packed({"train.py": "raise SystemExit(7)"}, compressed=True)
    )
    wanted = boxes("mended-group")
    wanted["Steps"][1]["Arguments"]["InputDataConfig"].append(
        {"ChannelName": "late", "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": late}}}
    )
    sagemaker.update_pipeline(PipelineName="mended", PipelineDefinition=json.dumps(wanted))
    started = start(sagemaker, "mended", {"Share": "0.75"})
    found = over(sagemaker, started)
    assert found["PipelineExecutionStatus"] == "Failed"
    assert f"there is no object under {late}" in found["FailureReason"]
    before = steps(sagemaker, started)

    client("s3").put_object(Bucket=BUCKET, Key="late/boxes.csv", Body=b"size,kind\n")
    sagemaker.retry_pipeline_execution(PipelineExecutionArn=started)
    found = over(sagemaker, started)

    assert found["PipelineExecutionStatus"] == "Succeeded"
    after = steps(sagemaker, started)
    assert after["Split"]["EndTime"] == before["Split"]["EndTime"]
    assert (before["Train"]["StepStatus"], after["Train"]["StepStatus"]) == ("Failed", "Succeeded")


def test_selected_steps_run_with_what_an_earlier_execution_gave(platform: Platform, sagemaker: Any) -> None:
    create(sagemaker, "selected", boxes("selected-group"))
    first = start(sagemaker, "selected", {"Share": "0.75"})
    assert over(sagemaker, first)["PipelineExecutionStatus"] == "Succeeded"

    chosen = [{"StepName": "Train"}]
    wanted = {"SelectedSteps": chosen, "SourcePipelineExecutionArn": first}
    second = start(sagemaker, "selected", {"Shift": "0.25"}, SelectiveExecutionConfig=wanted)
    found = over(sagemaker, second)

    assert found["PipelineExecutionStatus"] == "Succeeded"
    assert found["SelectiveExecutionConfig"]["SelectedSteps"] == chosen
    done = steps(sagemaker, second)
    assert sorted(done) == ["Split", "Train"]
    assert done["Split"]["SelectiveExecutionResult"] == {"SourcePipelineExecutionArn": first}
    assert "SelectiveExecutionResult" not in done["Train"]
    with pytest.raises(ClientError, match="'Nothing' is no step"):
        start(sagemaker, "selected", SelectiveExecutionConfig={"SelectedSteps": [{"StepName": "Nothing"}]})


def test_faults_are_tried_again_and_errors_of_the_program_are_not(sagemaker: Any) -> None:
    policy: Json = {
        "RetryPolicies": [
            {
                "BackoffRate": 1.5,
                "IntervalSeconds": 1,
                "MaxAttempts": 2,
                "ExceptionType": ["SageMaker.JOB_INTERNAL_ERROR"],
            },
            {"BackoffRate": 2.0, "IntervalSeconds": 1, "ExpireAfterMin": 5, "ExceptionType": ["Step.THROTTLING"]},
        ]
    }
    create(
        sagemaker,
        "faulty",
        definition(
            sleeper("Crash", "import os; os.abort()", **policy), sleeper("Mistake", "raise SystemExit(3)", **policy)
        ),
    )

    started = start(sagemaker, "faulty")
    found = over(sagemaker, started)

    assert found["PipelineExecutionStatus"] == "Failed"
    done = steps(sagemaker, started)
    assert (done["Crash"]["AttemptCount"], done["Mistake"]["AttemptCount"]) == (3, 1)
    assert "killed by signal 6" in done["Crash"]["FailureReason"]
    assert "exit code: 3" in done["Mistake"]["FailureReason"]


def test_a_stopped_execution_starts_nothing_more(platform: Platform, sagemaker: Any) -> None:
    endless = "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.1)"
    create(sagemaker, "endless", definition(sleeper("One", endless), sleeper("Two", "pass", after="One")))
    started = start(sagemaker, "endless")
    log = f"/api/executions/{identifier(started)}/steps/One/log"
    until(lambda: "begun" in platform.call("GET", log)["text"], "it has begun", 60)

    sagemaker.update_pipeline_execution(
        PipelineExecutionArn=started,
        PipelineExecutionDisplayName="never-ending",
        PipelineExecutionDescription="stopped by hand",
        ParallelismConfiguration={"MaxParallelExecutionSteps": 3},
    )
    native = platform.call("GET", f"/api/executions/{identifier(started)}")
    assert (native["max_parallel"], native["trigger"]["title"]) == (3, "never-ending")
    sagemaker.stop_pipeline_execution(PipelineExecutionArn=started)
    found = over(sagemaker, started)

    assert found["PipelineExecutionDescription"] == "stopped by hand"
    assert found["PipelineExecutionStatus"] == "Stopped"
    assert steps(sagemaker, started)["One"]["StepStatus"] == "Stopped"
    assert [step["status"] for step in platform.call("GET", f"/api/executions/{identifier(started)}")["steps"]] == [
        "Stopped",
        "Skipped",
    ]
    with pytest.raises(ClientError, match="cannot be stopped"):
        sagemaker.stop_pipeline_execution(PipelineExecutionArn=started)


def test_an_execution_outlives_every_death_of_control(platform: Platform, sagemaker: Any) -> None:
    create(sagemaker, "survivor", boxes("survivor-group"))
    started = start(sagemaker, "survivor", {"Share": "0.75"})
    killed: list[int] = []

    def kill_at(number: int) -> bool:
        """Kill control once so many steps have ended; False while it is not there."""
        try:
            ended = [step for step in steps(sagemaker, started).values() if "EndTime" in step]
        except ClientError:
            return False
        if len(ended) < number:
            return False
        pid = platform.process("control")
        if pid is None or pid in killed:
            return False  # its successor is not there yet
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        return True

    for number in range(4):
        until(lambda n=number: kill_at(n), f"{number} steps have ended", 90)  # type: ignore[misc]
    found = over(sagemaker, started, 180)

    assert found["PipelineExecutionStatus"] == "Succeeded"
    assert len(killed) == 4
    done = steps(sagemaker, started)
    assert sorted(done) == ["Boxes-RegisterModel", "Evaluate", "GoodEnough", "Split", "Train"]
    versions = platform.call("GET", "/api/models/survivor-group/versions")["items"]
    assert [row["number"] for row in versions] == [1]


def test_steps_make_a_model_score_with_it_and_bring_an_endpoint_to_it(client: Client, sagemaker: Any) -> None:
    client("s3").put_object(Bucket=BUCKET, Key="score/boxes.json", Body=b"[2, 30]")
    objects = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/score"}}
    score = {
        "ModelName": get("Steps.Boxes-CreateModel.ModelName"),
        "TransformInput": {"DataSource": objects, "ContentType": "application/json"},
        "TransformOutput": {"S3OutputPath": join("/", f"s3://{BUCKET}/scored", get("Execution.PipelineExecutionId"))},
        "TransformResources": {"InstanceCount": 1, "InstanceType": "ml.m5.large"},
    }
    data = f"s3://{BUCKET}/raw/boxes.csv"
    container = {"Image": IMAGE, "Environment": {"SAGEMAKER_PROGRAM": "inference.py"}, "ModelDataUrl": TRAINED}
    variant = {
        "VariantName": "AllTraffic",
        "ModelName": get("Steps.Boxes-CreateModel.ModelName"),
        "InitialInstanceCount": 1,
        "InstanceType": "ml.m5.large",
        "InitialVariantWeight": 1.0,
    }
    create(
        sagemaker,
        "served",
        definition(
            training("Train", data),
            {
                "Name": "Boxes-CreateModel",
                "Type": "Model",
                "Arguments": {"ExecutionRoleArn": ROLE, "PrimaryContainer": container},
            },
            {"Name": "Score", "Type": "Transform", "Arguments": score},
            {"Name": "Configure", "Type": "EndpointConfig", "Arguments": {"ProductionVariants": [variant]}},
            {
                "Name": "Serve",
                "Type": "Endpoint",
                "Arguments": {
                    "EndpointName": "served-boxes",
                    "EndpointConfigName": get("Steps.Configure.EndpointConfigName"),
                },
            },
        ),
    )

    started = start(sagemaker, "served")
    found = over(sagemaker, started, 180)

    assert (found["PipelineExecutionStatus"], found.get("FailureReason")) == ("Succeeded", None)
    done = steps(sagemaker, started)
    assert done["Serve"]["Metadata"]["Endpoint"]["Arn"].endswith(":endpoint/served-boxes")
    model = done["Boxes-CreateModel"]["Metadata"]["Model"]["Arn"].rpartition("/")[2]
    assert sagemaker.describe_model(ModelName=model)["PrimaryContainer"]["ModelDataUrl"].endswith("model.tar.gz")
    key = f"scored/{identifier(started)}/boxes.json.out"
    assert json.loads(client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()) == ["small", "large"]
    answer = client("sagemaker-runtime").invoke_endpoint(
        EndpointName="served-boxes", ContentType="application/json", Body=b"[1, 20]"
    )
    assert json.loads(answer["Body"].read()) == ["small", "large"]


def test_upsert_describe_list_and_delete(platform: Platform, client: Client, sagemaker: Any) -> None:
    wanted = definition(sleeper("One", "pass"))
    arn = create(sagemaker, "kept", wanted, ClientRequestToken="t" * 32, PipelineDisplayName="Kept")
    assert create(sagemaker, "kept", wanted, ClientRequestToken="t" * 32) == arn  # the same request, sent again
    with pytest.raises(ClientError) as refused:
        create(sagemaker, "kept", wanted)
    assert refused.value.response["Error"]["Code"] == "ValidationException"
    assert "already exists" in refused.value.response["Error"]["Message"]

    other = json.dumps(definition(sleeper("Two", "pass")))
    client("s3").put_object(Bucket=BUCKET, Key="definitions/kept.json", Body=other.encode())
    sagemaker.update_pipeline(
        PipelineName="kept",
        PipelineDefinitionS3Location={"Bucket": BUCKET, "ObjectKey": "definitions/kept.json"},
        ParallelismConfiguration={"MaxParallelExecutionSteps": 2},
    )

    found = sagemaker.describe_pipeline(PipelineName=arn)
    assert (found["PipelineDefinition"], found["PipelineDisplayName"]) == (other, "Kept")
    assert (found["PipelineStatus"], found["RoleArn"]) == ("Active", ROLE)
    assert found["ParallelismConfiguration"] == {"MaxParallelExecutionSteps": 2}
    native = platform.call("GET", "/api/pipelines/kept")
    assert (native["version"], [step["name"] for step in native["spec"]["steps"]]) == (2, ["Two"])
    started = start(sagemaker, "kept")
    over(sagemaker, started)
    assert (
        sagemaker.describe_pipeline_definition_for_execution(PipelineExecutionArn=started)["PipelineDefinition"]
        == other
    )
    listed = sagemaker.list_pipeline_executions(PipelineName="kept")["PipelineExecutionSummaries"]
    assert [row["PipelineExecutionArn"] for row in listed] == [started]
    found = sagemaker.list_pipeline_parameters_for_execution(PipelineExecutionArn=started)["PipelineParameters"]
    assert {each["Name"]: each["Value"] for each in found}["Share"] == "0.5"
    assert "kept" in [row["PipelineName"] for row in sagemaker.list_pipelines()["PipelineSummaries"]]
    prefixed = sagemaker.list_pipelines(PipelineNamePrefix="kep")["PipelineSummaries"]
    assert [row["PipelineName"] for row in prefixed] == ["kept"]

    sagemaker.delete_pipeline(PipelineName="kept")

    with pytest.raises(ClientError) as gone:
        sagemaker.describe_pipeline(PipelineName="kept")
    assert gone.value.response["Error"]["Code"] == "ResourceNotFound"
    assert platform.call("GET", f"/api/executions/{identifier(started)}")["status"] == "Succeeded"


def test_the_same_request_twice_starts_one_execution(sagemaker: Any) -> None:
    create(sagemaker, "once", definition(sleeper("One", "pass")))

    first = start(sagemaker, "once", ClientRequestToken="s" * 32)

    assert start(sagemaker, "once", ClientRequestToken="s" * 32) == first
    assert start(sagemaker, "once") != first


@pytest.mark.parametrize(
    ("steps_", "said"),
    [
        ([{"Name": "Tune", "Type": "Tuning", "Arguments": {}}], "'Tuning' is not supported by loopline"),
        ([{"Name": "Call", "Type": "Lambda", "Arguments": {}}], "'Lambda' is not supported by loopline"),
        ([sleeper("One", "pass", after="Nowhere")], "'Nowhere', which is no step"),
        ([training("Train", get("Steps.Gone.X.Y"))], "there is no step 'Gone'"),
        ([training("Train", get("Parameters.Gone"))], "'Gone', which is not declared"),
        ([sleeper("One", "pass"), sleeper("One", "pass")], "two steps are named 'One'"),
        ([sleeper("One", "pass", after="Two"), sleeper("Two", "pass", after="One")], "wait for one another"),
        ([], "has 1 to"),
    ],
)
def test_a_definition_that_cannot_run_is_refused_with_the_reason(sagemaker: Any, steps_: list[Json], said: str) -> None:
    with pytest.raises(ClientError) as refused:
        create(sagemaker, "refused", definition(*steps_))

    error = refused.value.response["Error"]
    assert error["Code"] == "ValidationException"
    assert error["Message"].startswith("Unable to parse pipeline definition.")
    assert said in error["Message"]


def test_parameters_are_checked_when_an_execution_starts(sagemaker: Any) -> None:
    create(sagemaker, "checked", definition(sleeper("One", "pass")))

    for given, said in (
        ({"Nope": "1"}, "no parameter 'Nope'"),
        ({"Share": "many"}, "of type number"),
        ({"Approval": "Maybe"}, "is one of"),
    ):
        with pytest.raises(ClientError, match=said):
            start(sagemaker, "checked", given)
