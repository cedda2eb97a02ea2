"""The scope that each path needs: every route of the application is in this table.

A path that is not in it is answered 404 before it is routed, so a route without a rule is noticed
at its first request, and not open by mistake.
"""

from starlette.routing import compile_path

from service.keys import ADMIN, INFER, METRICS, PUBLIC

MODEL = "/v2/models/{model}"
VERSION = f"{MODEL}/versions/{{version}}"
INFERENCES = ("/classify", f"{MODEL}/infer", f"{VERSION}/infer", "/v1/models/{model}:predict")
"""The paths of the endpoints for images."""

RULES = {
    PUBLIC: (
        *("/", "/page/{name}", "/livez", "/readyz", "/healthz"),
        *("/v2/health/live", "/v2/health/ready", f"{MODEL}/ready", f"{VERSION}/ready"),
        "/v1/models/{model}",  # the readiness of V1
        *("/docs", "/docs/oauth2-redirect", "/openapi.json", "/static-offline-docs/{file:path}"),
    ),
    INFER: (
        *INFERENCES,
        *("/model", "/v1/models", "/v1/models/{model}:explain"),
        *("/v2", "/v2/models", "/v2/models/stats", MODEL, VERSION, "/v2/repository/index"),
        *(f"{each}/{what}" for each in (MODEL, VERSION) for what in ("config", "stats")),
        *(f"{each}/generate" for each in (MODEL, VERSION)),
        *(f"{each}/generate_stream" for each in (MODEL, VERSION)),
        *("/v2/logging", "/v2/trace/setting", f"{MODEL}/trace/setting"),
        *("/v2/systemsharedmemory/{rest:path}", "/v2/cudasharedmemory/{rest:path}"),
    ),
    METRICS: ("/metrics",),
    ADMIN: (
        *(f"/v2/repository/models/{{model}}/{act}" for act in ("load", "unload")),
        "/debug/profile",
    ),
}

# A fixed path comes before one with a parameter, and a longer path before a shorter one: both could
# match the same text, as /v1/models/{model} matches what ends with :explain.
_COMPILED = sorted(
    (
        (("{" in path, -len(path)), compile_path(path)[0], scope)
        for scope, paths in RULES.items()
        for path in paths
    ),
    key=lambda entry: entry[0],
)


def scope_of(path: str) -> str | None:
    """Return the scope that a request for `path` needs; None if there is no such path."""
    for _, pattern, scope in _COMPILED:
        if pattern.match(path):
            return scope
    return None
