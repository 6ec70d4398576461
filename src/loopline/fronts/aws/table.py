"""What is served: for each service, by botocore's name, its operations. Whoever adds a handler adds its module here."""

from loopline.fronts.aws import alarms, dashboards, metrics, s3, sns, sts
from loopline.fronts.aws.call import Operation

TABLE: dict[str, dict[str, Operation]] = {
    "cloudwatch": {**metrics.OPERATIONS, **alarms.OPERATIONS, **dashboards.OPERATIONS},
    "s3": s3.OPERATIONS,
    "sns": sns.OPERATIONS,
    "sts": sts.OPERATIONS,
}
