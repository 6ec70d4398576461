"""Train a first model by hand, register it in Model Registry, approve it, and list the versions.

python 01_model_registry.py
"""

import json
import os
import time
from pathlib import Path

import boto3
import sagemaker
from botocore.exceptions import ClientError
from sagemaker.image_uris import retrieve
from sagemaker.s3 import S3Uploader
from sagemaker.session_settings import SessionSettings
from sagemaker.sklearn import SKLearn
from upload_reviews import upload_reviews

HERE = Path(__file__).resolve().parent
sm = boto3.client("sagemaker")
session = sagemaker.Session(settings=SessionSettings(encrypt_repacked_artifacts=False))  # the bucket encrypts
region = session.boto_region_name
role = os.environ.get("SAGEMAKER_ROLE") or sagemaker.get_execution_role(sagemaker_session=session)

# 建立 Model Package Group(一個模型專案)
try:
    sm.create_model_package_group(
        ModelPackageGroupName="mlops-sentiment-model-group",
        ModelPackageGroupDescription="IMDb 情感分類模型版本管理",
    )
except ClientError as error:
    if "already exists" not in error.response["Error"]["Message"]:
        raise

# 訓練
reviews = upload_reviews(session)
estimator = SKLearn(
    entry_point="train.py",
    source_dir=str(HERE / "train"),
    role=role,
    instance_count=1,
    instance_type="ml.m5.large",
    framework_version="1.2-1",
    hyperparameters={"num_train_samples": 300},
    metric_definitions=[
        {"Name": "accuracy", "Regex": "eval_accuracy=([0-9.]+);"},
        {"Name": "f1_score", "Regex": "eval_f1=([0-9.]+);"},
        {"Name": "train_samples", "Regex": "train_samples=([0-9.]+);"},
    ],
    sagemaker_session=session,
)
estimator.fit({"train": f"{reviews}/train", "test": f"{reviews}/test"}, wait=False)
job = estimator.latest_training_job.name
while (trained := sm.describe_training_job(TrainingJobName=job))["TrainingJobStatus"] in ("InProgress", "Stopping"):
    time.sleep(2)
if trained["TrainingJobStatus"] != "Completed":
    raise SystemExit(f"{job} {trained['TrainingJobStatus']}: {trained.get('FailureReason')}")
model_s3_uri = trained["ModelArtifacts"]["S3ModelArtifacts"]
figures = {metric["MetricName"]: metric["Value"] for metric in trained["FinalMetricDataList"]}

# 取得 inference container URI
container_uri = retrieve(
    framework="sklearn",
    region=region,
    version="1.2-1",
    py_version="py3",
    image_scope="inference",
    instance_type="ml.m5.large",
)

# 評估結果
report = {name: {"value": round(figures[name], 4)} for name in ("accuracy", "f1_score")}
report_s3_uri = S3Uploader.upload_string_as_file_body(
    json.dumps({"binary_classification_metrics": report}),
    f"s3://{session.default_bucket()}/sentiment/evaluations/{job}.json",
    sagemaker_session=session,
)

# 登記這次訓練的模型版本
model_package = sm.create_model_package(
    ModelPackageGroupName="mlops-sentiment-model-group",
    ModelPackageDescription=f"Character n-grams, accuracy={figures['accuracy']:.2f}",
    InferenceSpecification={
        "Containers": [
            {
                "Image": container_uri,
                "ModelDataUrl": model_s3_uri,
                "Environment": {
                    "SAGEMAKER_PROGRAM": "inference.py",
                    "SAGEMAKER_SUBMIT_DIRECTORY": estimator.uploaded_code.s3_prefix,
                },
            }
        ],
        "SupportedContentTypes": ["application/json"],
        "SupportedResponseMIMETypes": ["application/json"],
        "SupportedRealtimeInferenceInstanceTypes": ["ml.m5.large"],
    },
    ModelMetrics={
        "ModelQuality": {"Statistics": {"ContentType": "application/json", "S3Uri": report_s3_uri}},
    },
    CustomerMetadataProperties={
        "accuracy": f"{figures['accuracy']:.2f}",
        "f1_score": f"{figures['f1_score']:.2f}",
        "train_samples": f"{figures['train_samples']:.0f}",
        "base_model": "tfidf-characters",
    },
)

# 審核(實際流程:ML 工程師確認指標達標後 Approve)
sm.update_model_package(
    ModelPackageArn=model_package["ModelPackageArn"],
    ModelApprovalStatus="Approved",
)

versions = sm.list_model_packages(
    ModelPackageGroupName="mlops-sentiment-model-group",
    SortBy="CreationTime",
    SortOrder="Descending",
)
for v in versions["ModelPackageSummaryList"]:
    print(f"版本 {v['ModelPackageVersion']}: [{v['ModelApprovalStatus']}]")
