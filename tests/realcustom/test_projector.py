"""The projectors against one written out in numpy, the released names and sizes, and their place in the model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from realcustom.checkpoint import Adapter, load_adapter, save_adapter
from realcustom.image_encoder import load_image_encoder
from realcustom.model import PROJECTOR, RealCustomModel
from realcustom.projector import HighResProjector, make_projector, split_features
from realcustom.settings import MethodSettings, Projector, TokenSettings, Variant
from tests.support import tiny
from tests.support.noise_loss import loss_of

DIM, TEXT, TOKENS = 128, 24, 9  # two heads of 64
SHALLOW = {Projector.HIGHRES: 0, Projector.SHALLOW_FIG: 2, Projector.SHALLOW_V1_COMPAT: 2}
RELEASED = {
    *(f"min_attention.{name}.{kind}" for name in ("norm1", "norm2") for kind in ("weight", "bias")),
    *(f"min_attention.{name}.weight" for name in ("to_q", "to_k", "to_v")),
    *(f"projector.{number}.{kind}" for number in (0, 2, 4, 5) for kind in ("weight", "bias")),
    "projector_base.weight",
    "projector_base.bias",
}


def make(kind: Projector, dim: int = DIM, views: int = 4) -> HighResProjector:
    """Seeded, every norm away from its start."""
    torch.manual_seed(1)
    projector = make_projector(kind, dim, TEXT, views, SHALLOW[kind])
    assert projector is not None
    for name, parameter in projector.named_parameters():
        if "norm" in name or ".5." in name:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    return projector.eval()


def features(kind: Projector, dim: int = DIM, views: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, (1 + SHALLOW[kind] + views) * TOKENS, dim, generator=generator)


def weights_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in module.named_parameters()}


def norm(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled: np.ndarray = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    scaled = scaled * w[f"{name}.weight"] + w[f"{name}.bias"]
    return scaled


def attend(deep: np.ndarray, context: np.ndarray, w: dict[str, np.ndarray], name: str, heads: int) -> np.ndarray:
    """Multi-head attention of one picture, head by head: deep (S, D), context (N, D)."""
    q = norm(deep, w, f"{name}.norm1") @ w[f"{name}.to_q.weight"].T
    k, v = (norm(context, w, f"{name}.norm2") @ w[f"{name}.{part}.weight"].T for part in ("to_k", "to_v"))
    width = q.shape[1] // heads
    found = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = q[:, own] @ k[:, own].T / math.sqrt(width)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        found.append(weights / weights.sum(1, keepdims=True) @ v[:, own])
    return np.concatenate(found, 1)


def mlp(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    gelu = np.vectorize(lambda value: 0.5 * value * (1 + math.erf(value / math.sqrt(2))))
    for number in (0, 2):
        x = gelu(x @ w[f"{name}.{number}.weight"].T + w[f"{name}.{number}.bias"])
    return norm(x @ w[f"{name}.4.weight"].T + w[f"{name}.4.bias"], w, f"{name}.5")


@pytest.mark.parametrize(("dim", "heads", "views"), [(128, 2, 4), (40, 1, 4), (64, 1, 9)])
@pytest.mark.parametrize("kind", SHALLOW)
@torch.no_grad()
def test_each_kind_against_numpy(kind: Projector, dim: int, heads: int, views: int) -> None:
    projector, embeds = make(kind, dim, views), features(kind, dim, views)
    w, k = weights_of(projector), SHALLOW[kind]
    for row, found in zip(embeds.double().numpy(), projector(embeds), strict=True):
        deep, shallow, local = row[:TOKENS], row[TOKENS : (1 + k) * TOKENS], row[(1 + k) * TOKENS :]
        expected = deep @ w["projector_base.weight"].T + w["projector_base.bias"]
        if kind is not Projector.SHALLOW_V1_COMPAT:
            expected = expected + mlp(attend(deep, local, w, "min_attention", heads), w, "projector")
        if k:
            structure = mlp(attend(deep, shallow, w, "min_attention2", heads), w, "projector2")
            expected = np.concatenate([expected, structure])
        torch.testing.assert_close(found, torch.from_numpy(expected).float(), atol=2e-5, rtol=2e-5)


def test_released_names_and_sizes() -> None:
    """inv. 35, the projector's part."""
    with torch.device("meta"):
        highres = make_projector(Projector.HIGHRES, 2176, 2048, 4, 0)
        shallow = make_projector(Projector.SHALLOW_FIG, 2176, 2048, 4, 3)
        compat = make_projector(Projector.SHALLOW_V1_COMPAT, 2176, 2048, 4, 3)
    assert highres is not None and shallow is not None and compat is not None
    names = dict(highres.named_parameters())
    assert set(names) == set(highres.state_dict()) == RELEASED and len(names) == 17
    assert highres.min_attention.heads == 34 and names["projector.0.weight"].shape == (8704, 2176)
    assert sum(parameter.numel() for parameter in names.values()) == 59_649_024
    second = {name.replace(".", "2.", 1) for name in RELEASED if not name.startswith("projector_base")}
    for projector in (shallow, compat):
        parameters = dict(projector.named_parameters())
        assert set(parameters) == RELEASED | second
        assert sum(parameter.numel() for parameter in parameters.values()) == 114_839_552
        assert projector(torch.zeros(1, 8 * 729, 2176, device="meta")).shape == (1, 2 * 729, 2048)
    assert highres(torch.zeros(2, 5 * 729, 2176, device="meta")).shape == (2, 729, 2048)


