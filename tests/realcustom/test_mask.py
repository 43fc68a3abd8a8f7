"""The influence mask from maps: section 6 of the method, on random maps of several grids."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from realcustom.mask import influence_mask, refine
from realcustom.settings import MaskNorm, MaskSelect, MaskSettings, Overlap

PAPER = MaskSettings()


def maps(seed: int = 0, grids: tuple[tuple[int, int], ...] = ((16, 16), (8, 8), (16, 16))) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, 2, *grid, generator=generator) * 0.03 for grid in grids]


@pytest.mark.parametrize("scope", [0.001, 0.1, 0.25, 0.4, 1.0])
@pytest.mark.parametrize("grid", [(16, 16), (16, 20), (17, 13)])
def test_the_largest_are_kept_and_the_maximum_is_one(scope: float, grid: tuple[int, int]) -> None:
    """inv. 10, inv. 31 (sizes)."""
    half = ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
    layers = maps(grids=(grid, half))
    mask = influence_mask(layers, scope, PAPER)
    assert mask.shape == (2, 2, *grid) and mask.dtype == torch.float32
    assert (mask.amax((-2, -1)) == 1).all() and (mask >= 0).all()
    assert (mask.flatten(2).count_nonzero(-1) == max(1, int(scope * grid[0] * grid[1]))).all()
    whole = influence_mask(layers, 1.0, PAPER)  # all values, in the order that decides
    for kept, value in zip(mask.flatten(0, 1), whole.flatten(0, 1), strict=True):
        if (kept == 0).any():
            assert value[kept > 0].min() >= value[kept == 0].max()


def test_scale_layers_flip_and_transpose() -> None:
    """inv. 11 (scale, layers), inv. 12, inv. 31 (transpose)."""
    layers = maps()
    mask = influence_mask(layers, 0.25, PAPER)
    assert (influence_mask([7.5 * layer for layer in layers], 0.25, PAPER) - mask).abs().max() <= 1e-6
    assert (influence_mask(layers[::-1], 0.25, PAPER) - mask).abs().max() <= 1e-6
    assert (influence_mask([layer.flip(-1) for layer in layers], 0.25, PAPER).flip(-1) - mask).abs().max() <= 1e-6
    assert (influence_mask([layer.mT for layer in layers], 0.25, PAPER).mT - mask).abs().max() <= 1e-6


def test_a_wider_scope_only_adds() -> None:
    """inv. 13."""
    narrow, wide = (influence_mask(maps(), scope, PAPER) for scope in (0.1, 0.3))
    support = narrow > 0
    assert (wide[support] > 0).all() and torch.equal(wide[support], narrow[support])


def test_against_the_formula() -> None:
    """Mean over layers on the largest grid, top-k, divided by the maximum: written out with numpy's tools."""
    layers = maps(grids=((8, 8), (4, 4)))
    mask = influence_mask(layers, 0.25, PAPER)
    for row in range(2):
        for subject in range(2):
            fine, coarse = layers[0][row, subject], layers[1][row, subject]
            wide = torch.nn.functional.interpolate(coarse[None, None], size=(8, 8), mode="bilinear")[0, 0]
            mean = ((fine + wide) / 2).numpy()
            threshold = sorted(mean.ravel())[-16]
            expected = torch.from_numpy(mean * (mean >= threshold) / mean.max())
            assert (mask[row, subject] - expected).abs().max() <= 1e-6


def test_each_row_and_subject_has_its_own_scope() -> None:
    scopes = torch.tensor([[0.1, 0.5], [0.0, 1.0]])
    counts = influence_mask(maps(), scopes, PAPER).flatten(2).count_nonzero(-1)
    assert counts.tolist() == [[25, 128], [0, 256]]  # scope 0 is an explicit "nowhere"


def test_equal_values_go_to_the_lower_index() -> None:
    mask = influence_mask([torch.full((1, 1, 4, 4), 0.02)], 0.25, PAPER)
    assert mask.flatten().tolist() == [1.0] * 4 + [0.0] * 12  # a constant map: k pixels of value one


