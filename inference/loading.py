"""An engine with the models of a server."""

from __future__ import annotations

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.inference.engine import Engine
from realcustom.inference.models import ServedModel
from realcustom.inference.order import LargestStretch
from realcustom.inference.settings import ServeSettings


def load_engine(settings: ServeSettings, base: str, model: ServedModel, image_encoder: str | None) -> Engine:
    """Load the base with one adapter and start an engine. Raises UsageError that says what is wrong with a model.

    Args:
        model: the adapter that stays loaded; one without an adapter = the base alone.
    """
    pipeline = RealCustomPipeline.from_pretrained(
        base,
        adapter=model.source,
        image_encoder=image_encoder,
        device=settings.device,
        torch_dtype=settings.dtype.to_torch(),
    )
    pipeline.set_progress_bar_config(disable=True)  # a server's log has lines alone
    cells = settings.max_batch_pixels // pipeline.base.vae_scale_factor**2
    return Engine(
        pipeline,
        max_queue=settings.max_queue,
        max_prompt_bytes=settings.max_prompt_bytes,
        deadline_seconds=settings.deadline_seconds,
        threads=settings.threads,
        adapter=model.adapter,
        order=LargestStretch(max_cells=cells),
    )
