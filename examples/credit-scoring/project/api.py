"""The address that callers know: an applicant as JSON in, ``{"score": ...}`` out, 400 for what the model does not take.

It stands before the endpoint as `POST /functions/credit/predict`.
"""


def handler(event, context):
    """Ask the endpoint, and give the score alone."""
    try:
        answer = context.invoke("credit", event["body"])
    except RuntimeError as refused:
        if getattr(refused, "status", None) != 400:
            raise
        return {"statusCode": 400, "body": {"detail": refused.body["error"]["message"]}}
    return {"score": answer["predictions"][0]["score"]}