@pytest.mark.parametrize("kind", SHALLOW)
@torch.no_grad()
def test_what_acts_on_what(kind: Projector) -> None:
    """Local views act on the content alone, and not at all in the compat mode; shallow layers on the structure alone."""
    projector, embeds = make(kind), features(kind)
    start = projector(embeds)
    parts = [TOKENS, SHALLOW[kind] * TOKENS, 4 * TOKENS]
    for part, content_moves, structure_moves in (
        (2, kind is not Projector.SHALLOW_V1_COMPAT, False),
        (1, False, True),
        (0, True, True),
    ):
        pieces = [piece.clone() for piece in embeds.split(parts, 1)]
        pieces[part] += torch.randn(pieces[part].shape, generator=torch.Generator().manual_seed(3))
        changed = projector(torch.cat(pieces, 1))
        assert torch.equal(changed[:, :TOKENS], start[:, :TOKENS]) != content_moves
        if SHALLOW[kind]:
            assert torch.equal(changed[:, TOKENS:], start[:, TOKENS:]) != structure_moves


@pytest.mark.parametrize("kind", SHALLOW)
@torch.no_grad()
def test_permutations(kind: Projector) -> None:
    """inv. 6 and 7, of the projector: looked-at tokens have no order, the global ones carry theirs through."""
    projector, embeds = make(kind), features(kind)
    start = projector(embeds)
    generator = torch.Generator().manual_seed(3)
    deep, shallow, local = split_features(embeds, SHALLOW[kind], 4)
    mixed = [part[:, torch.randperm(part.shape[1], generator=generator)] for part in (shallow, local)]
    torch.testing.assert_close(projector(torch.cat([deep, *mixed], 1)), start, atol=2e-5, rtol=2e-5)
    order = torch.randperm(TOKENS, generator=generator)
    moved = projector(torch.cat([deep[:, order], shallow, local], 1)).unflatten(1, (-1, TOKENS))
    torch.testing.assert_close(moved, start.unflatten(1, (-1, TOKENS))[:, :, order], atol=2e-5, rtol=2e-5)
    alone = torch.cat([projector(row[None]) for row in embeds])
    torch.testing.assert_close(alone, start, atol=2e-5, rtol=2e-5)


