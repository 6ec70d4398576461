"""Who a caller is: sts and iam, asked by boto3."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from loopline.testing.live import Platform

Client = Callable[..., Any]


def test_a_caller_is_an_assumed_role(platform: Platform, client: Client, key: dict[str, Any]) -> None:
    said = client("sts").get_caller_identity()

    assert said["Arn"] == "arn:aws:sts::123456789012:assumed-role/loopline-admin/admin"
    assert (said["Account"], said["UserId"]) == ("123456789012", f"{key['id']}:admin")
    assert said["ResponseMetadata"]["RequestId"]


def test_another_secret_is_refused(client: Client, key: dict[str, Any]) -> None:
    with pytest.raises(ClientError) as refused:
        client("sts", {**key, "secret_key": "x" * 40}).get_caller_identity()

    assert refused.value.response["Error"]["Code"] == "SignatureDoesNotMatch"
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_a_revoked_key_is_refused_at_once(platform: Platform, client: Client) -> None:
    made = platform.call("POST", "/api/access-keys", {"name": "short"})
    assert client("sts", made).get_caller_identity()["Account"]

    platform.call("DELETE", f"/api/access-keys/{made['id']}")

    with pytest.raises(ClientError, match="InvalidClientTokenId"):
        client("sts", made).get_caller_identity()
    listed = platform.call("GET", "/api/access-keys")["items"]
    assert [row["name"] for row in listed if row["revoked_at"]] == ["short"]
    assert not any("secret" in name for row in listed for name in row)


def test_an_operation_that_is_not_there_is_named(client: Client) -> None:
    with pytest.raises(ClientError) as refused:
        client("sts").decode_authorization_message(EncodedMessage="x")

    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501
    assert "DecodeAuthorizationMessage" in refused.value.response["Error"]["Message"]


TRUST = json.dumps({"Version": "2012-10-17", "Statement": []})


def test_a_role_is_a_name_that_may_be_taken_for_a_while(platform: Platform, client: Client) -> None:
    iam, sts = client("iam"), client("sts")
    made = iam.create_role(
        RoleName="SageMakerRole",
        AssumeRolePolicyDocument=TRUST,
        Tags=[{"Key": "loopline:role", "Value": "viewer"}],
    )["Role"]
    assert made["Arn"] == "arn:aws:iam::123456789012:role/SageMakerRole"
    assert iam.get_role(RoleName="SageMakerRole")["Role"]["AssumeRolePolicyDocument"] == json.loads(TRUST)

    lent = sts.assume_role(RoleArn=made["Arn"], RoleSessionName="nightly")

    taken = {
        "id": lent["Credentials"]["AccessKeyId"],
        "secret_key": lent["Credentials"]["SecretAccessKey"],
        "token": lent["Credentials"]["SessionToken"],
    }
    said = client("sts", taken).get_caller_identity()
    assert said["Arn"] == "arn:aws:sts::123456789012:assumed-role/SageMakerRole/nightly"
    with pytest.raises(ClientError, match="AccessDenied"):  # a viewer
        client("iam", taken).create_role(RoleName="Another", AssumeRolePolicyDocument=TRUST)
    with pytest.raises(ClientError, match="InvalidClientTokenId"):
        client("sts", {**taken, "token": "x"}).get_caller_identity()
    names = [row["name"] for row in platform.call("GET", "/api/role-aliases")["items"]]
    assert "SageMakerRole" in names and "Another" not in names


def test_a_temporary_key_ends_with_the_key_that_took_it(platform: Platform, client: Client) -> None:
    made = platform.call("POST", "/api/access-keys", {"name": "parent"})

    def taken(key: dict[str, Any]) -> dict[str, Any]:
        lent = client("sts", key).get_session_token()["Credentials"]
        return {"id": lent["AccessKeyId"], "secret_key": lent["SecretAccessKey"], "token": lent["SessionToken"]}

    child = taken(made)
    grandchild = taken(child)
    assert client("sts", grandchild).get_caller_identity()["Account"] == "123456789012"

    platform.call("DELETE", f"/api/access-keys/{made['id']}")

    for key in (child, grandchild):
        with pytest.raises(ClientError, match="InvalidClientTokenId"):
            client("sts", key).get_caller_identity()


def test_nobody_takes_a_role_that_may_more(platform: Platform, client: Client) -> None:
    editor = platform.call("POST", "/api/access-keys", {"name": "editor", "role": "editor"})

    with pytest.raises(ClientError, match="AccessDenied"):
        client("sts", editor).assume_role(RoleArn="arn:aws:iam::123456789012:role/loopline-admin", RoleSessionName="up")
    with pytest.raises(ClientError, match="AccessDenied"):
        client("iam", editor).create_role(
            RoleName="Up", AssumeRolePolicyDocument=TRUST, Tags=[{"Key": "loopline:role", "Value": "admin"}]
        )


def test_policies_are_kept_and_shown(platform: Platform, client: Client) -> None:
    iam = client("iam")
    iam.create_role(RoleName="Jobs", AssumeRolePolicyDocument=TRUST)
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}

    iam.put_role_policy(RoleName="Jobs", PolicyName="buckets", PolicyDocument=json.dumps(policy))
    iam.attach_role_policy(RoleName="Jobs", PolicyArn="arn:aws:iam::aws:policy/AmazonSageMakerFullAccess")

    assert iam.get_role_policy(RoleName="Jobs", PolicyName="buckets")["PolicyDocument"] == policy
    assert [p["PolicyName"] for p in iam.list_attached_role_policies(RoleName="Jobs")["AttachedPolicies"]] == [
        "AmazonSageMakerFullAccess"
    ]
    assert iam.list_role_policies(RoleName="Jobs")["PolicyNames"] == ["buckets"]
    shown = platform.call("GET", "/api/role-aliases/Jobs")
    assert (shown["role"], shown["policies"]) == ("editor", {"buckets": policy})
    iam.delete_role_policy(RoleName="Jobs", PolicyName="buckets")
    iam.detach_role_policy(RoleName="Jobs", PolicyArn="arn:aws:iam::aws:policy/AmazonSageMakerFullAccess")
    assert not platform.call("GET", "/api/role-aliases/Jobs")["policies"]
    assert iam.list_attached_role_policies(RoleName="Jobs")["AttachedPolicies"] == []
    with pytest.raises(iam.exceptions.NoSuchEntityException):
        iam.delete_role_policy(RoleName="Jobs", PolicyName="buckets")
    iam.delete_role(RoleName="Jobs")
    with pytest.raises(iam.exceptions.NoSuchEntityException):
        iam.get_role(RoleName="Jobs")
    pages = iam.get_paginator("list_roles").paginate(PaginationConfig={"PageSize": 2})
    listed = [role["RoleName"] for page in pages for role in page["Roles"]]
    assert {"loopline-viewer", "loopline-admin", "SageMakerRole"} <= set(listed) and "Jobs" not in listed


def test_a_repository_is_a_name_for_packages(platform: Platform, client: Client) -> None:
    ecr = client("ecr")

    made = ecr.create_repository(repositoryName="team/churn")["repository"]

    assert made["repositoryUri"] == "123456789012.dkr.ecr.us-east-1.amazonaws.com/team/churn"
    own = [row["name"] for row in platform.call("GET", "/api/images")["items"] if row["own"]]
    assert own == ["team/churn"]
    with pytest.raises(ecr.exceptions.RepositoryAlreadyExistsException):
        ecr.create_repository(repositoryName="team/churn")
    ecr.delete_repository(repositoryName="team/churn")
    with pytest.raises(ecr.exceptions.RepositoryNotFoundException):
        ecr.describe_repositories(repositoryNames=["team/churn"])


def test_what_would_be_refused_elsewhere_is_answered_and_recorded(platform: Platform, client: Client) -> None:
    answered = client("sts").get_session_token(DurationSeconds=900, SerialNumber="a serial with spaces")

    told = answered["ResponseMetadata"]["HTTPHeaders"]["x-loopline-warning"]
    assert "serialNumber" in told
    recorded = platform.call("GET", "/api/warnings?source=sts.")["items"]
    assert [(row["source"], row["count"]) for row in recorded] == [("sts.GetSessionToken", 1)]
    assert "regular expression pattern" in recorded[0]["text"]


def test_what_a_role_may_is_told_without_doing_it(platform: Platform, client: Client) -> None:
    iam = client("iam")
    iam.create_role(
        RoleName="Reader",
        AssumeRolePolicyDocument=TRUST,
        Path="/service-role/",
        Tags=[{"Key": "loopline:role", "Value": "viewer"}],
    )
    actions = ["sagemaker:DescribeTrainingJob", "sagemaker:CreateTrainingJob", "s3:ListBucket", "s3:PutObject"]
    actions += ["sagemaker:InvokeEndpoint", "ecr:GetAuthorizationToken", "ec2:DescribeVpcs"]

    def allowed(role: str) -> dict[str, bool]:
        pages = iam.get_paginator("simulate_principal_policy").paginate(
            PolicySourceArn=f"arn:aws:iam::123456789012:role/{role}",
            ActionNames=actions,
            PaginationConfig={"PageSize": 3},
        )
        results = [result for page in pages for result in page["EvaluationResults"]]
        return {result["EvalActionName"]: result["EvalDecision"] == "allowed" for result in results}

    assert allowed("loopline-editor") == dict.fromkeys(actions, True)
    assert allowed("service-role/Reader") == {
        **dict.fromkeys(actions, False),
        "sagemaker:DescribeTrainingJob": True,
        "s3:ListBucket": True,
    }
    with pytest.raises(ClientError) as refused:
        allowed("Nobody")
    assert refused.value.response["Error"]["Code"] == "NoSuchEntity"
    # and so it is when the call comes
    lent = client("sts").assume_role(RoleArn="arn:aws:iam::123456789012:role/service-role/Reader", RoleSessionName="me")
    taken = lent["Credentials"]
    key = {"id": taken["AccessKeyId"], "secret_key": taken["SecretAccessKey"], "token": taken["SessionToken"]}
    assert client("sagemaker", key).list_training_jobs()["TrainingJobSummaries"] == []
    with pytest.raises(ClientError, match="AccessDenied"):
        client("s3", key).create_bucket(Bucket="not-by-readers")


def test_every_role_may_be_given_to_jobs(client: Client) -> None:
    trusted = client("iam").get_role(RoleName="loopline-editor")["Role"]["AssumeRolePolicyDocument"]

    assert [each["Principal"] for each in trusted["Statement"]] == [{"Service": "sagemaker.amazonaws.com"}]
