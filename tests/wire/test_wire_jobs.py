"""Training and processing jobs, asked by boto3: the programs really run, and their effects are read elsewhere."""

import io
import json
import tarfile
import time
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from loopline.testing.live import Platform, packed, until

Client = Callable[..., Any]
ACCOUNT = "123456789012"
IMAGE = f"{ACCOUNT}.dkr.ecr.us-east-1.amazonaws.com/plain:1"  # the standard library alone
ROLE = f"arn:aws:iam::{ACCOUNT}:role/trainer"
BUCKET = "wire-jobs"

TRAIN = """
import argparse, csv, json, os, pathlib, sys

parser = argparse.ArgumentParser()
parser.add_argument("--shift", type=float, default=0.0)
parser.add_argument("--model-dir", default=os.environ["SM_MODEL_DIR"])
parser.add_argument("--train", default=os.environ.get("SM_CHANNEL_TRAIN"))
args = parser.parse_args()

sizes = {}
for path in pathlib.Path(args.train).glob("*.csv"):
    for row in csv.DictReader(path.open()):
        sizes.setdefault(row["kind"], []).append(float(row["size"]))
limit = sum(sum(found) / len(found) for found in sizes.values()) / len(sizes) + args.shift
print(f"validation:limit={limit:.4f}")
model = {"limit": limit, "job": os.environ["TRAINING_JOB_NAME"]}
pathlib.Path(args.model_dir, "model.json").write_text(json.dumps(model))
pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "seen.json").write_text(json.dumps(sorted(sizes)))
"""
BROKEN = """
import pathlib
pathlib.Path("/opt/ml/output/failure").write_text("the labels are all the same")
raise SystemExit(3)
"""
PATIENT = """
import os, pathlib, signal, sys, time
def save(*_):
    pathlib.Path(os.environ["SM_MODEL_DIR"], "model.json").write_text("{}")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("waiting", flush=True)
while True:
    time.sleep(0.1)
"""
LONG = """
import os, pathlib, time
print("begun", flush=True)
time.sleep(5)
pathlib.Path(os.environ["SM_MODEL_DIR"], "began").write_text(os.environ["SM_CURRENT_HOST"])
"""
HOSTS = """
import json, os, pathlib
rank, hosts = os.environ["RANK"], json.loads(os.environ["SM_HOSTS"])
config = json.loads(pathlib.Path("/opt/ml/input/config/resourceconfig.json").read_text())
shard = sorted(path.name for path in pathlib.Path(os.environ["SM_CHANNEL_TRAIN"]).iterdir())
found = {"hosts": hosts, "current": config["current_host"], "shard": shard}
pathlib.Path("/opt/ml/model", f"rank-{rank}.json").write_text(json.dumps(found))
print("rank", rank)
"""
SPLIT = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--share", type=float)
args = parser.parse_args()
rows = pathlib.Path("/opt/ml/processing/input/rows.csv").read_text().split()
cut = int(len(rows) * args.share)
out = pathlib.Path("/opt/ml/processing/output")
(out / "train" / "part.csv").write_text("\\n".join(rows[:cut]))
(out / "test" / "part.csv").write_text("\\n".join(rows[cut:]))
pathlib.Path("/opt/ml/output/message").write_text(f"{len(rows)} rows")
job = json.loads(pathlib.Path("/opt/ml/config/processingjobconfig.json").read_text())
print(job["ProcessingJobName"], "split")
"""


@pytest.fixture(scope="module", autouse=True)
def ground(platform: Platform, client: Client) -> None:
    """A bucket with data, and an image without packages."""
    platform.call("PUT", "/api/images/plain", {"requirements": ""})
    s3 = client("s3")
    s3.create_bucket(Bucket=BUCKET)
    rows = "size,kind\n1,small\n3,small\n8,large\n12,large\n"
    s3.put_object(Bucket=BUCKET, Key="data/train/boxes.csv", Body=rows.encode())


def unpacked(client: Client, uri: str) -> dict[str, bytes]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    data = client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers() if m.isfile()}  # type: ignore[union-attr]


def channel(key: str = "data/train", **more: Any) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/{key}", **more}
    return {"ChannelName": "train", "DataSource": {"S3DataSource": source}}


def train(client: Client, name: str, program: str, **more: Any) -> dict[str, Any]:
    """Start a training in script mode, as the SDK asks for it."""
    key = f"{name}/source/sourcedir.tar.gz"
    client("s3").put_object(Bucket=BUCKET, Key=key, Body=packed({"train.py": program}, compressed=True))
    given = more.pop("HyperParameters", {})
    return dict(
        client("sagemaker").create_training_job(
            TrainingJobName=name,
            RoleArn=ROLE,
            AlgorithmSpecification={
                "TrainingImage": IMAGE,
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": "limit", "Regex": "validation:limit=([0-9.]+)"}],
            },
            HyperParameters={
                "sagemaker_program": json.dumps("train.py"),
                "sagemaker_submit_directory": json.dumps(f"s3://{BUCKET}/{key}"),
                **given,
            },
            OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/out/"},
            **{
                "InputDataConfig": [channel()],
                "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
                "StoppingCondition": {"MaxRuntimeInSeconds": 600},
                **more,
            },
        )
    )


def over(client: Client, name: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = client("sagemaker").describe_training_job(TrainingJobName=name)
        return found if found["TrainingJobStatus"] in ("Completed", "Failed", "Stopped") else None

    return until(look, f"the training {name} is over", 90)


def test_a_training_reads_its_channel_and_writes_its_model(platform: Platform, client: Client) -> None:
    made = train(client, "boxes-1", TRAIN, HyperParameters={"shift": "0.5"}, Tags=[{"Key": "team", "Value": "boxes"}])
    assert made["TrainingJobArn"] == f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:training-job/boxes-1"

    found = over(client, "boxes-1")

    assert (found["TrainingJobStatus"], found.get("FailureReason")) == ("Completed", None)
    uri = found["ModelArtifacts"]["S3ModelArtifacts"]
    assert uri == f"s3://{BUCKET}/out/boxes-1/output/model.tar.gz"
    assert json.loads(unpacked(client, uri)["model.json"]) == {"limit": 6.5, "job": "boxes-1"}
    output = unpacked(client, uri.replace("model.tar.gz", "output.tar.gz"))
    assert json.loads(output["seen.json"]) == ["large", "small"]
    assert [(m["MetricName"], m["Value"]) for m in found["FinalMetricDataList"]] == [("limit", 6.5)]
    assert found["HyperParameters"]["shift"] == "0.5"
    assert [t["Status"] for t in found["SecondaryStatusTransitions"]][-1] == "Completed"
    native = platform.call("GET", "/api/scripts/training/boxes-1")
    execution = platform.call("GET", f"/api/executions/{native['execution']}")
    assert (execution["status"], [step["kind"] for step in execution["steps"]]) == ("Succeeded", ["script"])
    run = platform.call("GET", f"/api/runs/{native['run']}")
    assert (run["parameters"]["shift"], run["metrics"]["limit"]["value"]) == (0.5, 6.5)
    assert run["inputs"][0]["asset"] == f"s3://{BUCKET}/data/train"


def test_a_name_is_taken_once(client: Client) -> None:
    train(client, "twice", TRAIN)

    with pytest.raises(ClientError) as refused:
        train(client, "twice", TRAIN)

    assert refused.value.response["Error"]["Code"] == "ResourceInUse"
    with pytest.raises(ClientError, match="Requested resource not found"):
        client("sagemaker").describe_training_job(TrainingJobName="never")


def test_the_failure_file_is_the_reason(platform: Platform, client: Client) -> None:
    train(client, "broken", BROKEN)

    found = over(client, "broken")

    assert found["TrainingJobStatus"] == "Failed"
    assert found["FailureReason"] == "AlgorithmError: the labels are all the same, exit code: 3"
    listed = client("sagemaker").list_training_jobs(StatusEquals="Failed", NameContains="brok")
    assert [row["TrainingJobName"] for row in listed["TrainingJobSummaries"]] == ["broken"]
    native = platform.call("GET", "/api/scripts/training/broken")
    assert native["status"] == "Failed"
    client("sagemaker").delete_training_job(TrainingJobName="broken")
    assert platform.ask("GET", "/api/scripts/training/broken").status == 404
    assert platform.call("GET", f"/api/runs/{native['run']}")["id"] == native["run"]


def test_a_channel_without_objects_fails_before_anything_runs(client: Client) -> None:
    train(client, "no-data", TRAIN, InputDataConfig=[channel("nothing/")])

    found = over(client, "no-data")

    assert found["TrainingJobStatus"] == "Failed"
    assert found["FailureReason"].startswith(f"ClientError: there is no object under s3://{BUCKET}/nothing/")
    assert "TrainingStartTime" not in found


def test_a_stopped_training_keeps_what_it_saved(client: Client) -> None:
    train(client, "patient", PATIENT)
    logs = client("logs")

    def waits() -> bool:
        group = "/aws/sagemaker/TrainingJobs"
        try:
            streams = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix="patient/")["logStreams"]
        except logs.exceptions.ResourceNotFoundException:  # no training has begun yet
            return False
        if not streams:
            return False
        name = streams[0]["logStreamName"]
        found = logs.get_log_events(logGroupName=group, logStreamName=name, startFromHead=True)
        return [event["message"] for event in found["events"]] == ["waiting"]

    until(waits, "the program waits", 60)
    with pytest.raises(ClientError, match="only a job that is over"):
        client("sagemaker").delete_training_job(TrainingJobName="patient")
    client("sagemaker").stop_training_job(TrainingJobName="patient")

    found = over(client, "patient")

    assert (found["TrainingJobStatus"], found["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert unpacked(client, found["ModelArtifacts"]["S3ModelArtifacts"]) == {"model.json": b"{}"}
    with pytest.raises(ClientError, match="is in status Stopped"):
        client("sagemaker").stop_training_job(TrainingJobName="patient")


def test_a_training_that_takes_too_long_is_ended(client: Client) -> None:
    train(client, "too-long", PATIENT, StoppingCondition={"MaxRuntimeInSeconds": 2})

    found = over(client, "too-long")

    assert (found["TrainingJobStatus"], found["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert unpacked(client, found["ModelArtifacts"]["S3ModelArtifacts"]) == {"model.json": b"{}"}


def test_two_instances_are_two_processes_that_share_the_data_out(platform: Platform, client: Client) -> None:
    client("s3").put_object(Bucket=BUCKET, Key="parts/a", Body=b"1")
    client("s3").put_object(Bucket=BUCKET, Key="parts/b", Body=b"2")
    train(
        client,
        "pair",
        HOSTS,
        InputDataConfig=[channel("parts/", S3DataDistributionType="ShardedByS3Key")],
        ResourceConfig={"InstanceType": "ml.p3.2xlarge", "InstanceCount": 2, "VolumeSizeInGB": 10},
    )

    job = over(client, "pair")

    assert job["TrainingJobStatus"] == "Completed", job
    files = unpacked(client, job["ModelArtifacts"]["S3ModelArtifacts"])
    ranks = [json.loads(files[f"rank-{rank}.json"]) for rank in range(2)]
    assert [rank["shard"] for rank in ranks] == [["a"], ["b"]]
    assert [rank["current"] for rank in ranks] == ["algo-1", "algo-2"]
    assert [rank["hosts"] for rank in ranks] == [["algo-1", "algo-2"]] * 2
    warnings = platform.call("GET", "/api/scripts/training/pair")["warnings"]
    assert any("GPU" in text for text in warnings)
    group = "/aws/sagemaker/TrainingJobs"
    streams = client("logs").describe_log_streams(logGroupName=group, logStreamNamePrefix="pair/")["logStreams"]
    said = [
        client("logs").get_log_events(logGroupName=group, logStreamName=s["logStreamName"], startFromHead=True)
        for s in streams
    ]
    messages = [[event["message"] for event in page["events"]] for page in said]
    assert ["rank 0" in messages[0], "rank 1" in messages[0], "rank 1" in messages[1]] == [True, False, True]
    pages = client("logs").get_paginator("filter_log_events").paginate(logGroupName=group, filterPattern="rank")
    found = [(event["logStreamName"], event["message"]) for page in pages for event in page["events"]]
    assert sorted(found) == [(streams[0]["logStreamName"], "rank 0"), (streams[1]["logStreamName"], "rank 1")]


SLOW = """
import pathlib, time
print("first", flush=True)
pathlib.Path("ready").touch()
while not pathlib.Path("go").exists():
    time.sleep(0.02)
