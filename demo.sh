#!/bin/sh
# `make demo`: build the demo artifact (or reuse it), serve it, classify the shipped photos, and go
# on serving until Ctrl-C; DEMO_EXIT=1 stops after the table.
set -eu

"$BIN/topfive-build" demo --output "$ARTIFACT"

TOPFIVE_ARTIFACT="$ARTIFACT" "$BIN/topfive" serve --log-format console &
service=$!
trap 'kill "$service" 2>/dev/null || true; wait "$service" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM

"$BIN/topfive" health --wait-s 60 --quiet || {
    echo "error: the service did not become ready; its log above has the reason" >&2
    exit 1
}
"$BIN/topfive" classify "http://$TOPFIVE_HOST:$TOPFIVE_PORT" model_build/photos/*.png model_build/photos/*.jpg

if [ "${DEMO_EXIT:-}" ]; then
    exit 0
fi
echo "serving on http://$TOPFIVE_HOST:$TOPFIVE_PORT (docs at /docs) until Ctrl-C; try:"
echo "  curl -H 'Content-Type: image/png' --data-binary @model_build/photos/cat.png http://$TOPFIVE_HOST:$TOPFIVE_PORT/classify"
wait "$service"
