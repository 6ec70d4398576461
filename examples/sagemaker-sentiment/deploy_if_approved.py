"""Bring the newest approved version to the endpoint, unless a newer one still waits for its approval.

    python deploy_if_approved.py

A rejected version counts for nothing: rejecting the newest one and running this takes the endpoint back to the newest
that is approved.
"""

import os
import sys
import time

import boto3
import sagemaker
from botocore.exceptions import ClientError

GROUP = "mlops-sentiment-model-group"
ENDPOINT = "mlops-sentiment-endpoint"
sm = boto3.client("sagemaker")
role = os.environ.get("SAGEMAKER_ROLE") or sagemaker.get_execution_role()


def newest_decided():
    """The newest version that is approved; None while one that is newer waits, or where there is none."""
    pages = sm.get_paginator("list_model_packages").paginate(
        ModelPackageGroupName=GROUP, SortBy="CreationTime", SortOrder="Descending"
    )
    for page in pages:
        for version in page["ModelPackageSummaryList"]:
            number, status = version["ModelPackageVersion"], version["ModelApprovalStatus"]
            if status == "PendingManualApproval":
                print(f"版本 {number}: [{status}]; nothing is deployed until somebody approves or rejects it")
                return None
            if status == "Approved":
                return version
    print(f"{GROUP} has no approved version; nothing is deployed")
    return None


def endpoint_config():
    """What the endpoint serves now; None where there is no endpoint."""
    try:
        return sm.describe_endpoint(EndpointName=ENDPOINT)["EndpointConfigName"]
    except ClientError as error:
        if "Could not find" in error.response["Error"]["Message"]:
            return None
        raise


version = newest_decided()
if version is None:
    sys.exit(0)
name = f"mlops-sentiment-v{version['ModelPackageVersion']}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
before = endpoint_config()
if before and before.startswith(f"mlops-sentiment-v{version['ModelPackageVersion']}-"):
    print(f"版本 {version['ModelPackageVersion']}: [Approved]; {ENDPOINT} serves it already")
    sys.exit(0)
sm.create_model(
    ModelName=name,
    ExecutionRoleArn=role,
    PrimaryContainer={"ModelPackageName": version["ModelPackageArn"]},
)
sm.create_endpoint_config(
    EndpointConfigName=name,
    ProductionVariants=[
        {
            "VariantName": "AllTraffic",
            "ModelName": name,
            "InitialInstanceCount": 1,
            "InstanceType": "ml.m5.large",
            "InitialVariantWeight": 1.0,
        }
    ],
)
if before is None:
    sm.create_endpoint(EndpointName=ENDPOINT, EndpointConfigName=name)
else:
    sm.update_endpoint(EndpointName=ENDPOINT, EndpointConfigName=name)
sm.get_waiter("endpoint_in_service").wait(EndpointName=ENDPOINT, WaiterConfig={"Delay": 2, "MaxAttempts": 900})
serves = endpoint_config()
print(f"版本 {version['ModelPackageVersion']}: [Approved]; {ENDPOINT} serves {serves}")
sys.exit(0 if serves == name else 1)
