"""A pipeline that is saved into a folder and loaded again draws the same images; diffusers loads the folder as well."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverSinglestepScheduler, EulerDiscreteScheduler
from peft import LoraConfig
from PIL import Image
from torch import Tensor

from realcustom import RealCustomPipeline, Subject
from realcustom.checkpoint import load_adapter
from realcustom.config import override
from realcustom.errors import UsageError
from realcustom.released_solver import ReleasedSolver
from realcustom.schedule import make_scheduler
from tests.support import tiny

Picture = Callable[[int], Image.Image]
PROMPT = "a dog on grass"


def draw(pipe: Any, subjects: Any = None, **arguments: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent", **arguments}
    positional = (PROMPT,) if subjects is None else (PROMPT, subjects)
    images: Tensor = pipe(*positional, generator=torch.Generator().manual_seed(3), **arguments).images
    return images


def test_the_round_trip(
    pipeline: RealCustomPipeline, tiny_models: tiny.TinyModels, picture: Picture, tmp_path: Path
) -> None:
    """Identical images, no warning, and the adapter as it was; twice as once."""
    dog = [Subject(image=picture(0), word="dog")]
    expected, plain = draw(pipeline, dog), draw(pipeline)
    pipeline.save_pretrained(tmp_path / "one")
    assert torch.equal(draw(pipeline, dog), expected)  # saving leaves the pipeline as it was
    again = RealCustomPipeline.from_pretrained(tmp_path / "one")
    again.save_pretrained(tmp_path / "two")
    for pipe in (again, RealCustomPipeline.from_pretrained(str(tmp_path / "two"))):
        assert torch.equal(draw(pipe, dog), expected) and torch.equal(draw(pipe), plain)
    kept, trained = (
        load_adapter(path) for path in (tmp_path / "two/realcustom/adapter.safetensors", tiny_models.adapter)
    )
    assert (kept.base, kept.image_encoder, kept.settings) == (trained.base, trained.image_encoder, trained.settings)
    assert all(torch.equal(kept.tensors[name], trained.tensors[name]) for name in trained.tensors)


def test_the_folder_is_a_stock_pipeline(pipeline: RealCustomPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    own, stock = set(tiny.tiny_pipeline().unet.state_dict()), DiffusionPipeline.from_pretrained(tmp_path / "saved")
    (file,) = (tmp_path / "saved" / "unet").glob("*.safetensors")
    assert set(safetensors.torch.load_file(file)) == own == set(stock.unet.state_dict())
    assert torch.equal(draw(stock), draw(pipeline))


def test_another_adapter_or_encoder_than_the_saved_one(
    pipeline: RealCustomPipeline, tiny_models: tiny.TinyModels, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    named = RealCustomPipeline.from_pretrained(tmp_path / "saved", image_encoder=tiny_models.image_encoder)
    assert named.image_encoder is not None and pipeline.image_encoder is not None
    assert named.image_encoder.identity == pipeline.image_encoder.identity
    with pytest.warns(UserWarning, match="the adapter was trained with the base model"):
        RealCustomPipeline.from_pretrained(tmp_path / "saved", tiny_models.adapter, tiny_models.image_encoder)


def test_changed_parts_are_saved(pipeline: RealCustomPipeline, picture: Picture, tmp_path: Path) -> None:
    """Another VAE, an assigned scheduler and a dtype."""
    pipeline.vae = tiny.tiny_vae(kl=True, seed=4)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.base.scheduler.config)
    pipeline.to(torch.bfloat16)
    dog = [Subject(image=picture(0), word="dog")]
    pipeline.save_pretrained(tmp_path / "saved", variant="bf16")
    again = RealCustomPipeline.from_pretrained(tmp_path / "saved", variant="bf16", torch_dtype=torch.bfloat16)
    assert type(again.scheduler) is EulerDiscreteScheduler
    assert torch.equal(draw(again, dog, output_type="pt"), draw(pipeline, dog, output_type="pt"))


def test_the_released_solver_is_saved_by_its_name(
    pipeline: RealCustomPipeline, picture: Picture, tmp_path: Path
) -> None:
    """Assigned, of the base itself, or by the settings: diffusers finds its own class in the folder."""
    dog = [Subject(image=picture(0), word="dog")]
    sampler = {"scheduler": "dpmpp_released", "timestep_spacing": "base"}
    released = make_scheduler(DDIMScheduler(beta_end=0.015), override(pipeline.settings, {"sampler": sampler}).sampler)
    own, settings = pipeline.base.scheduler, pipeline.settings

    def assign() -> None:
        pipeline.scheduler = released

    def of_the_base() -> None:
        pipeline.diffusers.scheduler = released
        pipeline.settings = override(settings, {"sampler": {"scheduler": "base"}})

    def named() -> None:
        pipeline.diffusers.scheduler = own
        pipeline.settings = override(settings, {"sampler": sampler})

    for number, choose in enumerate((named, of_the_base, assign)):
        choose()
        assert type(pipeline.scheduler) is ReleasedSolver
        folder = tmp_path / str(number)
        pipeline.save_pretrained(folder)
        again = RealCustomPipeline.from_pretrained(folder)
        assert type(again.scheduler) is ReleasedSolver and again.settings.sampler.scheduler == "dpmpp_released"
        assert torch.equal(draw(again, dog), draw(pipeline, dog))
        stock = DiffusionPipeline.from_pretrained(folder)
        assert type(stock.scheduler) is (type(own) if choose is named else DPMSolverSinglestepScheduler)
        assert torch.isfinite(draw(stock)).all()
    assert type(pipeline.diffusers.scheduler) is ReleasedSolver  # saving leaves the pipeline as it was


class _TheirOwn(EulerDiscreteScheduler):  # type: ignore[misc]
    """Of a user's program."""