def test_an_empty_map_is_an_empty_mask_and_a_warning() -> None:
    """Also a binary one, which marks no cells by their index; with scope 0 it is asked for, and nothing is said."""
    empty = torch.zeros(1, 1, 4, 4)
    for settings in (PAPER, MaskSettings(binary=True)):
        with pytest.warns(UserWarning, match="zero everywhere"):
            assert torch.equal(influence_mask([empty], 0.25, settings), empty)
        assert torch.equal(influence_mask([empty], 0.0, settings), empty)


def test_a_mask_that_another_subject_covers_is_no_empty_map() -> None:
    same = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).expand(1, 2, 4, 4)
    mask = influence_mask([same], 0.25, MaskSettings(overlap=Overlap.ARGMAX))
    assert mask[0, 0].max() == 1 and mask[0, 1].max() == 0


def test_a_threshold_that_no_cell_reaches_is_said() -> None:
    ramp = [torch.arange(1.0, 17.0).view(1, 1, 4, 4)]
    settings = MaskSettings(select=MaskSelect.THRESHOLD, eps=0.5)
    with pytest.warns(UserWarning, match="no cell reaches the threshold"):
        assert (influence_mask(ramp, 0.01, settings) == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_map_that_is_not_finite_is_an_error(value: float) -> None:
    broken = torch.zeros(1, 1, 4, 4)
    broken[0, 0, 1, 1] = value
    with pytest.raises(ValueError, match="not finite"):
        influence_mask([broken], 0.25, PAPER)
    with pytest.raises(ValueError, match="no attention maps"):
        influence_mask([], 0.25, PAPER)


def test_settings_of_the_mask() -> None:
    layers = maps()
    binary = influence_mask(layers, 0.25, dataclasses.replace(PAPER, binary=True))
    assert set(binary.unique().tolist()) == {0.0, 1.0} and binary.sum() == 4 * 64
    raw = influence_mask(layers, 0.25, dataclasses.replace(PAPER, norm=MaskNorm.NONE))
    assert raw.max() < 0.04
    exclusive = influence_mask(layers, 0.5, dataclasses.replace(PAPER, overlap=Overlap.ARGMAX))
    both = influence_mask(layers, 0.5, PAPER)
    assert ((exclusive > 0).sum(1) <= 1).all() and ((both > 0).sum(1) == 2).any()


def test_half_precision_maps_are_treated_in_full() -> None:
    layers = [layer.bfloat16() for layer in maps()]
    mask = influence_mask(layers, 0.25, PAPER)
    assert mask.dtype == torch.float32 and (mask.flatten(2).count_nonzero(-1) == 64).all()


def test_the_released_max_norm_differs_by_its_epsilon_alone() -> None:
    """inv. 14: same support; the difference is at most eps / max(M)."""
    layers = maps()
    ours, released = influence_mask(layers, 0.25, PAPER), influence_mask(layers, 0.25, MaskSettings(eps=1e-6))
    largest = influence_mask(layers, 0.25, MaskSettings(norm=MaskNorm.NONE)).amax((-2, -1), keepdim=True)
    assert torch.equal(ours > 0, released > 0) and (released.amax((-2, -1)) < 1).all()
    assert ((ours - released).abs() <= 1e-6 / largest + 1.2e-7).all()  # two fp32 roundings of values up to one


def test_minmax_norms_against_numpy() -> None:
    """Written out: the map (or each layer on the mask's grid) from 0 to 1, then the largest cells."""
    layers = maps(grids=((8, 8), (4, 4)))
    resized = [torch.nn.functional.interpolate(m, size=(8, 8), mode="bilinear").numpy() for m in layers]

    def unit(values: np.ndarray) -> np.ndarray:
        low, high = values.min((-2, -1), keepdims=True), values.max((-2, -1), keepdims=True)
        scaled: np.ndarray = (values - low) / (high - low)
        return scaled

    for norm, whole in (
        (MaskNorm.MINMAX, unit(np.mean(resized, 0))),
        (MaskNorm.MINMAX_PER_LAYER, unit(np.mean([unit(m) for m in resized], 0))),
    ):
        mask = influence_mask(layers, 0.25, MaskSettings(norm=norm)).numpy()
        for found, values in zip(mask.reshape(4, 64), whole.reshape(4, 64), strict=True):
            kept = np.argsort(-values, kind="stable")[:16]
            expected = np.zeros(64)
            expected[kept] = values[kept]
            np.testing.assert_allclose(found, expected, atol=1e-6)
            assert found.max() == 1


def test_a_constant_map_by_norm() -> None:
    """Max-norm keeps k cells of value 1, of the lower indices; min-max has nothing to tell apart and gives 0."""
    flat = [torch.full((1, 1, 4, 4), 0.02)]
    kept = influence_mask(flat, 0.25, PAPER).flatten()
    assert (kept[:4] == 1).all() and (kept[4:] == 0).all()
    for norm in (MaskNorm.MINMAX, MaskNorm.MINMAX_PER_LAYER):
        for binary in (False, True):
            with pytest.warns(UserWarning, match="the same everywhere"):
                assert (influence_mask(flat, 0.25, MaskSettings(norm=norm, binary=binary)) == 0).all()


def test_threshold_instead_of_the_largest() -> None:
    ramp = [torch.arange(1.0, 17.0).view(1, 1, 4, 4)]  # max-norm: 1/16 ... 1
    soft = influence_mask(ramp, 0.25, MaskSettings(select=MaskSelect.THRESHOLD)).flatten()
    assert torch.equal(soft, torch.where(torch.arange(16) >= 11, torch.arange(1.0, 17.0) / 16, 0.0))
    hard = influence_mask(ramp, 0.25, MaskSettings(select=MaskSelect.THRESHOLD, binary=True)).flatten()
    assert torch.equal(hard, torch.tensor([0.0] * 11 + [0.75] + [1.0] * 4))  # equality keeps the value
    assert (influence_mask(ramp, 0.0, MaskSettings(select=MaskSelect.THRESHOLD)) == 0).all()
    with pytest.raises(ValueError, match="needs a norm"):
        MaskSettings(select=MaskSelect.THRESHOLD, norm=MaskNorm.NONE)


def test_self_attention_refines_the_map() -> None:
    """inv. 30: identity leaves it, uniform makes it constant, any row-stochastic matrix stays within its range."""
    combined = maps(grids=((6, 4),))[0]
    assert torch.equal(refine(combined, torch.eye(24).expand(2, -1, -1)), combined)
    uniform = refine(combined, torch.ones(2, 24, 24))
    assert (uniform - combined.mean((-2, -1), keepdim=True)).abs().max() <= 1e-7
    random = torch.rand(2, 24, 24, generator=torch.Generator().manual_seed(1))
    refined = refine(combined, random)
    assert (refined <= combined.amax((-2, -1), keepdim=True) + 1e-7).all()
    assert (refined >= combined.amin((-2, -1), keepdim=True) - 1e-7).all()
    rows = (random / random.sum(-1, keepdim=True)).double().numpy()
    expected = np.einsum("bij,buj->bui", rows, combined.flatten(2).double().numpy())
    np.testing.assert_allclose(refined.flatten(2).numpy(), expected, atol=1e-6)

    settings = MaskSettings(self_refine=True)
    assert torch.equal(
        influence_mask([combined], 0.25, settings, self_attention=random), influence_mask([refined], 0.25, PAPER)
    )
    with pytest.raises(ValueError, match="self_refine"):
        influence_mask([combined], 0.25, settings)


def test_the_grid_may_be_larger_than_every_map() -> None:
    mask = influence_mask(maps(grids=((8, 8),)), 0.25, PAPER, grid=(16, 20))
    assert mask.shape[-2:] == (16, 20) and (mask.flatten(2).count_nonzero(-1) == 80).all()
