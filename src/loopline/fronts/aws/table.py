"""What is served: for each service, by botocore's name, its operations. Whoever adds a handler adds its module here."""

from loopline.fronts.aws import (
    alarms,
    dashboards,
    groups,
    logs,
    metrics,
    packages,
    processing,
    s3,
    search,
    sns,
    sts,
    tags,
    training,
)
from loopline.fronts.aws.call import Operation

TABLE: dict[str, dict[str, Operation]] = {
    "cloudwatch": {**metrics.OPERATIONS, **alarms.OPERATIONS, **dashboards.OPERATIONS},
    "logs": logs.OPERATIONS,
    "s3": s3.OPERATIONS,
    "sagemaker": {
        **groups.OPERATIONS,
        **packages.OPERATIONS,
        **processing.OPERATIONS,
        **search.OPERATIONS,
        **tags.OPERATIONS,
        **training.OPERATIONS,
    },
    "sns": sns.OPERATIONS,
    "sts": sts.OPERATIONS,
}
