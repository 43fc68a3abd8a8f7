"""Where an evaluation's images are drawn: in this process, or by workers on Ray that share what is missing."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from realcustom.evaluation.drawing import Drawer, Unit, plan
from realcustom.evaluation.gallery import Gallery
from realcustom.evaluation.methods import Method
from realcustom.evaluation.settings import EvaluateSettings
from realcustom.evaluation.suite import Photos, SuiteCase
from realcustom.machine import torch_threads
from realcustom.pipeline.cluster import connected
from realcustom.pipeline.devices import check_drawing, require_gpu_node

if TYPE_CHECKING:
    from realcustom.pipeline.evaluate.request import Request

logger = logging.getLogger(__name__)

EVERY = 5.0  # seconds between two lines of progress
SAY_SECONDS = 60.0  # without a new image until that is said


@dataclass(frozen=True, kw_only=True)
class Where:
    """What draws."""

    workers: int | None = None  # on Ray; None = this process, without Ray
    gpu: bool = False  # a GPU for each worker
    device: str | None = None  # torch's name, in this process; None = a GPU, if there is one
    address: str | None = None  # of a Ray cluster; None = RAY_ADDRESS, else an embedded one

    def device_kind(self) -> str:
        """`cpu`, `cuda` ...: an image's last bits depend on it."""
        if self.workers is not None:
            return "cuda" if self.gpu else "cpu"
        if self.device is not None:
            return self.device.partition(":")[0]
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"


def draw_missing(
    request: Request,
    settings: EvaluateSettings,
    cases: Sequence[SuiteCase],
    methods: Sequence[Method],
    photos: Photos,
    gallery: Gallery,
) -> None:
    """Draw what the gallery lacks."""
    done = gallery.done() if methods else set()
    units = plan(methods, cases, photos, done, settings.batch_size)
    if not units:
        return
    where = request.where
    drawer = Drawer(
        output=request.output,
        base=request.base,
        sampling=request.sampling,
        batch_size=settings.batch_size,
        device=where.device_kind() if where.workers is not None else where.device,
    )
    total = sum(len(unit.cases) for unit in units)
    logger.info("%d images to draw, %d are there", total, len(done))
    if where.workers is None:
        _follow(drawer.draw(units), total)
        return
    if where.gpu:
        check_drawing(where.workers, where.address)
    with connected(where.address):
        if where.gpu:
            require_gpu_node(f"--workers {where.workers} --gpu", "leave --gpu out")
        _follow(_on_ray(drawer, units, where, settings.threads), total)


def _on_ray(drawer: Drawer, units: Sequence[Unit], where: Where, threads: int) -> Iterator[int]:
    """Numbers of images, as workers have drawn them; worker i takes every `workers`-th unit."""
    import ray

    @ray.remote(num_cpus=1, num_gpus=1 if where.gpu else 0)  # type: ignore[untyped-decorator]
    def share(part: list[Unit]) -> Iterator[int]:
        with torch_threads(threads):
            yield from drawer.draw(part)

    assert where.workers is not None
    parts = [list(units[index :: where.workers]) for index in range(where.workers)]
    streams: list[Any] = [share.options(num_returns="streaming").remote(part) for part in parts if part]
    begun = False
    while streams:
        ready, _ = ray.wait(streams, num_returns=1, timeout=SAY_SECONDS)
        if not ready and begun:
            logger.info("no new image for %.0f s", SAY_SECONDS)
        elif not ready:
            logger.info("waiting for %d workers with %s each", len(streams), "a GPU" if where.gpu else "a CPU")
        for stream in ready:
            try:
                yield int(ray.get(next(stream)))
                begun = True
            except StopIteration:
                streams.remove(stream)


def _follow(drawn: Iterator[int], total: int) -> None:
    done, said = 0, time.monotonic()
    for number in drawn:
        done += number
        if time.monotonic() - said > EVERY:
            said = time.monotonic()
            logger.info("%d of %d images", done, total)
    logger.info("%d images drawn", done)
