"""Model packages: versions of registered models, made of containers, with what their authors say of them.

Approving succeeds as on AWS, whether or not the version has passed the group's gate, which speaks when it is deployed.
What stands behind it is said in ``ModelPackageStatusDetails`` and, unless its author uses that, in ``ModelLifeCycle``.
"""

from typing import Any

from loopline.control import claims, registry, versions
from loopline.control.versions import Change, New
from loopline.domain.access import Permission
from loopline.domain.verification import Verification
from loopline.errors import AwsError, Conflict, NotFound
from loopline.fronts.aws import arns, servables
from loopline.fronts.aws.call import Call, Operation
from loopline.fronts.aws.groups import DEFAULT_RESULTS, fitting, group_arn, group_name, listed, seconds

PENDING = "PendingManualApproval"
GATE = "loopline-gate"  # the name under which a package's description tells of it
MAX_BATCH = 100
# Members that loopline keeps in words of its own; the rest is kept as it was said.
_OWN = frozenset(
    (
        *("ModelPackageName", "ModelPackageGroupName", "ModelPackageDescription", "ModelApprovalStatus", "Tags"),
        *("CustomerMetadataProperties", "ClientToken"),
    )
)
_REPORTS = {
    ("ModelQuality", "Statistics"): claims.QUALITY,
    ("ModelQuality", "Constraints"): "model_quality_constraints",
    ("ModelDataQuality", "Statistics"): "data_quality",
    ("ModelDataQuality", "Constraints"): "data_quality_constraints",
    ("Bias", "Report"): "bias",
    ("Bias", "PreTrainingReport"): "bias_before_training",
    ("Bias", "PostTrainingReport"): "bias_after_training",
    ("Explainability", "Report"): "explainability",
}
_VALIDATION = {Verification.VERIFIED: "Completed", Verification.REFUSED: "Failed"}


def package_arn(call: Call, row: dict[str, Any]) -> str:
    """The ARN of a version."""
    return call.arn("sagemaker", f"model-package/{row['model']}/{row['number']}")


def reference(call: Call, text: str) -> tuple[str, int]:
    """(group, version) of a package's ARN, or of GROUP/VERSION."""
    return arns.package(text if text.startswith("arn:") else call.arn("sagemaker", f"model-package/{text}"))


def absent(call: Call, group: str, number: int) -> AwsError:
    """What AWS says of a package that is not there."""
    arn = call.arn("sagemaker", f"model-package/{group}/{number}")
    return AwsError("ValidationException", f"ModelPackage {arn} does not exist.")


# -- what a package is ------------------------------------------------------------------------------------------------


