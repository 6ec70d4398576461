"""The whole REST surface: what is asked for where, and who may. Everything else is the use case's signature."""

from loopline.control import (
    access,
    access_keys,
    alarms,
    aliases,
    assets,
    audit,
    batches,
    blueprints,
    buckets,
    comparisons,
    confirmations,
    dashboards,
    deliveries,
    endpoint_tests,
    endpoints,
    environments,
    events,
    executions,
    exports,
    firings,
    functions,
    gates,
    images,
    invocations,
    jobs,
    labels,
    logs,
    metrics,
    monitoring,
    multimodel,
    objects,
    pipelines,
    projects,
    publishing,
    pushes,
    registry,
    release_tests,
    requests,
    retraining,
    role_aliases,
    rollbacks,
    rollouts,
    scaling,
    scripts,
    servables,
    shadows,
    status,
    tags,
    topics,
    tracking,
    triggers,
    versions,
    warnings,
    weights,
)
from loopline.domain.access import Permission
from loopline.fronts.native.routes import Route

PUBLIC, READ, WRITE = Permission.PUBLIC, Permission.READ, Permission.WRITE
INVOKE, APPROVE, ADMIN = Permission.INVOKE, Permission.APPROVE, Permission.ADMIN

MAX_LOG_BYTES = 1 << 20
MAX_TREE_BYTES = 1 << 30
MAX_ASSET_BYTES = 1 << 34
MAX_LABELS_BYTES = 16 << 20
MAX_OBJECT_BYTES = 5 << 30
MAX_SPEC_BYTES = 32 << 20

_STATUS = (
    Route("GET", "/api/health", PUBLIC, status.health),
    Route("GET", "/api/status", READ, status.overview),
    Route("GET", "/api/events", READ, events.list_),
    Route("GET", "/api/audit", READ, audit.head),
    Route("GET", "/api/audit/verify", READ, audit.verify),
)

_PEOPLE = (
    Route("GET", "/api/users", ADMIN, access.list_users),
    Route("POST", "/api/users", ADMIN, access.create_user, status=201),
    Route("DELETE", "/api/users/{name}", ADMIN, access.delete_user),
    Route("GET", "/api/keys", READ, access.list_keys),
    Route("POST", "/api/keys", READ, access.create_key, status=201),  # one's own; another's needs admin
    Route("DELETE", "/api/keys/{key}", READ, access.revoke_key),
    Route("PUT", "/api/keys/{key}/limits", ADMIN, access.limit_key),
    Route("GET", "/api/access-keys", READ, access_keys.list_),
    Route("POST", "/api/access-keys", READ, access_keys.create, status=201),  # one's own; another's needs admin
    Route("DELETE", "/api/access-keys/{key}", READ, access_keys.revoke),
    Route("GET", "/api/role-aliases", READ, role_aliases.list_),
    Route("POST", "/api/role-aliases", WRITE, role_aliases.create, status=201),
    Route("GET", "/api/role-aliases/{name}", READ, role_aliases.show),
    Route("DELETE", "/api/role-aliases/{name}", WRITE, role_aliases.delete),
    Route("GET", "/api/warnings", READ, warnings.list_),
)

_OBJECTS = (
    Route("GET", "/api/buckets", READ, buckets.list_),
    Route("POST", "/api/buckets", WRITE, buckets.create, status=201),
    Route("GET", "/api/buckets/{bucket}", READ, buckets.show),
    Route("DELETE", "/api/buckets/{bucket}", WRITE, buckets.delete),
    Route("PUT", "/api/buckets/{bucket}/versioning", WRITE, buckets.set_versioning),
    Route("GET", "/api/buckets/{bucket}/notifications", READ, buckets.notifications),
    Route("PUT", "/api/buckets/{bucket}/notifications", WRITE, buckets.set_notifications),
    Route("GET", "/api/buckets/{bucket}/objects", READ, objects.list_),
    Route("GET", "/api/buckets/{bucket}/object", READ, objects.show),
    Route("GET", "/api/buckets/{bucket}/content", READ, objects.content, download=True),
    Route("PUT", "/api/buckets/{bucket}/content", WRITE, objects.upload, raw=True, max_body_bytes=MAX_OBJECT_BYTES),
    Route("DELETE", "/api/buckets/{bucket}/object", WRITE, objects.remove),
)

