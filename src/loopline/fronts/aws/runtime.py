"""SageMaker's runtime, as far as control answers it: InvokeEndpoint itself is the gateway's.

Source: botocore's model of ``sagemaker-runtime``; the developer guide, "Asynchronous inference": the request's body is
an object, and so is its answer, by the name of the inference.
"""

from typing import Any

from loopline.control import endpoints, invocations, objects
from loopline.domain.access import Permission
from loopline.domain.objects import check_key, split_uri
from loopline.errors import AwsError, NotFound
from loopline.fronts.aws.call import Call, Operation

MAX_NAME = 200


def invoke_endpoint_async(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """InvokeEndpointAsync."""
    name = given["EndpointName"]
    try:
        row = endpoints.show(call.ctx, call.actor, endpoint=name)
    except NotFound as error:
        text = f"Endpoint {name} of account {call.account} not found."
        raise AwsError("ValidationError", text) from error
    results = (row["settings"] or {}).get("results_to")
    if not results:
        text = "is not configured for asynchronous inference: its configuration has no AsyncInferenceConfig"
        raise AwsError("ValidationError", f"Endpoint {name} {text}")
    identifier = given.get("InferenceId") or call.request_id
    output = _place(results["uri"], given.get("S3OutputPathExtension"), given.get("Filename") or f"{identifier}.out")
    failure = _place(results.get("failures_uri") or results["uri"], None, f"{identifier}-error.out")
    for key in ("CustomAttributes", "RequestTTLSeconds", "InvocationTimeoutSeconds"):
        if given.get(key):
            call.warn(f"{key} has no effect here")
    bucket, key = split_uri(given["InputLocation"])
    try:
        found = objects.show(call.ctx, call.actor, bucket=bucket, key=key)
    except NotFound as error:
        raise AwsError("ValidationError", f"There is no object {given['InputLocation']}") from error
    invocations.submit(
        call.ctx,
        call.actor,
        endpoint=name,
        stream=objects.chunks(call.ctx, found["digest"]),
        content_type=given.get("ContentType") or found["content_type"] or "application/json",
        inference_id=given.get("InferenceId"),
        accept=given.get("Accept"),
        output=output,
        failure=failure,
    )
    return {"InferenceId": identifier, "OutputLocation": output, "FailureLocation": failure}


def _place(uri: str, extension: str | None, name: str) -> str:
    """The address of an object below ``uri``."""
    bucket, prefix = split_uri(uri)
    parts = [prefix.strip("/"), (extension or "").strip("/"), name[:MAX_NAME]]
    return f"s3://{bucket}/{check_key('/'.join(part for part in parts if part))}"


OPERATIONS = {
    "InvokeEndpointAsync": Operation(invoke_endpoint_async, Permission.INVOKE),
}