def create_model_package(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """CreateModelPackage: a version of a group."""
    group = _group_of(given)
    wanted = new_of(call, given)
    try:
        row = versions.admit(call.ctx, call.actor, model=group, wanted=wanted)
    except NotFound as error:
        raise _not_found(call, group, error) from None
    for text in row["warnings"]:
        call.warn(text)
    if given.get("Tags"):
        call.warn("versions of a group have the tags of the group; those of this one are not kept")
    return {"ModelPackageArn": package_arn(call, row)}


def _group_of(given: dict[str, Any]) -> str:
    name, group = given.get("ModelPackageName"), given.get("ModelPackageGroupName")
    if name and group:
        raise AwsError(
            "ValidationException",
            "Both ModelPackageName and ModelPackageGroupName are provided in the input. Cannot determine which one to "
            "use.",
        )
    if not group:
        raise AwsError(
            "ValidationException",
            "Missing ARN." if not name else "loopline keeps versions of groups: give ModelPackageGroupName",
        )
    return group_name(group)


def _not_found(call: Call, group: str, error: NotFound) -> AwsError:
    """Which of the things that a package needs is absent, in AWS's words."""
    try:
        registry.show_model(call.ctx, call.actor, model=group)
    except NotFound:
        return AwsError("ValidationException", "Model Package Group does not exist.")
    return AwsError("ValidationException", f"Could not find model data: {error.message}")


def new_of(call: Call, given: dict[str, Any]) -> New:
    """A version as the input of CreateModelPackage describes it; a step of a pipeline makes one of the same form."""
    return New(
        source=_source(call, given),
        description=given.get("ModelPackageDescription") or "",
        properties=given.get("CustomerMetadataProperties") or {},
        reports=_reports(given.get("ModelMetrics") or {}),
        status=given.get("ModelApprovalStatus") or PENDING,
        unverified=True,
        declared={key: value for key, value in given.items() if key not in _OWN and value is not None},
    )


def _source(call: Call, given: dict[str, Any]) -> dict[str, Any] | None:
    """What the first container of an inference specification brings; None where it brings nothing."""
    found = (given.get("InferenceSpecification") or {}).get("Containers") or []
    if len(found) > 1:
        call.warn("a version is served by its first container; the others are kept as words alone")
    if not found:
        return None
    code = (found[0].get("Environment") or {}).get(servables.DIRECTORY, "")
    if found[0].get("ModelDataUrl") or found[0].get("ModelDataSource") or code.startswith("s3://"):
        return servables.read_container(found[0])
    call.warn("the container names no model data, so that this version cannot be served")
    return None


def _reports(metrics: dict[str, Any]) -> dict[str, claims.Source]:
    found = {}
    for (group, member), name in _REPORTS.items():
        report = (metrics.get(group) or {}).get(member)
        if report:
            digest = report.get("ContentDigest")
            plain = digest.rpartition(":")[2].lower() if digest else None
            found[name] = claims.Source(report["S3Uri"], report.get("ContentType"), plain)
    return found


def update_model_package(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """UpdateModelPackage: approval, words, and an inference specification for a package that has none."""
    group, number = reference(call, given["ModelPackageArn"])
    before = _row(call, group, number)
    declared = {
        key: given[key]
        for key in (
            "SourceUri",
            "ModelCard",
            "ModelLifeCycle",
            "ModelPackageRegistrationType",
            "InferenceSpecification",
        )
        if given.get(key) is not None
    }
    added = given.get("AdditionalInferenceSpecificationsToAdd")
    if added:
        there = _declared(before).get("AdditionalInferenceSpecifications") or []
        declared["AdditionalInferenceSpecifications"] = [*there, *added]
    change = Change(
        properties=given.get("CustomerMetadataProperties") or {},
        remove=given.get("CustomerMetadataPropertiesToRemove") or (),
        declared=declared,
        source=_late_source(call, before, given),
        status=given.get("ModelApprovalStatus"),
        comment=given.get("ApprovalDescription") or "",
        unverified=True,
    )
    try:
        row = versions.amend(call.ctx, call.actor, model=group, number=number, change=change)
    except NotFound as error:
        raise AwsError("ValidationException", f"Could not find model data: {error.message}") from None
    for text in row["warnings"]:
        call.warn(text)
    return {"ModelPackageArn": package_arn(call, row)}


def _late_source(call: Call, before: dict[str, Any], given: dict[str, Any]) -> dict[str, Any] | None:
    specification = given.get("InferenceSpecification")
    if specification is None or specification == _declared(before).get("InferenceSpecification"):
        return None
    if before["artifact"] is not None:
        raise AwsError(
            "ValidationException", "the model files of a version never change; create another model package for others"
        )
    return _source(call, given)


def delete_model_package(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DeleteModelPackage."""
    group, number = reference(call, given["ModelPackageName"])
    try:
        versions.delete(call.ctx, call.actor, model=group, number=number)
    except NotFound:
        raise absent(call, group, number) from None
    except Conflict as error:
        raise AwsError("ConflictException", error.message) from None
    return {}


# -- what is said of it -----------------------------------------------------------------------------------------------


def _row(call: Call, group: str, number: int) -> dict[str, Any]:
    try:
        return registry.show_version(call.ctx, call.actor, model=group, number=number)
    except NotFound:
        raise absent(call, group, number) from None


def _declared(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (row["metadata"] or {}).get("declared") or {}
    return found


def _lifecycle(row: dict[str, Any]) -> dict[str, Any]:
    """Where a package stands: as its author says, else how far it is known to be good."""
    said: dict[str, Any] | None = _declared(row).get("ModelLifeCycle")
    return said or {"Stage": GATE, "StageStatus": row["verification"], "StageDescription": _explained(row)}


def _explained(row: dict[str, Any]) -> str:
    command = f"loopline versions evaluate {row['model']} {row['number']}"
    return {
        Verification.VERIFIED: "The gate has measured this version and passed it.",
        Verification.REFUSED: "The gate has measured this version and refused it.",
        Verification.CLAIMED: f"Its figures come from a file and were not measured here; run: {command}",
        Verification.UNVERIFIED: f"It has no evaluation; run: {command}",
    }[Verification(row["verification"])]


def summary(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    """A package as lists have it."""
    return {
        "ModelPackageGroupName": row["model"],
        "ModelPackageVersion": row["number"],
        "ModelPackageArn": package_arn(call, row),
        "ModelPackageDescription": (row["metadata"] or {}).get("description") or None,
        "CreationTime": row["created_at"],
        "ModelPackageStatus": "Completed",
        "ModelApprovalStatus": row["status"],
        "ModelLifeCycle": _lifecycle(row),
        "ModelPackageRegistrationType": _declared(row).get("ModelPackageRegistrationType") or "Registered",
    }


def told(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    """A package as its description has it."""
    validation = {
        "Name": GATE,
        "Status": _VALIDATION.get(Verification(row["verification"]), "NotStarted"),
        "FailureReason": None if row["verification"] == Verification.VERIFIED else _explained(row),
    }
    history = row.get("history") or []
    by = history[-1]["actor"] if history else row["decided_by"] or row["requested_by"]
    return {
        **fitting("DescribeModelPackageOutput", _declared(row)),
        **summary(call, row),
        "ModelPackageName": f"{row['model']}/{row['number']}",
        "ModelPackageStatusDetails": {"ValidationStatuses": [validation], "ImageScanStatuses": []},
        "CustomerMetadataProperties": (row["metadata"] or {}).get("properties") or None,
        "CreatedBy": {"UserProfileName": row["requested_by"]},
        "LastModifiedTime": history[-1]["at"] if history else row["decided_at"] or row["created_at"],
        "LastModifiedBy": {"UserProfileName": by},
        "ApprovalDescription": row["comment"] or None,
    }


def describe_model_package(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """DescribeModelPackage."""
    return told(call, _row(call, *reference(call, given["ModelPackageName"])))


def batch_describe_model_package(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """BatchDescribeModelPackage: what is absent is told by its ARN."""
    found, errors = {}, {}
    for arn in given["ModelPackageArnList"][:MAX_BATCH]:
        try:
            shown = told(call, _row(call, *reference(call, arn)))
            found[arn] = fitting("BatchDescribeModelPackageSummary", shown)
        except AwsError as error:
            errors[arn] = {"ErrorCode": error.name, "ErrorResponse": error.message}
    return {"ModelPackageSummaries": found, "BatchDescribeModelPackageErrorMap": errors}


def list_model_packages(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """ListModelPackages. Without a group AWS lists packages that belong to none, and loopline has none of these."""
    group, kind = given.get("ModelPackageGroupName"), given.get("ModelPackageType") or "Unversioned"
    if group is None and kind == "Unversioned":
        return {"ModelPackageSummaryList": []}
    name = None if group is None else group_name(group)
    try:
        found = registry.list_versions(
            call.ctx,
            call.actor,
            model=name,
            status=given.get("ModelApprovalStatus"),
            contains=given.get("NameContains"),
            start=seconds(given.get("CreationTimeAfter")),
            end=seconds(given.get("CreationTimeBefore")),
            order=listed(given.get("SortBy"), given.get("SortOrder")),
            limit=given.get("MaxResults") or DEFAULT_RESULTS,
            cursor=given.get("NextToken"),
        )
    except NotFound:
        text = f"ModelPackageGroup {group_arn(call, name or '')} does not exist."
        raise AwsError("ValidationException", text) from None
    shown = [fitting("ModelPackageSummary", summary(call, row)) for row in found["items"]]
    return {"ModelPackageSummaryList": shown, "NextToken": found["next"]}


OPERATIONS = {
    "CreateModelPackage": Operation(
        create_model_package,
        Permission.WRITE,
        "packages of a group; the first container is served; validation profiles are kept and not run",
    ),
    "UpdateModelPackage": Operation(update_model_package, Permission.WRITE),
    "DescribeModelPackage": Operation(describe_model_package, Permission.READ),
    "BatchDescribeModelPackage": Operation(batch_describe_model_package, Permission.READ),
    "ListModelPackages": Operation(list_model_packages, Permission.READ, "every package belongs to a group"),
    "DeleteModelPackage": Operation(delete_model_package, Permission.APPROVE),
}