_PROJECTS = (
    Route("POST", "/api/trees", WRITE, projects.upload_tree, raw=True, max_body_bytes=MAX_TREE_BYTES, status=201),
    Route("GET", "/api/projects", READ, projects.list_),
    Route("POST", "/api/projects", WRITE, projects.apply),
    Route("POST", "/api/projects/diff", WRITE, projects.diff),
    Route("GET", "/api/projects/{project}", READ, projects.show),
    Route("GET", "/api/pushes", READ, pushes.list_),
    Route("POST", "/api/pushes", WRITE, pushes.run, status=201),
    Route("GET", "/api/pushes/{push}", READ, pushes.show),
    Route("GET", "/api/assets", READ, assets.list_),
    Route("GET", "/api/assets/{project}/{reference}", READ, assets.show),
    Route("GET", "/api/assets/{project}/{reference}/content", READ, assets.content, download=True),
    Route("POST", "/api/assets/{project}/{name}/from-step", WRITE, assets.from_step, status=201),
    Route("PUT", "/api/assets/{project}/{name}", WRITE, assets.upload, raw=True, max_body_bytes=MAX_ASSET_BYTES),
    Route(
        "PUT",
        "/api/assets/{project}/{name}/folder",
        WRITE,
        assets.upload_folder,
        raw=True,
        max_body_bytes=MAX_TREE_BYTES,
    ),
    Route("GET", "/api/environments", READ, environments.list_),
    Route("GET", "/api/environments/{environment}", READ, environments.show),
)

_WORK = (
    Route("GET", "/api/executions", READ, executions.list_),
    Route("POST", "/api/executions", WRITE, pushes.start, status=201),
    Route("GET", "/api/executions/{execution}", READ, executions.show),
    Route("GET", "/api/executions/{execution}/steps", READ, executions.list_steps),
    Route("GET", "/api/executions/{execution}/steps/{step}/log", READ, executions.log, max_limit=MAX_LOG_BYTES),
    Route("PUT", "/api/executions/{execution}", WRITE, executions.update),
    Route("POST", "/api/executions/{execution}/stop", WRITE, executions.stop),
    Route("POST", "/api/executions/{execution}/retry", WRITE, executions.retry),
    Route("GET", "/api/executions/{execution}/pipeline", READ, pipelines.of_execution),
    Route("GET", "/api/pipelines", READ, pipelines.list_),
    Route("POST", "/api/pipelines", WRITE, pipelines.create, max_body_bytes=MAX_SPEC_BYTES, status=201),
    Route("GET", "/api/pipelines/{pipeline}", READ, pipelines.show),
    Route("PUT", "/api/pipelines/{pipeline}", WRITE, pipelines.update, max_body_bytes=MAX_SPEC_BYTES),
    Route("DELETE", "/api/pipelines/{pipeline}", WRITE, pipelines.delete),
    Route("POST", "/api/pipelines/{pipeline}/executions", WRITE, pipelines.start, status=201),
    Route("GET", "/api/jobs", READ, jobs.list_),
    Route("GET", "/api/jobs/{job}", READ, jobs.show),
    Route("GET", "/api/jobs/{job}/log", READ, jobs.log, max_limit=MAX_LOG_BYTES),
    Route("POST", "/api/jobs/{job}/stop", WRITE, jobs.stop_job),
    Route("GET", "/api/scripts", READ, scripts.list_),
    Route("POST", "/api/scripts", WRITE, scripts.submit, status=201),
    Route("GET", "/api/scripts/{contract}/{name}", READ, scripts.show),
    Route("DELETE", "/api/scripts/{contract}/{name}", WRITE, scripts.delete),
    Route("GET", "/api/scripts/{contract}/{name}/log", READ, scripts.log, max_limit=MAX_LOG_BYTES),
    Route("POST", "/api/scripts/{contract}/{name}/stop", WRITE, scripts.stop),
    Route("GET", "/api/images", READ, images.list_),
    Route("PUT", "/api/images/{image:path}", WRITE, images.put),
    Route("DELETE", "/api/images/{image:path}", WRITE, images.delete),
)