print("second")
print("third")
"""


def test_lines_of_a_log_have_the_times_when_they_came(platform: Platform, client: Client) -> None:
    train(client, "lines", SLOW)
    native = "/api/scripts/training/lines/log"
    until(lambda: "first" in platform.call("GET", native)["text"], "the first line came", 60)
    (ready,) = until(lambda: list((platform.folder / "attempts").rglob("ready")), "it waits")
    seen = int(time.time() * 1000)
    until(lambda: time.time() * 1000 > seen + 200, "the next lines have another time")
    ready.with_name("go").touch()
    assert over(client, "lines")["TrainingJobStatus"] == "Completed"
    logs, group = client("logs"), "/aws/sagemaker/TrainingJobs"
    (stream,) = logs.describe_log_streams(logGroupName=group, logStreamNamePrefix="lines/")["logStreams"]
    place = {"logGroupName": group, "logStreamName": stream["logStreamName"]}
    page = logs.get_log_events(**place, startFromHead=True)
    events = {event["message"]: event["timestamp"] for event in page["events"]}
    assert list(events)[:3] == ["first", "second", "third"]
    assert events["first"] <= seen < events["second"] <= events["third"] <= int(time.time() * 1000)
    assert (stream["firstEventTimestamp"], stream["lastEventTimestamp"] >= events["third"]) == (events["first"], True)

    again = logs.get_log_events(**place, startTime=events["second"], startFromHead=True)
    assert [event["message"] for event in again["events"]][:2] == ["second", "third"]
    before = logs.get_log_events(**place, endTime=events["second"], startFromHead=True)
    assert [event["message"] for event in before["events"]] == ["first"]
    one = logs.get_log_events(**place, startTime=events["second"], startFromHead=True, limit=1)
    two = logs.get_log_events(**place, startTime=events["second"], nextToken=one["nextForwardToken"], limit=1)
    assert [event["message"] for event in one["events"] + two["events"]] == ["second", "third"]
    back = logs.get_log_events(**place, nextToken=two["nextBackwardToken"], limit=1)
    assert [event["message"] for event in back["events"]] == ["second"]
    rest = logs.get_log_events(**place, nextToken=page["nextForwardToken"])
    assert (rest["events"], rest["nextForwardToken"]) == ([], page["nextForwardToken"])
    searched = logs.filter_log_events(logGroupName=group, logStreamNamePrefix="lines/", filterPattern="-third")
    assert [(event["message"], event["timestamp"]) for event in searched["events"]][:2] == [
        ("first", events["first"]),
        ("second", events["second"]),
    ]
    ((place_in_text, at), *_) = platform.call("GET", native)["times"]
    assert (place_in_text, int(at * 1000)) == (0, events["first"])

    by_time = logs.describe_log_streams(logGroupName=group, orderBy="LastEventTime", descending=True)["logStreams"]
    times = [each["lastEventTimestamp"] for each in by_time]
    assert times == sorted(times, reverse=True) and by_time[0]["logStreamName"].startswith("lines/")
    by_name = [each["logStreamName"] for each in logs.describe_log_streams(logGroupName=group)["logStreams"]]
    assert by_name == sorted(by_name)
    with pytest.raises(ClientError, match="Cannot order by LastEventTime with a logStreamNamePrefix"):
        logs.describe_log_streams(logGroupName=group, orderBy="LastEventTime", logStreamNamePrefix="lines/")


def test_a_training_outlives_the_death_of_control(platform: Platform, client: Client) -> None:
    train(client, "survivor", LONG)
    until(lambda: "begun" in platform.call("GET", "/api/scripts/training/survivor/log")["text"], "it has begun", 60)
    platform.kill("control")

    def look() -> dict[str, Any] | None:
        try:
            found = client("sagemaker").describe_training_job(TrainingJobName="survivor")
        except ClientError:
            return None  # control is not there yet
        return found if found["TrainingJobStatus"] == "Completed" else None

    found = until(look, "the training is over", 90)

    assert unpacked(client, found["ModelArtifacts"]["S3ModelArtifacts"]) == {"began": b"algo-1"}
    job = platform.call("GET", f"/api/jobs/{platform.call('GET', '/api/scripts/training/survivor')['job']}")
    assert [attempt["status"] for attempt in job["attempts"]] == ["Succeeded"]


def test_a_processing_job_reads_inputs_and_leaves_outputs(platform: Platform, client: Client) -> None:
    s3 = client("s3")
    s3.put_object(Bucket=BUCKET, Key="rows/rows.csv", Body="\n".join(str(n) for n in range(10)).encode())
    s3.put_object(Bucket=BUCKET, Key="code/split.py", Body=SPLIT.encode())
    folder = "/opt/ml/processing"

    def given(name: str, key: str, path: str) -> dict[str, Any]:
        return {
            "InputName": name,
            "S3Input": {
                "S3Uri": f"s3://{BUCKET}/{key}",
                "LocalPath": f"{folder}/{path}",
                "S3DataType": "S3Prefix",
                "S3InputMode": "File",
            },
        }

    def left(name: str) -> dict[str, Any]:
        path, uri = f"{folder}/output/{name}", f"s3://{BUCKET}/split/{name}"
        return {"OutputName": name, "S3Output": {"S3Uri": uri, "LocalPath": path, "S3UploadMode": "EndOfJob"}}

    sagemaker = client("sagemaker")
    sagemaker.create_processing_job(
        ProcessingJobName="split",
        RoleArn=ROLE,
        AppSpecification={
            "ImageUri": IMAGE,
            "ContainerEntrypoint": ["python3", f"{folder}/input/code/split.py"],
            "ContainerArguments": ["--share", "0.7"],
        },
        ProcessingInputs=[given("input-1", "rows/", "input"), given("code", "code/split.py", "input/code")],
        ProcessingOutputConfig={"Outputs": [left("train"), left("test")]},
        ProcessingResources={
            "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 10}
        },
    )

    def look() -> dict[str, Any] | None:
        found = sagemaker.describe_processing_job(ProcessingJobName="split")
        return found if found["ProcessingJobStatus"] in ("Completed", "Failed") else None

    found = until(look, "the processing is over", 90)

    assert (found["ProcessingJobStatus"], found.get("ExitMessage")) == ("Completed", "10 rows"), found
    parts = [s3.get_object(Bucket=BUCKET, Key=f"split/{name}/part.csv")["Body"].read() for name in ("train", "test")]
    assert [len(part.split()) for part in parts] == [7, 3]
    assert found["ProcessingOutputConfig"]["Outputs"][0]["S3Output"]["S3Uri"] == f"s3://{BUCKET}/split/train"
    listed = sagemaker.list_processing_jobs(SortBy="Name", SortOrder="Ascending")
    assert [row["ProcessingJobName"] for row in listed["ProcessingJobSummaries"]] == ["split"]
    with pytest.raises(ClientError, match="Could not find requested job with name: other"):
        sagemaker.describe_processing_job(ProcessingJobName="other")
    sagemaker.delete_processing_job(ProcessingJobName="split")
    assert sagemaker.list_processing_jobs()["ProcessingJobSummaries"] == []
    assert platform.ask("GET", "/api/scripts/processing/split").status == 404


def test_a_stopped_processing_job_is_over(platform: Platform, client: Client) -> None:
    wait = "import time, pathlib\nprint('first', flush=True)\nwhile not pathlib.Path('go').exists(): time.sleep(0.05)"
    client("sagemaker").create_processing_job(
        ProcessingJobName="endless",
        RoleArn=ROLE,
        AppSpecification={"ImageUri": IMAGE, "ContainerEntrypoint": ["python3", "-c", f"{wait}\nprint('never')"]},
        ProcessingResources={
            "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 10}
        },
    )
    log = "/api/scripts/processing/endless/log"
    until(lambda: "first" in platform.call("GET", log)["text"], "it has begun", 60)
    client("sagemaker").stop_processing_job(ProcessingJobName="endless")

    def look() -> dict[str, Any] | None:
        found = client("sagemaker").describe_processing_job(ProcessingJobName="endless")
        return found if found["ProcessingJobStatus"] in ("Completed", "Failed", "Stopped") else None

    found = until(look, "the processing is over", 90)

    assert found["ProcessingJobStatus"] == "Stopped"
    assert platform.call("GET", "/api/scripts/processing/endless")["status"] == "Stopped"
    assert "never" not in platform.call("GET", log)["text"]
