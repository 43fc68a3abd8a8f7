"""Running models so that equal inputs give equal bytes: fixed threads and dtype, one batch shape, no randomness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size  # type: ignore[import-untyped]
from PIL import Image
from transformers import PreTrainedModel

from realcustom.errors import UsageError
from realcustom.identity import split_revision
from realcustom.preprocessing.settings import ComputeSettings, ModelDtype

T = TypeVar("T")
M = TypeVar("M", bound=PreTrainedModel)


@dataclass(frozen=True, kw_only=True)
class WithoutWeights(ComputeSettings):
    """Models are loaded as their files say, but no weight is read: in seconds, to see whether a worker could."""


def prepare_torch(compute: ComputeSettings) -> torch.device:
    """Set torch up as the settings (and so the fingerprint) say; the device to run on.

    Raises ValueError where the device is not there.
    """
    if isinstance(compute, WithoutWeights):
        return torch.device("meta")
    torch.set_num_threads(compute.threads)
    device = torch.device(compute.device.value)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError("compute.device=cuda, and this machine has no CUDA device that torch can use")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    return device


def load_model(kind: type[M], model: str, device: torch.device) -> M:
    """A model of a folder or hub id (`id@revision`) in fp32, for inference only.

    Raises ValueError where weights are missing: transformers would leave them at random.
    """
    name, revision = split_revision(model)
    loaded, report = kind.from_pretrained(
        name,
        revision=revision,
        dtype=torch.float32,
        device_map="meta" if device.type == "meta" else None,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise UsageError(f"{model} lacks weights: {', '.join(sorted(report['missing_keys'])[:4])}")
    return loaded.to(device).eval().requires_grad_(False)


@contextmanager
def inference(compute: ComputeSettings) -> Iterator[None]:
    """Inside: forwards in the dtype of the settings, without gradients.

    Autocast and not models in bf16, since norms and softmax are to stay in fp32, and Grounding DINO and SAM mix in tensors
    that they make in fp32 themselves.
    """
    lower = compute.number_format is ModelDtype.BFLOAT16
    with torch.inference_mode(), torch.autocast(compute.device.value, torch.bfloat16, enabled=lower):
        yield


def pad_batch(items: Sequence[T], size: int) -> list[T]:
    """`items` filled up to `size` with copies of the first, so that a model only ever sees one batch shape."""
    return [*items, *[items[0]] * (size - len(items))]


def blank_pictures(number: int) -> list[Image.Image]:
    """What a batch size is tried with: processors bring pictures of any size to their model's one shape."""
    return [Image.new("RGB", (64, 64))] * number


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that a device's memory did not suffice."""
    known = isinstance(error, Exception) and should_reduce_batch_size(error)
    return known or isinstance(error, torch.OutOfMemoryError)
