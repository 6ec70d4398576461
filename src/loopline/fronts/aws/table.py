"""What is served: for each service, by botocore's name, its operations. Whoever adds a handler adds its module here."""

from loopline.fronts.aws import (
    alarms,
    blueprints,
    dashboards,
    ecr,
    endpoints,
    executions,
    groups,
    iam,
    logs,
    metrics,
    packages,
    pipelines,
    processing,
    s3,
    search,
    servables,
    sns,
    sts,
    tags,
    training,
)
from loopline.fronts.aws.call import Operation

TABLE: dict[str, dict[str, Operation]] = {
    "cloudwatch": {**metrics.OPERATIONS, **alarms.OPERATIONS, **dashboards.OPERATIONS},
    "ecr": ecr.OPERATIONS,
    "iam": iam.OPERATIONS,
    "logs": logs.OPERATIONS,
    "s3": s3.OPERATIONS,
    "sagemaker": {
        **blueprints.OPERATIONS,
        **endpoints.OPERATIONS,
        **executions.OPERATIONS,
        **groups.OPERATIONS,
        **packages.OPERATIONS,
        **pipelines.OPERATIONS,
        **processing.OPERATIONS,
        **search.OPERATIONS,
        **servables.OPERATIONS,
        **tags.OPERATIONS,
        **training.OPERATIONS,
    },
    "sns": sns.OPERATIONS,
    "sts": sts.OPERATIONS,
}
