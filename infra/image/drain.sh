#!/usr/bin/env bash
# For a pod that is about to be ended: infra/image/drain.sh SECONDS
#
# Ray is told that this node will be taken away: nothing new begins here, a training takes a checkpoint, requests go to other
# nodes. Returns when no worker of the node is busy, after SECONDS at most.
set -euo pipefail

seconds=${1:?SECONDS is missing}
node=$({ cat /proc/[0-9]*/cmdline 2>/dev/null || true; } | tr '\0' '\n' | sed -n 's/^--node_id=//p' | tail -n 1)
ray drain-node --node-id "$node" --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "its pod is ended" \
    --deadline-remaining-seconds "$seconds" || echo "Ray was not told" >&2 # the head is gone: what is busy still has its time

busy() { # titles of Ray's workers are what they run
    { grep -ahs '^ray::' /proc/[0-9]*/cmdline || true; } | grep -av '^ray::\(IDLE\|DashboardAgent\|RuntimeEnvAgent\)' >/dev/null
}
end=$((SECONDS + seconds))
while ((SECONDS < end)) && busy; do sleep 1; done
