"""LAION's aesthetic heads as `heads.safetensors`."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from realcustom import storage
from realcustom.model_cache import pin
from realcustom.preprocessing.catalogue import SCORE
from realcustom.preprocessing.score.clip import load_heads
from realcustom.preprocessing.score.convert_heads import convert_heads, main


def layers(*widths: int) -> nn.Sequential:
    """Linear layers with dropout between them, as the improved predictor has them."""
    torch.manual_seed(0)
    made: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        made += [nn.Linear(width, following), nn.Dropout(0.2)]
    return nn.Sequential(*made[:-1]).eval()


def test_several_linear_layers_become_one_of_equal_values(tmp_path: Path) -> None:
    head = nn.Module()
    head.layers = layers(768, 1024, 128, 64, 16, 1)
    torch.save(head.state_dict(), tmp_path / "head.pth")
    convert_heads(tmp_path / "head.pth", tmp_path / "heads")
    weight, bias = load_heads(str(tmp_path / "heads"), 768)["aesthetic"]
    embeds = nn.functional.normalize(torch.randn(20, 768), dim=-1)
    with torch.no_grad():
        expected = head.layers(embeds)[:, 0].numpy()
    np.testing.assert_allclose(embeds.numpy() @ weight + bias, expected, atol=1e-6)


def test_one_layer_stays_as_it_is_and_another_head_is_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linear = nn.Linear(8, 1)
    torch.save(linear.state_dict(), tmp_path / "linear.pth")
    save_file({key: value.clone() for key, value in nn.Linear(8, 1).state_dict().items()}, tmp_path / "n.safetensors")
    assert main([str(tmp_path / "linear.pth"), "--output", str(tmp_path / "heads")]) == 0
    assert main([str(tmp_path / "n.safetensors"), "--output", str(tmp_path / "heads"), "--name", "nsfw"]) == 0
    heads = load_heads(str(tmp_path / "heads"), 8)
    assert set(heads) == {"aesthetic", "nsfw"}
    np.testing.assert_array_equal(heads["aesthetic"][0].astype(np.float32), linear.weight.detach().numpy()[0])
    assert capsys.readouterr().out.count("heads.safetensors") == 2


def test_what_is_no_head_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong: dict[str, object] = {
        "two.pth": nn.Linear(8, 2).state_dict(),
        "conv.pth": {"conv.running_mean": torch.zeros(3)},
        "gap.pth": {"0.weight": torch.zeros(4, 8), "0.bias": torch.zeros(4), "1.weight": torch.zeros(1, 5)}
        | {"1.bias": torch.zeros(1)},
        "bias.pth": {"0.weight": torch.zeros(1, 8)},
        "list.pth": [torch.zeros(1)],
    }
    for name, content in wrong.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "text.pth").write_text("no tensors")
    for name in (*wrong, "text.pth", "absent.pth"):
        assert main([str(tmp_path / name), "--output", str(tmp_path / "heads")]) == 2, name
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "heads").exists()


def test_heads_of_a_store_are_those_of_the_folder(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REALCUSTOM_CACHE", str(tmp_path / "cache"))
    torch.save(nn.Linear(8, 1).state_dict(), tmp_path / "linear.pth")
    convert_heads(tmp_path / "linear.pth", tmp_path / "heads")
    storage.write_bytes(f"{bucket}/heads/heads.safetensors", (tmp_path / "heads" / "heads.safetensors").read_bytes())
    [check] = [model.check for model in SCORE.models if model.name == "heads"]
    assert check is not None
    for folder in (f"{bucket}/heads", pin(f"{bucket}/heads")):
        check(folder)
        [(weight, bias)] = load_heads(folder, 8).values()
        [(other, same)] = load_heads(str(tmp_path / "heads"), 8).values()
        assert bias == same and (weight == other).all()
