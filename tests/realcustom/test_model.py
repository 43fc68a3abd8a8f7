"""What trains and what does not, and the loss of a step, on real classes at tiny size."""

from __future__ import annotations

import numpy as np
import torch

from realcustom.model import RealCustomModel
from realcustom.settings import AttentionSettings, KVInit, MethodSettings, TokenSettings
from realcustom.training.objective import Objective, squared_error
from tests.support import tiny
from tests.support.noise_loss import SCHEDULER, batch, loss_of


def make_model(init: KVInit = KVInit.KAIMING) -> RealCustomModel:
    settings = MethodSettings(tokens=TokenSettings(hidden=16), attn=AttentionSettings(kv_init=init))
    return RealCustomModel(tiny.tiny_unet(), settings, tiny.IMAGE_WIDTH, generator=torch.Generator().manual_seed(1))


def test_only_the_adapter_learns() -> None:
    """inv. 22: every trained tensor has a gradient, no frozen one does, and frozen weights stay to the bit."""
    model = make_model()
    trained = model.trained_parameters()
    identities = {id(parameter) for parameter in trained.values()}
    frozen = {name: value for name, value in model.named_parameters() if id(value) not in identities}
    before = {name: value.clone() for name, value in frozen.items()}
    start = {name: value.detach().clone() for name, value in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        for name, parameter in trained.items():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        optimizer.step()
    assert all(value.grad is None for value in frozen.values())
    assert all(torch.equal(value, before[name]) for name, value in frozen.items())
    assert all(not torch.equal(value, start[name]) for name, value in trained.items())
    layers = len([name for name in trained if name.endswith("to_k_vision.weight")])
    assert layers == 4 and len(trained) == 2 * layers + 2 + 2 * 3  # W_at, W_av; two MLPs of weight, bias, weight


def test_the_loss_is_the_mean_squared_error() -> None:
    """inv. 33: against numpy, and with zero values the base model's loss to the bit."""
    model = make_model(KVInit.ZERO_V)
    latents, noise, timesteps, text, _ = batch()
    with torch.no_grad():
        loss = loss_of(model)
        signal = np.sqrt(SCHEDULER.alphas_cumprod.numpy()[timesteps.numpy()])[:, None, None, None]
        noisy = signal * latents.numpy() + np.sqrt(1 - signal**2) * noise.numpy()
        stock = tiny.tiny_unet()
        prediction = stock(torch.from_numpy(noisy.astype(np.float32)), timesteps, text).sample
        assert abs(float(loss) - float(np.mean((prediction.numpy() - noise.numpy()) ** 2))) <= 1e-5
        exact = stock(Objective(SCHEDULER).add_noise(latents, noise, timesteps), timesteps, text).sample
        assert torch.equal(loss, squared_error(exact, noise).mean())


def test_the_loss_falls_on_one_batch() -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.trained_parameters().values(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
