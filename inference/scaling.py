"""How many engines there should be: as many as do the work that waits within `scale_seconds`.

Ray copies this file into Serve's controller, so it imports nothing of this project.
"""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingContext


class ByQueuedSeconds:
    """An autoscaling policy of Ray Serve; its bounds and delays are those of the deployment's `AutoscalingConfig`.

    Args:
        scale_seconds: of work that one engine may have.
    """

    def __init__(self, scale_seconds: float) -> None:
        self.scale_seconds = scale_seconds

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The number of replicas, before bounds and delays."""
        # the last that each engine told, not Ray's mean over half a minute: the deployment's delays are there to be patient
        told = (context.raw_metrics or {}).get("queued_seconds", {}).values()
        wanted = math.ceil(sum(points[-1].value for points in told if points) / self.scale_seconds)
        return max(wanted, 1 if context.total_num_requests > 0 else 0), {}
