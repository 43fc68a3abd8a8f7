"""Running models so that equal inputs give equal bytes: fixed threads and dtype, one batch shape, no randomness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from PIL import Image
from transformers import PreTrainedModel

from realcustom.errors import UsageError
from realcustom.identity import split_revision
from realcustom.preprocessing.settings import ComputeSettings, ModelDtype

T = TypeVar("T")
M = TypeVar("M", bound=PreTrainedModel)


class Runtime:
    """The device that models run on, with torch set up as the settings (and so the fingerprint) say.

    Args:
        weights: false: models are built as their files say, but no weights are read. Takes seconds.
    Raises:
        UsageError: the device does not exist.
    """

    def __init__(self, compute: ComputeSettings, weights: bool = True):
        self._compute = compute
        self.device = torch.device(compute.device.value if weights else "meta")
        if not weights:
            return
        torch.set_num_threads(compute.threads)
        if self.device.type == "cuda":
            if not torch.cuda.is_available():
                raise UsageError("compute.device=cuda, and this machine has no CUDA device that torch can use")
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True

    @property
    def threads(self) -> int:
        """That prepare pictures beside the models, and that torch computes with on a CPU."""
        return self._compute.threads

    def load(self, kind: type[M], model: str) -> M:
        """A model of a folder or hub id (`id@revision`) in fp32, for inference only.

        Raises UsageError where weights are missing: transformers would initialise them at random.
        """
        name, revision = split_revision(model)
        loaded, report = kind.from_pretrained(
            name,
            revision=revision,
            dtype=torch.float32,
            device_map="meta" if self.device.type == "meta" else None,
            output_loading_info=True,
        )
        if report["missing_keys"]:
            raise UsageError(f"{model} lacks weights: {', '.join(sorted(report['missing_keys'])[:4])}")
        model_here: M = loaded.to(self.device).eval().requires_grad_(False)
        return model_here

    @contextmanager
    def inference(self) -> Iterator[None]:
        """A context in which forwards run in the dtype of the settings, without gradients.

        Autocast instead of models in bf16: norms and softmax must stay in fp32, and Grounding DINO and SAM create fp32
        tensors themselves.
        """
        lower = self._compute.number_format is ModelDtype.BFLOAT16
        with torch.inference_mode(), torch.autocast(self._compute.device.value, torch.bfloat16, enabled=lower):
            yield


def pad_batch(items: Sequence[T], size: int) -> list[T]:
    """`items` filled up to `size` with copies of the first, so that a model only ever sees one batch shape."""
    return [*items, *[items[0]] * (size - len(items))]


def blank_pictures(number: int, size: tuple[int, int] = (64, 64)) -> list[Image.Image]:
    """Pictures, no two of them one object, for trying a batch size.

    Their size matters only to a model that keeps their aspect ratio.
    """
    return [Image.new("RGB", size) for _ in range(number)]
