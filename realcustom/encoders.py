"""The frozen image encoders, whose patch tokens represent the subject: CLIP, or SigLIP and DINOv2 concatenated.

Letters: B pictures, S patch tokens of a view, S_raw all tokens of a picture, D their width, k shallow layers, R the
encoder's side in pixels, H the high resolution, f = H / R, V = 1 + f*f views.
"""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.models.siglip.modeling_siglip import SiglipMLP

from realcustom.errors import UsageError
from realcustom.reference import on_white
from realcustom.settings import ImageEncoderSettings, SiglipGelu


class ImageEncoder(abc.ABC):
    """`prepare` makes pixels, `encode` makes tokens; both are used in training, caches and serving alike."""

    identity: str  # as `model_identity`
    settings: ImageEncoderSettings
    local_views: int = 0  # per picture, beside the global one

    @property
    @abc.abstractmethod
    def embed_dim(self) -> int:
        """D, width of a token."""

    @abc.abstractmethod
    def prepare(self, image: Image.Image) -> Tensor:
        """A square picture as input of `encode`: (3, H, W)."""

    @abc.abstractmethod
    def encode(self, pixel_values: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) -> tokens (B, S_raw, D)."""

    @abc.abstractmethod
    def to(self, where: torch.device | str | torch.dtype) -> None:
        """Move the models to a device or a dtype."""

    @abc.abstractmethod
    def save(self, folder: Path) -> None:
        """Write the models below `folder`, each into a folder of its own named by its kind."""

    def encode_black(self) -> Tensor:
        """(1, S_raw, D) of a black picture: the reference of the released negative branch. They are not zeros."""
        return self.encode(self.prepare(Image.new("RGB", (64, 64)))[None])


class ClipEncoder(ImageEncoder):
    """Patch tokens of a hidden state of CLIP (section 3.1; by default the last but one, without the class token)."""

    def __init__(self, model: CLIPVisionModel, processor: Any, identity: str, settings: ImageEncoderSettings) -> None:
        self.model = model.requires_grad_(False).eval()
        self.processor, self.identity, self.settings = processor, identity, settings
        _check_layers("layers", settings.layers, model)

    @property
    def embed_dim(self) -> int:
        """D."""
        return int(self.model.config.hidden_size)

    def to(self, where: torch.device | str | torch.dtype) -> None:
        """Move the model."""
        _move(self.model, where)

    def save(self, folder: Path) -> None:
        """Write `clip`."""
        _save(folder / "clip", self.model, self.processor)

    def prepare(self, image: Image.Image) -> Tensor:
        """As the processor scales and normalises it: (3, R, R)."""
        pixel_values: Tensor = self.processor(on_white(image), return_tensors="pt").pixel_values
        return pixel_values[0]

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, R, R) -> (B, S, D)."""
        pixel_values = pixel_values.to(self.model.device, self.model.dtype)
        states: tuple[Tensor, ...] = self.model(pixel_values, output_hidden_states=True).hidden_states
        hidden = states[self.settings.layers[-1]]
        return hidden[:, 1:] if self.settings.drop_prefix else hidden


