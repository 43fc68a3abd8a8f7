"""Each variant and projector learns one batch, its noise and timesteps fixed, on a base of either shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from realcustom.settings import MethodSettings, Projector
from realcustom.training.run import make_job
from realcustom.training.settings import TrainSettings
from realcustom.training.worker import Worker
from realcustom.training.world import World
from tests.support.tiny import (
    tiny_image_encoder,
    tiny_pipeline,
    tiny_pp_settings,
    tiny_sdxl_pipeline,
    tiny_siglip_dino,
)
from tests.support.training_corpus import write_pictures
from tests.support.training_runs import METHOD

STEPS, LEFT = 300, 0.05  # of the first loss
SETTINGS = TrainSettings(
    steps=STEPS, lr=1e-2, batch_size=1, warmup=10, weight_decay=0.0, num_workers=1, threads=1, validation_fraction=0.2
)
METHODS = {
    "paper": METHOD,
    "paper without scoring": replace(METHOD, tokens=replace(METHOD.tokens, scoring=False)),
    **{kind.value: tiny_pp_settings(kind) for kind in Projector if kind is not Projector.NONE},
}


@pytest.fixture(scope="module", params=["SD 1.x", "SDXL"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random base on which an adapter can draw anything.

    What it adds is a mixture of few tokens in each head, at the levels that have attention: so there are few places and many heads,
    fewer places where the finest level has no attention. A random output convolution draws but a third of the noise's
    amplitude, a trained one all of it.
    """
    if request.param == "SD 1.x":
        pipeline, shape = tiny_pipeline(), dict(sample_size=8, block_out_channels=(64, 128), attention_head_dim=8)
    else:
        pipeline = tiny_sdxl_pipeline()
        shape = dict(sample_size=4, block_out_channels=(64, 64, 128), attention_head_dim=(4, 8, 8))
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**pipeline.unet.config, **shape})
    unet.conv_out.weight.data *= 3
    pipeline.register_modules(unet=unet)
    folder = tmp_path_factory.mktemp("overfitting") / "base"
    pipeline.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_one_batch_is_learnt(base: str, method: MethodSettings, tmp_path: Path) -> None:
    plus = method.tokens.projector is not Projector.NONE
    encoder = tiny_siglip_dino(tmp_path / "encoder") if plus else tiny_image_encoder(tmp_path / "encoder")
    write_pictures(tmp_path / "pictures", 4)
    worker = Worker(
        make_job(str(tmp_path / "pictures"), str(tmp_path / "run"), base, encoder, method, SETTINGS), World()
    )
    batch = worker.batches.training(worker.order.share(0, 0, 1))
    losses = [worker.trainer.step(batch).loss for _ in range(STEPS)]
    assert min(losses[-10:]) < LEFT * losses[0]