_TRACKING = (
    Route("GET", "/api/runs", READ, tracking.list_),
    Route("POST", "/api/runs", WRITE, tracking.create_run, status=201),
    Route("GET", "/api/runs/compare", READ, tracking.compare),
    Route("GET", "/api/runs/{run}", READ, tracking.show),
    Route("POST", "/api/runs/{run}/metrics", WRITE, tracking.log_metrics),
    Route("GET", "/api/runs/{run}/metrics/{key:path}", READ, tracking.points),
    Route("POST", "/api/runs/{run}/end", WRITE, tracking.end_run),
    Route("GET", "/api/runs/{run}/artifacts/{path:path}", READ, tracking.artifact, download=True),
)

_REGISTRY = (
    Route("GET", "/api/models", READ, registry.list_models),
    Route("POST", "/api/models", WRITE, registry.create_model, status=201),
    Route("GET", "/api/models/{model}", READ, registry.show_model),
    Route("DELETE", "/api/models/{model}", APPROVE, versions.delete_model),
    Route("PUT", "/api/models/{model}/gate-mode", APPROVE, registry.set_gate_mode),
    Route("GET", "/api/versions", READ, registry.list_versions),
    Route("GET", "/api/models/{model}/versions", READ, registry.list_versions),
    Route("POST", "/api/models/{model}/versions", WRITE, versions.register, status=201),
    Route("GET", "/api/models/{model}/versions/compare", READ, versions.compare),
    Route("GET", "/api/models/{model}/versions/{number}", READ, registry.show_version),
    Route("PUT", "/api/models/{model}/versions/{number}/words", WRITE, versions.update),
    Route("DELETE", "/api/models/{model}/versions/{number}", APPROVE, versions.delete),
    Route("POST", "/api/models/{model}/versions/{number}/approve", APPROVE, registry.approve),
    Route("POST", "/api/models/{model}/versions/{number}/reject", APPROVE, registry.reject),
    Route("POST", "/api/models/{model}/versions/{number}/reopen", APPROVE, versions.reopen),
    Route("POST", "/api/models/{model}/versions/{number}/copy", WRITE, versions.copy, status=201),
    Route("POST", "/api/models/{model}/versions/{number}/evaluate", WRITE, gates.evaluate, status=201),
    Route("GET", "/api/models/{model}/versions/{number}/lineage", READ, registry.lineage),
    # The champion is what the gate compares with: who moves aliases decides what passes.
    Route("PUT", "/api/models/{model}/aliases/{alias}", APPROVE, aliases.set_alias),
    Route("DELETE", "/api/models/{model}/aliases/{alias}", APPROVE, aliases.delete_alias),
    Route("GET", "/api/models/{model}/export", WRITE, exports.export, download=True),
    Route("GET", "/api/evaluations", READ, gates.list_),
    Route("GET", "/api/evaluations/{evaluation}", READ, gates.show),
)

_TAGS = (
    Route("GET", "/api/tags/{noun}", READ, tags.known),
    Route("GET", "/api/tags/{noun}/{name:path}", READ, tags.list_),
    Route("PUT", "/api/tags/{noun}/{name:path}", WRITE, tags.put),
    Route("DELETE", "/api/tags/{noun}/{name:path}", WRITE, tags.delete),
)

