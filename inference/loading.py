"""An engine with the models of a server."""

from __future__ import annotations

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.inference.engine import Engine
from realcustom.inference.models import ServedModel
from realcustom.inference.order import LargestStretch
from realcustom.inference.settings import ServeSettings, width_height
from realcustom.inference.warm_up import warm_up


def load_engine(settings: ServeSettings, base: str, model: ServedModel, image_encoder: str | None) -> Engine:
    """Load the base with one adapter, start an engine and warm it up.

    Raises UsageError that says what is wrong with a model, or with `serve.warm_up`.

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
    if settings.compile:
        pipeline.compile(dynamic=False)
    cells = settings.max_batch_pixels // pipeline.base.vae_scale_factor**2
    batch_sizes = settings.batch_sizes if settings.compile else ()
    engine = Engine(
        pipeline,
        max_queue=settings.max_queue,
        max_prompt_bytes=settings.max_prompt_bytes,
        deadline_seconds=settings.deadline_seconds,
        threads=settings.threads,
        adapter=model.adapter,
        order=LargestStretch(max_cells=cells, batch_sizes=batch_sizes),
    )
    own = pipeline.base.resolution, pipeline.base.resolution
    try:
        warm_up(engine, [width_height(size) or own for size in settings.warm_up], batch_sizes, cells)
    except BaseException:
        engine.close()
        raise
    return engine
