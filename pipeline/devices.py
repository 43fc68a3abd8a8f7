"""Whether the devices that a command asks for are there. torch is imported where it is asked."""

from __future__ import annotations

from realcustom.errors import UsageError


def check_device(device: str, setting: str) -> None:
    """Raise UsageError, naming `setting`, if torch cannot use the device of that name here."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # no such device; a torch that was built without it
        said = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"{setting}: torch {torch.__version__} cannot use '{device}' here: {said}") from error


def require_gpus(number: int, setting: str, way_out: str) -> None:
    """Raise UsageError if torch can use fewer than `number` GPUs of this machine.

    Args:
        setting: what asks for them, as `train.use_gpu=true`.
        way_out: what to set instead, as part of a sentence.
    """
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < number:
        build = "" if torch.version.cuda or torch.version.hip else f" (torch {torch.__version__} is built without CUDA)"
        raise UsageError(
            f"{setting} asks for {number} GPU(s), and this machine has {there} that torch can use{build}: {way_out}, or "
            f"name a cluster that has them with --address"
        )