_TRAFFIC = (
    Route("GET", "/api/functions", READ, functions.list_),
    Route("GET", "/api/functions/{function}", READ, functions.show),
    Route("DELETE", "/api/functions/{function}", APPROVE, functions.delete),
    Route("GET", "/api/servables", READ, servables.list_),
    Route("POST", "/api/servables", WRITE, servables.create, status=201),
    Route("GET", "/api/servables/{servable}", READ, servables.show),
    Route("DELETE", "/api/servables/{servable}", WRITE, servables.delete),
    Route("GET", "/api/blueprints", READ, blueprints.list_),
    Route("POST", "/api/blueprints", WRITE, blueprints.create, status=201),
    Route("GET", "/api/blueprints/{blueprint}", READ, blueprints.show),
    Route("DELETE", "/api/blueprints/{blueprint}", WRITE, blueprints.delete),
    Route("POST", "/api/blueprints/{blueprint}/endpoints/{endpoint}", WRITE, blueprints.start, status=201),
    Route("PUT", "/api/blueprints/{blueprint}/endpoints/{endpoint}", WRITE, blueprints.apply),
    Route("GET", "/api/endpoints", READ, endpoints.list_),
    Route("POST", "/api/endpoints", WRITE, endpoints.create, status=201),
    Route("GET", "/api/endpoints/{endpoint}", READ, endpoints.show),
    Route("DELETE", "/api/endpoints/{endpoint}", APPROVE, endpoints.delete),
    Route("PUT", "/api/endpoints/{endpoint}/follow", WRITE, endpoints.follow),
    Route("POST", "/api/endpoints/{endpoint}/release", WRITE, rollouts.release, status=201),
    Route("POST", "/api/endpoints/{endpoint}/rollback", WRITE, rollbacks.rollback),
    Route("PUT", "/api/endpoints/{endpoint}/traffic", WRITE, weights.set_weights),
    Route("POST", "/api/endpoints/{endpoint}/variants/{variant}/stop", WRITE, weights.stop),
    Route("GET", "/api/endpoints/{endpoint}/shadow", READ, shadows.show),
    Route("GET", "/api/endpoints/{endpoint}/comparison", READ, comparisons.show),
    Route("PUT", "/api/endpoints/{endpoint}/scaling", WRITE, scaling.scale),
    Route("GET", "/api/endpoints/{endpoint}/models", READ, multimodel.list_),
    Route("POST", "/api/endpoints/{endpoint}/models", WRITE, multimodel.add, status=201),
    Route("DELETE", "/api/endpoints/{endpoint}/models/{model}", WRITE, multimodel.remove),
    Route("GET", "/api/rollouts", READ, rollouts.list_),
    Route("GET", "/api/rollouts/{rollout}", READ, rollouts.show),
    Route("GET", "/api/endpoints/{endpoint}/rollouts", READ, rollouts.list_),
    Route("GET", "/api/endpoints/{endpoint}/logs", READ, logs.read),
    Route("GET", "/api/live", READ, endpoints.live),
)

_TESTS = (
    Route("GET", "/api/endpoints/{endpoint}/tests", READ, endpoint_tests.list_),
    Route("GET", "/api/endpoints/{endpoint}/tests/{name}", READ, endpoint_tests.show),
    Route("PUT", "/api/endpoints/{endpoint}/tests/{name}", WRITE, endpoint_tests.put),
    Route("DELETE", "/api/endpoints/{endpoint}/tests/{name}", WRITE, endpoint_tests.delete),
    Route("POST", "/api/endpoints/{endpoint}/tests/{name}/record", WRITE, endpoint_tests.record, status=201),
    Route("POST", "/api/endpoints/{endpoint}/test-runs", WRITE, release_tests.start, status=201),
    Route("POST", "/api/endpoints/{endpoint}/load-tests", WRITE, release_tests.save_load, status=201),
    Route("GET", "/api/test-runs", READ, release_tests.list_),
    Route("GET", "/api/test-runs/{run}", READ, release_tests.show),
)

# The path leads to control by the gateway: it answers at once, and asks the endpoint itself.
_ASYNC = (
    *(
        Route("POST", path, INVOKE, invocations.submit, raw=True, max_body_bytes=MAX_ASSET_BYTES, status=202)
        for path in ("/endpoints/{endpoint}/async-invocations", "/api/endpoints/{endpoint}/async-invocations")
    ),
    Route("GET", "/api/async-invocations", READ, invocations.list_),
    Route("GET", "/api/async-invocations/{invocation}", INVOKE, invocations.show),
    Route("GET", "/api/async-invocations/{invocation}/output", INVOKE, invocations.output, download=True),
)

_BATCHES = (
    Route("POST", "/api/batches/inputs", WRITE, batches.upload, raw=True, max_body_bytes=MAX_ASSET_BYTES, status=201),
    Route("GET", "/api/batches", READ, batches.list_),
    Route("POST", "/api/batches", WRITE, batches.run, status=201),
    Route("GET", "/api/batches/{batch}", READ, batches.show),
    Route("GET", "/api/batches/{batch}/output", READ, batches.output, download=True),
    Route("GET", "/api/batches/{batch}/errors", READ, batches.errors, download=True),
    Route("POST", "/api/batches/{batch}/stop", WRITE, batches.stop),
    Route("POST", "/api/batches/{batch}/resume", WRITE, batches.resume),
)