class SiglipDinoEncoder(ImageEncoder):
    """SigLIP's and DINOv2's hidden states, concatenated by channel, of a picture at two scales (RealCustom++, released
    code).

    Tokens of a picture, in this order, S_raw = (1 + k + f*f) S of them (`projector.split_features` takes them apart):
        global deep         S       the last of `layers`, of the global view
        global shallow 1..k S each  the others, in their order
        local deep          f*f*S   of the local views; patch l of view v at l*f*f + v, so a patch's details are neighbours
    """

    def __init__(
        self,
        siglip: SiglipVisionModel,
        dino: Dinov2Model | Dinov2WithRegistersModel,
        processors: tuple[Any, Any],
        identity: str,
        settings: ImageEncoderSettings,
    ) -> None:
        """Use the models, and the mean and deviation of their image processors.

        Raises UsageError where a hidden state does not exist, `high_res` is not a multiple of SigLIP's size, or the two
        models cut that size into different numbers of patches.
        """
        self.siglip, self.dino = siglip.requires_grad_(False).eval(), dino.requires_grad_(False).eval()
        self.processors, self.identity, self.settings = processors, identity, settings
        if settings.siglip_gelu is SiglipGelu.EXACT:
            for block in siglip.modules():
                if isinstance(block, SiglipMLP):
                    block.activation_fn = nn.GELU()
        _check_layers("layers", settings.layers, siglip)
        _check_layers("dino_layers", settings.dino_layers, dino)
        self.size = int(siglip.config.to_dict()["image_size"])  # R
        self.local_views = count_views(self.size, settings)
        counts = [(self.size // int(model.config.to_dict()["patch_size"])) ** 2 for model in (siglip, dino)]
        if counts[0] != counts[1]:
            raise UsageError(
                f"at {self.size} px SigLIP has {counts[0]} patch tokens and DINOv2 {counts[1]}: they must be equally many"
            )
        # DINOv2 has a class token and registers before the patches; SigLIP has nothing before them
        self._prefixes = 0, 1 + int(getattr(dino.config, "num_register_tokens", 0))

    @property
    def embed_dim(self) -> int:
        """D, both widths together."""
        return int(self.siglip.config.hidden_size + self.dino.config.hidden_size)

    def to(self, where: torch.device | str | torch.dtype) -> None:
        """Move both models."""
        _move(self.siglip, where)
        _move(self.dino, where)

    def save(self, folder: Path) -> None:
        """Write `siglip` and `dino`."""
        _save(folder / "siglip", self.siglip, self.processors[0])
        _save(folder / "dino", self.dino, self.processors[1])

    def prepare(self, image: Image.Image) -> Tensor:
        """At high resolution, in [0, 1]: (3, H, H); `encode` makes each model's views of it."""
        return high_resolution(on_white(image), self.settings.high_res)

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, H) in [0, 1] -> (B, S_raw, D); all views of a batch go through each model in one call."""
        views = make_views(pixel_values.to(self.siglip.device), self.size)  # (B, V, 3, R, R)
        pairs = zip(
            self._features(self.siglip, views, self.processors[0], self.settings.layers, self._prefixes[0]),
            self._features(self.dino, views, self.processors[1], self.settings.dino_layers, self._prefixes[1]),
            strict=True,
        )
        *shallow, deep = [torch.cat(pair, -1) for pair in pairs]  # (B, V, S, D) each
        local = deep[:, 1:].transpose(1, 2).flatten(1, 2)  # (B, S*f*f, D)
        return torch.cat([deep[:, 0], *(layer[:, 0] for layer in shallow), local], 1)

    @staticmethod
    def _features(
        model: PreTrainedModel, views: Tensor, processor: Any, layers: tuple[int, ...], prefix: int
    ) -> list[Tensor]:
        """Raw hidden states (before the final norm) of the patches, (B, V, S, D_model) of each layer."""
        pixels = _normalise(views.flatten(0, 1), processor.image_mean, processor.image_std)  # (B*V, 3, R, R)
        hidden = model(pixels.to(model.device, model.dtype), output_hidden_states=True).hidden_states
        return [hidden[layer][:, prefix:].unflatten(0, views.shape[:2]) for layer in layers]


def high_resolution(image: Image.Image, side: int) -> Tensor:
    """An RGB picture as (3, H, H) in [0, 1]; bilinear, no antialias, corners not aligned (released code).

    A picture that is not square is stretched, as in the release: `prepare_reference` makes squares.
    """
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)  # (3, h, w)
    return F.interpolate(pixels[None], size=(side, side), mode="bilinear", align_corners=False)[0]


def make_views(pixel_values: Tensor, size: int) -> Tensor:
    """The global view, then the f*f local ones (RealCustom++, framework figure; released code).

    The global view is bilinear with aligned corners. Local view f*a + b consists of the pixels (f*y + a, f*x + b): each
    shows the whole picture, and together they hold all of its pixels. The figure shows tiles; the released weights
    were trained with subsampling.

    Args:
        pixel_values: (B, 3, H, H) in [0, 1]; H is a multiple of `size`.
        size: R.
    Returns:
        (B, V, 3, R, R) uint8: an encoder's own preprocessing starts from 8 bits, rounded down as the released code does.
    """
    pixel_values = pixel_values.float()
    factor = pixel_values.shape[-1] // size
    whole = F.interpolate(pixel_values, size=(size, size), mode="bilinear", align_corners=True)  # (B, 3, R, R)
    phases = pixel_values.unflatten(3, (size, factor)).unflatten(2, (size, factor))  # (B, 3, R, f, R, f)
    local = phases.permute(0, 3, 5, 1, 2, 4).flatten(1, 2)  # (B, f*f, 3, R, R)
    return (torch.cat([whole[:, None], local], 1) * 255).to(torch.uint8)


def _normalise(views: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """8-bit views (..., 3, R, R) as an encoder's image processor normalises them: float32 of the same shape."""
    centre, spread = (views.new_tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))
    return (views.float() / 255 - centre) / spread


def count_views(size: int, settings: ImageEncoderSettings) -> int:
    """f*f, for an encoder of this side. Raises UsageError where `high_res` is not a multiple of it."""
    factor, rest = divmod(settings.high_res, size)
    if rest or not factor:
        raise UsageError(f"image_encoder.high_res {settings.high_res} is not a multiple of the encoder's {size} px")
    return factor * factor


def _move(model: nn.Module, where: torch.device | str | torch.dtype) -> None:
    """transformers' models: the types of their `to` fit no call."""
    model.to(where)


def _save(folder: Path, model: PreTrainedModel, processor: Any) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _check_layers(name: str, layers: tuple[int, ...], model: PreTrainedModel) -> None:
    count = model.config.num_hidden_layers
    if not all(-count - 1 <= layer <= count for layer in layers):
        raise UsageError(f"image_encoder.{name} is {list(layers)}, the encoder has {count} layers")
