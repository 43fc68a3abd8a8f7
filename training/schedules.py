"""The learning rate of a step."""

from __future__ import annotations

import math

from realcustom.training.settings import Schedule, TrainSettings


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then the schedule."""
    if step < settings.warmup:
        return settings.lr * min(1.0, (step + 1) / max(1, settings.warmup))
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    match settings.schedule:
        case Schedule.CONSTANT:
            return settings.lr
        case Schedule.COSINE:
            return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
        case Schedule.LINEAR:
            return settings.lr * (1 - progress)
        case Schedule.WSD:
            return settings.lr * min(1.0, (settings.steps - step) / settings.decay)