_MONITORING = (
    Route("GET", "/api/endpoints/{endpoint}/traffic", READ, monitoring.traffic),
    Route("GET", "/api/endpoints/{endpoint}/drift", READ, monitoring.drift),
    Route("GET", "/api/endpoints/{endpoint}/series/{name}", READ, monitoring.get_series),
    Route("GET", "/api/endpoints/{endpoint}/quality", READ, labels.quality),
    Route("POST", "/api/endpoints/{endpoint}/labels", WRITE, labels.put_labels, max_body_bytes=MAX_LABELS_BYTES),
    Route(
        "PUT",
        "/api/endpoints/{endpoint}/labels",
        WRITE,
        labels.put_labels_csv,
        raw=True,
        max_body_bytes=MAX_ASSET_BYTES,
    ),
    Route("GET", "/api/endpoints/{endpoint}/requests", READ, requests.list_),
    Route("GET", "/api/endpoints/{endpoint}/rows", READ, requests.export, download=True),
    Route("GET", "/api/requests/{request_id}", READ, requests.why),
    Route("GET", "/api/requests/{request_id}/record", READ, requests.show),
    Route("GET", "/api/retrainings", READ, retraining.list_),
    Route("POST", "/api/retrainings", WRITE, retraining.start, status=201),
    Route("GET", "/api/retrainings/{retraining}", READ, retraining.show),
    Route("GET", "/api/metrics", READ, metrics.list_),
    Route("POST", "/api/metrics", WRITE, metrics.put),
    Route("GET", "/api/metrics/read", READ, metrics.read),
    Route("GET", "/api/dashboards", READ, dashboards.list_),
    Route("GET", "/api/dashboards/{name}", READ, dashboards.show),
    Route("PUT", "/api/dashboards/{name}", WRITE, dashboards.put),
    Route("DELETE", "/api/dashboards", WRITE, dashboards.delete),
    Route("GET", "/api/alarms", READ, alarms.list_),
    Route("GET", "/api/alarms/lint", READ, alarms.lint),
    Route("GET", "/api/alarms/{name}", READ, alarms.show),
    Route("PUT", "/api/alarms/{name}", WRITE, alarms.put),
    Route("DELETE", "/api/alarms/{name}", WRITE, alarms.delete),
    Route("GET", "/api/alarms/{name}/history", READ, alarms.history),
    Route("POST", "/api/alarms/{name}/state", WRITE, alarms.set_state),
    Route("POST", "/api/alarms/{name}/actions", WRITE, alarms.switch_actions),
)

_MESSAGES = (
    Route("GET", "/api/triggers", READ, triggers.list_),
    Route("GET", "/api/triggers/{trigger:path}", READ, triggers.show),
    Route("POST", "/api/triggers/{trigger:path}/enable", WRITE, triggers.enable),
    Route("POST", "/api/triggers/{trigger:path}/disable", WRITE, triggers.disable),
    Route("POST", "/api/triggers/{trigger:path}/fire", WRITE, firings.fire, status=201),
    Route("GET", "/api/topics", READ, topics.list_),
    Route("POST", "/api/topics", WRITE, topics.create, status=201),
    Route("DELETE", "/api/topics/{name}", WRITE, topics.delete),
    Route("POST", "/api/topics/{topic}/test", WRITE, topics.send_test),
    Route("PUT", "/api/topics/{name}/settings", WRITE, topics.set_settings),
    Route("POST", "/api/topics/{topic}/publish", WRITE, publishing.publish, status=201),
    Route("POST", "/api/subscriptions", WRITE, topics.subscribe, status=201),
    Route("POST", "/api/subscriptions/{subscription}/ask", WRITE, confirmations.ask_again),
    Route("GET", "/api/subscriptions/confirm", PUBLIC, confirmations.confirm),  # the link in the message
    Route("DELETE", "/api/subscriptions/{subscription}", WRITE, topics.unsubscribe),
    Route("GET", "/api/deliveries", READ, deliveries.list_),
    Route("POST", "/api/deliveries/{delivery}/redeliver", WRITE, deliveries.redeliver),
)

TABLE = (
    *_STATUS,
    *_PEOPLE,
    *_OBJECTS,
    *_PROJECTS,
    *_WORK,
    *_TRACKING,
    *_REGISTRY,
    *_TAGS,
    *_TRAFFIC,
    *_BATCHES,
    *_ASYNC,
    *_TESTS,
    *_MONITORING,
    *_MESSAGES,
)
