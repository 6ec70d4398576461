"""What is served: for each service, by botocore's name, its operations. Whoever adds a handler adds its module here."""

from loopline.fronts.aws import alarms, dashboards, groups, metrics, packages, s3, search, sns, sts, tags
from loopline.fronts.aws.call import Operation

TABLE: dict[str, dict[str, Operation]] = {
    "cloudwatch": {**metrics.OPERATIONS, **alarms.OPERATIONS, **dashboards.OPERATIONS},
    "s3": s3.OPERATIONS,
    "sagemaker": {**groups.OPERATIONS, **packages.OPERATIONS, **search.OPERATIONS, **tags.OPERATIONS},
    "sns": sns.OPERATIONS,
    "sts": sts.OPERATIONS,
}
