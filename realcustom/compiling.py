"""torch.compile of the UNet's regions that know nothing of subjects and maps.

Convolution blocks and feed-forwards are compiled, each as one graph; attention keeps torch's fused kernels. So no tensor that a
step adds (keys, masks, maps) is part of a graph, nothing is compiled again when subjects come or go, and the seconds of the
first call do not grow with the model's depth: blocks of one shape share a graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch._dynamo
from diffusers import UNet2DConditionModel
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch._dynamo.exc import BackendCompilerFailed

from realcustom.errors import UsageError

REGIONS = (ResnetBlock2D, FeedForward)
SHAPES = 2048  # graphs of one kind of region: every level of every size of pictures, and of batches, can have its own


def compile_regions(unet: UNet2DConditionModel, *, channels_last: bool, **options: Any) -> None:
    """Compile them in place; they are built when they first run.

    Args:
        channels_last: keep convolution weights in the memory format that tensor cores and oneDNN take.
        options: of `torch.compile`: mode, backend, dynamic.
    """
    if channels_last:
        unet.to(memory_format=torch.channels_last)
    allow_graphs()
    for module in unet.modules():
        if isinstance(module, REGIONS):
            module.compile(fullgraph=True, **options)


def allow_graphs() -> None:
    """Let this thread build as many graphs as all shapes need: torch keeps the limits for each thread by itself."""
    config = torch._dynamo.config
    config.recompile_limit = max(SHAPES, config.recompile_limit)
    config.accumulated_recompile_limit = max(SHAPES, config.accumulated_recompile_limit)


def compiled_nothing() -> AbstractContextManager[None]:
    """A context, of the whole process, in which everything runs as if nothing were compiled."""
    context: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return context


@contextmanager
def needs_compiler(setting: str) -> Iterator[None]:
    """A context of what builds graphs, or a decorator of it. Raises UsageError naming `setting` where there is no compiler."""
    try:
        yield
    except BackendCompilerFailed as error:
        from torch._inductor.exc import InvalidCxxCompiler, TritonMissing  # takes a second, and is needed here alone

        if isinstance(error.inner_exception, InvalidCxxCompiler | TritonMissing):
            raise UsageError(f"{setting} needs a compiler: {error.inner_exception}") from error
        raise


def no_new_graphs() -> AbstractContextManager[None]:
    """A context, of the whole process, in which shapes that have a graph use it and others run as if nothing were compiled."""
    context: AbstractContextManager[None] = torch.compiler.set_stance("eager_on_recompile")
    return context