def test_a_scheduler_that_diffusers_does_not_have(pipeline: RealCustomPipeline, tmp_path: Path) -> None:
    pipeline.scheduler = _TheirOwn.from_config(pipeline.base.scheduler.config)
    with pytest.raises(UsageError, match="_TheirOwn is not one of diffusers' schedulers, and a folder with it"):
        pipeline.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_sdxl_and_two_encoders(picture: Picture, tmp_path: Path) -> None:
    base, encoders = tiny.tiny_sdxl_base(tmp_path / "base"), tiny.tiny_siglip_dino(tmp_path / "encoders")
    adapter = tiny.tiny_adapter(tmp_path / "adapter.safetensors", base, encoders, tiny.tiny_pp_settings())
    pipeline = RealCustomPipeline.from_pretrained(base, adapter, encoders)
    pipeline.save_pretrained(tmp_path / "saved")
    dog = [Subject(image=picture(0), word="dog")]
    assert torch.equal(draw(RealCustomPipeline.from_pretrained(tmp_path / "saved"), dog), draw(pipeline, dog))


def test_what_a_folder_does_not_hold_is_refused(
    pipeline: RealCustomPipeline, tiny_models: tiny.TinyModels, tmp_path: Path
) -> None:
    plain = RealCustomPipeline.from_pretrained(tiny_models.base)
    with pytest.raises(UsageError, match=r"no adapter to save; save the base with pipe\.diffusers\.save_pretrained"):
        plain.save_pretrained(tmp_path / "saved")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; name a folder"):
        pipeline.save_pretrained(tmp_path / "file")
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(UsageError, match=r"a LoRA is loaded into the unet"):
        pipeline.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_warning_points_to_the_callers_line(pipeline: RealCustomPipeline, picture: Picture) -> None:
    """From `__call__`, `draw` and the constructor alike."""
    dog = [Subject(image=picture(0), word="dog")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipeline(PROMPT, dog, num_inference_steps=1, use_mask=False, influence_scope=0.5)
        pipeline.draw(PROMPT, dog, tiny_sampling())
    assert [Path(one.filename).name for one in caught] == [Path(__file__).name] * 2
    assert caught[0].lineno + 1 == caught[1].lineno


def tiny_sampling() -> Any:
    from realcustom import SamplingParams

    return SamplingParams(num_inference_steps=1, use_mask=False, influence_scope=0.5)
