"""The images that an output lacks, drawn in batches of one shape, so that an image's bytes depend on nothing else.

A batch that is not full is filled up with its first case. What is drawn where and in which order changes no image.
"""

from __future__ import annotations

import contextlib
import io
import logging
import resource
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from realcustom.evaluation.film import film_of
from realcustom.evaluation.gallery import Gallery
from realcustom.evaluation.methods import AdapterFile, Method
from realcustom.evaluation.suite import Photos, SuiteCase
from realcustom.evaluation.table import Setting
from realcustom.sampling import SamplingParams
from realcustom.settings import Reference as ReferenceKind
from realcustom.store import Store

if TYPE_CHECKING:
    from realcustom.diffusion_pipeline import RealCustomPipeline

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Images that are drawn in one call."""

    method: Method
    cases: tuple[SuiteCase, ...]  # at most the batch's size, all with as many subjects
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """What draws units; plain data, so that a worker elsewhere can be given it."""

    output: str
    base: str
    sampling: SamplingParams
    batch_size: int
    device: str | None = None  # None = a GPU, if there is one

    def draw(self, units: Sequence[Unit]) -> Generator[int]:
        """Draw and keep all images of `units`; yields after each the number of its images."""
        store = Store()
        gallery, photos = Gallery(self.output, store), Photos(store)
        first: RealCustomPipeline | None = None
        for adapter, pending in _by_adapter(units):
            pipe = self._load(adapter, first)
            first = first or pipe
            for unit in pending:
                self._draw(pipe, unit, gallery, photos)
                yield len(unit.cases)

    def _load(self, adapter: AdapterFile, first: RealCustomPipeline | None) -> RealCustomPipeline:
        from realcustom.diffusion_pipeline import RealCustomPipeline

        if first is not None:
            pipe = first.with_adapter(adapter.file, adapter.image_encoder)
        else:
            pipe = RealCustomPipeline.from_pretrained(
                self.base, adapter=adapter.file, image_encoder=adapter.image_encoder, device=self.device
            )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _draw(self, pipe: RealCustomPipeline, unit: Unit, gallery: Gallery, photos: Photos) -> None:
        import torch

        from realcustom.diffusion_pipeline import Subject
        from realcustom.drawing import Call, draw

        cases = [*unit.cases, *[unit.cases[0]] * (self.batch_size - len(unit.cases))]
        cut_out = pipe.settings.image_encoder.reference is ReferenceKind.CROP
        subjects = [
            [
                Subject(
                    image=photos.picture(photo.uri),
                    word=reference.word,
                    mask=_mask(photos.mask(photo)) if cut_out else None,
                )
                for reference, photo in unit.method.references(case)
            ]
            for case in cases
        ]
        masked = unit.method.setting is not Setting.SUBJECT_WITHOUT_MASK
        call = Call(
            prompt=[case.prompt for case in cases],
            subjects=subjects,
            sampling=replace(self.sampling, use_mask=masked, return_masks=masked and any(subjects)),
            generator=[torch.Generator().manual_seed(case.seed) for case in cases],
        )
        start = time.perf_counter()
        with counted_rows(pipe.base.unet) as rows:
            drawn = draw(pipe, call)
        seconds = time.perf_counter() - start
        assert isinstance(drawn.images, list)  # output_type is "pil"
        for row, key in enumerate(unit.keys):  # those that fill the batch up are not kept
            gallery.keep(
                key,
                _png(drawn.images[row]),
                film_of(drawn.masks or [], row),
                forwards=rows[0] / self.batch_size,
                seconds=seconds / self.batch_size,
                peak_bytes=_peak_bytes(),
            )


def plan(
    methods: Iterable[Method], cases: Sequence[SuiteCase], photos: Photos, done: set[str], size: int
) -> list[Unit]:
    """The units of `size` images that are missing; an image that several methods or cases share is drawn once."""
    units: list[Unit] = []
    taken = set(done)
    for method in methods:
        missing: dict[int, list[tuple[str, SuiteCase]]] = {}
        for case in cases:
            key = method.key(case, photos)
            if key not in taken:
                taken.add(key)
                missing.setdefault(len(method.references(case)), []).append((key, case))
        for same_number in missing.values():
            for start in range(0, len(same_number), size):
                batch = same_number[start : start + size]
                units.append(
                    Unit(method=method, cases=tuple(case for _, case in batch), keys=tuple(key for key, _ in batch))
                )
    return units


@contextlib.contextmanager
def counted_rows(unet: Any) -> Iterator[list[int]]:
    """A context in which the rows that go through the UNet are counted; their number is the list's one item."""
    rows = [0]

    def count(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        sample = arguments[0] if arguments else named["sample"]
        rows[0] += int(sample.shape[0])

    hook = unet.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def _by_adapter(units: Sequence[Unit]) -> Iterator[tuple[AdapterFile, list[Unit]]]:
    found: dict[str, tuple[AdapterFile, list[Unit]]] = {}
    for unit in units:
        adapter = unit.method.adapter
        assert adapter is not None, "given pictures are not drawn"
        found.setdefault(adapter.name, (adapter, []))[1].append(unit)
    yield from found.values()


def _mask(mask: Any) -> Image.Image | None:
    return None if mask is None else Image.fromarray(mask)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _peak_bytes() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
