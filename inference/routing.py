"""Which engine gets a request: one that holds its subjects, then one that holds its adapter, then the least busy one.

Ray copies this file into the processes that route, so it imports nothing of this project.
"""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import FIFOMixin, PendingRequest, RequestRouter, RunningReplica

STATS_SECONDS = 1.0  # a replica tells so often what it holds
BUSIER = 4  # requests more than the least busy replica, beyond which holding an adapter is worth less than its place


class HoldersFirst(FIFOMixin, RequestRouter):  # type: ignore[misc]  # Ray's classes have no types
    """Reads two arguments of a call: `wants`, sha256 of an adapter and ids of subjects, and `avoid`, ids of replicas."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas in groups; Ray takes the least busy one with a free place of the first group that has one."""
        call: dict[str, Any] = {} if pending_request is None else pending_request.kwargs
        avoid, wants = set(call.get("avoid", ())), tuple(call.get("wants", ()))
        left = [one for one in candidate_replicas if one.replica_id.unique_id not in avoid] or candidate_replicas
        busy = {one.replica_id: int(one.routing_stats.get("jobs", 0)) for one in left}
        least = min(busy.values(), default=0)
        groups: dict[tuple[int, int], list[RunningReplica]] = {}
        for one in left:
            held = set(one.routing_stats.get("holds", ()))
            subjects = sum(name in held for name in wants if name.startswith("subject-"))
            adapters = sum(name in held for name in wants if not name.startswith("subject-"))
            if busy[one.replica_id] > least + BUSIER:
                adapters = 0
            groups.setdefault((subjects, adapters), []).append(one)
        return [groups[key] for key in sorted(groups, reverse=True)]