def test_what_does_not_fit_is_refused() -> None:
    assert make_projector(Projector.NONE, DIM, TEXT, 0, 0) is None
    for kind, views, shallow, message in (
        (Projector.HIGHRES, 4, 2, "highres takes no shallow layer .* have 2 and 4"),
        (Projector.SHALLOW_FIG, 4, 0, "shallow_fig takes one or more shallow layers"),
        (Projector.HIGHRES, 0, 0, "one or more local views, the image features have 0 and 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make_projector(kind, DIM, TEXT, views, shallow)
    projector = make(Projector.HIGHRES)
    for tokens in (
        0,
        5 * TOKENS + 1,
        5 * 8,
        10 * TOKENS,
    ):  # ours have 5 views; 8 and 18 patches are no square; 10 = 1 + 9 views
        with pytest.raises(
            ValueError, match=f"^{tokens} image tokens are not a global view, 0 shallow layers and 4 local"
        ):
            projector(torch.zeros(1, tokens, DIM))


def pp_model(settings: MethodSettings, others: int = 0) -> RealCustomModel:
    """`others` seeds torch's own generator, from which nothing may be drawn."""
    unet = tiny.tiny_unet()
    torch.manual_seed(others)
    return RealCustomModel(unet, settings, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", SHALLOW)
def test_the_model_projects_and_trains(kind: Projector) -> None:
    """inv. 22, of the projector: all learns but the branch that the released code leaves dead."""
    settings = tiny.tiny_pp_settings(kind)
    model = pp_model(settings)
    assert {p.shape[1] for n, p in model.trained_parameters().items() if "_vision." in n} == {tiny.TEXT_WIDTH}
    again = pp_model(settings, others=1).adapter_state_dict()  # new weights are the generator's alone
    assert all(torch.equal(value, again[name]) for name, value in model.adapter_state_dict().items())
    views = 1 + len(settings.image_encoder.layers) - 1 + 4
    image = torch.randn(4, views * 16, 64, generator=torch.Generator().manual_seed(0))
    tokens = model.project(image)
    assert tokens.shape == (4, 16 if kind is Projector.HIGHRES else 32, tiny.TEXT_WIDTH)
    loss_of(model, image=image).backward()
    dead = {name for name, parameter in model.trained_parameters().items() if parameter.grad is None}
    compat = kind is Projector.SHALLOW_V1_COMPAT
    branch = (f"{PROJECTOR}.min_attention.", f"{PROJECTOR}.projector.")
    assert dead == ({name for name in model.trained_parameters() if name.startswith(branch)} if compat else set())
    assert all(p.grad is None or p.grad.abs().max() > 0 for p in model.trained_parameters().values())


def test_scoring_takes_projected_tokens() -> None:
    """The scoring module is legal in RealCustom++, and sees tokens of the text's width."""
    settings = tiny.tiny_pp_settings()
    scored = MethodSettings(
        variant=Variant.REALCUSTOM_PP,
        image_encoder=settings.image_encoder,
        tokens=TokenSettings(projector=Projector.HIGHRES, hidden=8),
    )
    model = pp_model(scored)
    assert model.adaptive_scoring is not None
    assert model.adaptive_scoring.text_scorer[0].in_features == 2 * tiny.TEXT_WIDTH
    loss_of(model, image=torch.randn(4, 5 * 16, 64, generator=torch.Generator().manual_seed(0))).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.trained_parameters().values())


def test_save_and_load(tmp_path: Path) -> None:
    """inv. 35: names in the file are the released ones, loading is strict and exact, from encoder to output."""
    settings = tiny.tiny_pp_settings()
    models = tiny.tiny_siglip_dino(tmp_path / "encoder")
    encoder = load_image_encoder(models, settings.image_encoder)
    model = pp_model(settings)
    state = model.adapter_state_dict()
    assert {name.removeprefix(f"{PROJECTOR}.") for name in state if name.startswith(PROJECTOR)} == RELEASED
    assert len(state) == 17 + 2 * 4
    adapter = Adapter(tensors=state, settings=settings, base="b", image_encoder=encoder.identity)
    save_adapter(tmp_path / "adapter.safetensors", adapter)
    loaded = load_adapter(tmp_path / "adapter.safetensors")
    assert loaded.settings.image_encoder.model == encoder.identity
    other = RealCustomModel(tiny.tiny_unet(), loaded.settings, encoder.embed_dim, local_views=encoder.local_views)
    other.load_adapter_state_dict(loaded.tensors)
    image = encoder.encode_black().expand(4, -1, -1)
    assert torch.equal(loss_of(other, image=image), loss_of(model, image=image))
    key = f"{PROJECTOR}.projector_base.bias"
    with pytest.raises(ValueError, match=f"missing: {key}"):
        other.load_adapter_state_dict({name: value for name, value in state.items() if name != key})
    with pytest.raises(ValueError, match="unexpected"):
        pp_model(MethodSettings()).load_adapter_state_dict(state)


def test_features_of_another_dtype_are_taken_over() -> None:
    projector = make(Projector.HIGHRES).to(torch.bfloat16)
    assert projector(features(Projector.HIGHRES)).dtype is torch.bfloat16
