"""The trained model: a frozen UNet, visual projections in its cross-attentions, the projector and the scoring module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from realcustom import attention, maps
from realcustom.attention import Conditioning, SubjectTokens
from realcustom.errors import UsageError
from realcustom.projector import make_projector
from realcustom.scoring import AdaptiveScoring, select_tokens
from realcustom.settings import MaskResize, MethodSettings, VisualContext

SCORING = "adaptive_scoring"
PROJECTOR = "encoder_hidden_states_vision_projection"  # the attribute's name; released checkpoints use it


class RealCustomModel(nn.Module):
    """A UNet that attends to a subject's image tokens beside the text.

    Only the visual projections, the projector and the scoring module take gradients; everything else is frozen.

    Args:
        unet: SD 1.x- or SDXL-shaped, of any size; its attention processors are replaced and projections added to it.
        settings: the method.
        image_embed_dim: width of the image encoder's tokens, before the projector.
        generator: for the new weights; None = torch's default.
        local_views: of the image encoder, for a projector; four in the release.
        beside: the UNet has another model's adapter in its layers; this one keeps its projections to itself.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        settings: MethodSettings,
        image_embed_dim: int,
        generator: torch.Generator | None = None,
        local_views: int = 4,
        *,
        beside: bool = False,
    ) -> None:
        super().__init__()
        self.settings, self.image_embed_dim = settings, image_embed_dim
        unet.requires_grad_(False)
        if not beside:
            attention.install(unet)
        text_dim = unet.config.cross_attention_dim
        projector = make_projector(
            settings.tokens.projector,
            image_embed_dim,
            text_dim,
            local_views,
            shallow_layers=len(settings.image_encoder.layers) - 1,
        )
        token_dim = image_embed_dim if projector is None else text_dim
        self.projections: attention.Projections | None = None  # None: they are the UNet's layers' own
        if beside:
            self.projections = attention.visual_projections(unet, token_dim, settings.attn, generator)
            self.beside = nn.ModuleList(layer for own in self.projections.values() for layer in own.values())
        else:
            attention.add_visual_projections(unet, token_dim, settings.attn, generator)
        self.unet = unet
        self.levels = len(unet.config.block_out_channels)
        self.adaptive_scoring: AdaptiveScoring | None = None
        if settings.tokens.scoring:
            conv_in = settings.tokens.visual_context is VisualContext.CONV_IN
            channels = unet.config.block_out_channels[0] if conv_in else unet.config.out_channels
            self.adaptive_scoring = AdaptiveScoring(text_dim, channels, token_dim, settings.tokens).to(unet.device)
            _reset(self.adaptive_scoring, generator)
        self.encoder_hidden_states_vision_projection = projector
        if projector is not None:
            _reset(projector, generator)
            projector.to(unet.device, unet.dtype)

    def _projection(self, attn: Attention, name: str) -> nn.Parameter:
        layer: Any = getattr(attn, name) if self.projections is None else self.projections[attn][name]
        weight: nn.Parameter = layer.weight
        return weight

    def cast(self, dtype: torch.dtype) -> None:
        """Bring the modules outside the UNet to the UNet's dtype; the scoring module stays in float32."""
        for module in self.own_modules():
            if module is not self.adaptive_scoring:
                module.to(dtype)

    def own_modules(self) -> list[nn.Module]:
        """The trained modules outside the UNet."""
        beside = None if self.projections is None else self.beside
        modules = (self.encoder_hidden_states_vision_projection, self.adaptive_scoring, beside)
        return [module for module in modules if module is not None]

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """All trained parameters, by their name in a checkpoint."""
        trained: dict[str, nn.Parameter] = {
            f"{path}.{name}.weight": self._projection(attn, name)
            for path, attn in maps.text_cross_attentions(self.unet).items()
            for name in attention.PROJECTIONS
        }
        if self.adaptive_scoring is not None:
            trained |= {f"{SCORING}.{name}": value for name, value in self.adaptive_scoring.named_parameters()}
        if self.encoder_hidden_states_vision_projection is not None:
            parameters = self.encoder_hidden_states_vision_projection.named_parameters()
            trained |= {f"{PROJECTOR}.{name}": value for name, value in parameters}
        return trained

    def adapter_state_dict(self) -> dict[str, Tensor]:
        """Copies of the trained tensors, by checkpoint name."""
        return {name: value.detach().clone() for name, value in self.trained_parameters().items()}

    @torch.no_grad()
    def load_adapter_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load trained tensors. Raises UsageError naming what is missing, unexpected or of another shape."""
        own = self.trained_parameters()
        problems = adapter_problems(*({k: tuple(v.shape) for k, v in tensors.items()} for tensors in (own, state)))
        if problems:
            raise UsageError(f"the adapter does not fit this base model and image encoder: {problems}")
        for name, value in own.items():
            value.copy_(state[name])

    def project(self, image_embeds: Tensor) -> Tensor:
        """The image encoder's tokens (B, S_raw, D) -> a subject's tokens, which `score` and the layers take.

        (B, S, cross_attention_dim) by the projector; the encoder's own where there is none.
        """
        projector = self.encoder_hidden_states_vision_projection
        if projector is None:
            return image_embeds
        present = (image_embeds != 0).any(2, keepdim=True).any(1, keepdim=True)  # (B, 1, 1): all zero = no reference
        weight = next(projector.parameters())  # features may have been kept since before the model was moved
        tokens: Tensor = projector(image_embeds.to(weight.device, weight.dtype))
        return tokens * present.to(tokens.device)

    def score(
        self,
        encoder_hidden_states: Tensor,
        latents: Tensor,
        image_embeds: Tensor,
        alphas_cumprod: Tensor,
        influence_quantity: float,
        words: Tensor | None = None,
        mask: Tensor | None = None,
        mask_resize: MaskResize = MaskResize.BILINEAR,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Select the tokens that act, and their gates.

        Args:
            latents: (B, c, h, w), as the UNet sees them, with an inpainting UNet's other channels behind them.
            image_embeds: (B, S, D), of `project`.
            words: (B, T) the target word's tokens; None while training.
            mask: (B, 1, H*, W*) the influence mask, for `mask_latent`; None while training.
            The others are those of `AdaptiveScoring`.
        Returns:
            Indices (B, n) and gates (B, n); (None, None) = all tokens, ungated.
        """
        if self.adaptive_scoring is None:
            return None, None
        context = latents[:, : self.unet.config.out_channels]  # (B, c, h, w), or the first convolution's channels
        if self.settings.tokens.visual_context is VisualContext.CONV_IN:
            context = self._conv_in(latents)
        if mask is not None and self.settings.tokens.mask_latent:
            grid = (int(latents.shape[2]), int(latents.shape[3]))
            context = context * attention.resize_mask(mask, grid, mask_resize).to(context.dtype)
        scores = self.adaptive_scoring(encoder_hidden_states, context, image_embeds, alphas_cumprod, words)
        return select_tokens(scores, influence_quantity)

    def _conv_in(self, latents: Tensor) -> Tensor:
        """The first convolution's features (B, C, h, w)."""
        conv = self.unet.conv_in
        latents = latents.to(conv.weight.dtype)
        if conv.weight.device.type in (latents.device.type, "meta"):
            features: Tensor = conv(latents)
            return features
        # offload moves the UNet as a whole, and only when the UNet itself is called
        weight, bias = (value.to(latents.device) for value in (conv.weight, conv.bias))
        return nn.functional.conv2d(latents, weight, bias, conv.stride, conv.padding)

    def forward(
        self,
        noisy_latents: Tensor,  # (B, c, h, w)
        timesteps: Tensor,  # (B,)
        encoder_hidden_states: Tensor,  # (B, T, D_text)
        image_embeds: Tensor,  # (B, S_raw, D) of the image encoder
        alphas_cumprod: Tensor,  # (B,) of the timesteps
        influence_quantity: float,
        added_cond_kwargs: dict[str, Tensor] | None = None,  # SDXL: text_embeds (B, P), time_ids (B, 6)
    ) -> Tensor:
        """The model's output (B, c, h, w) in training: no influence mask, no word mask (section 3.2)."""
        tokens = self.project(image_embeds)  # (B, S, D)
        index, gate = self.score(encoder_hidden_states, noisy_latents, tokens, alphas_cumprod, influence_quantity)
        conditioning = Conditioning(
            grids=maps.by_queries(maps.level_grids(noisy_latents.shape[2], noisy_latents.shape[3], self.levels)),
            subjects=[
                SubjectTokens(
                    embeds=tokens,
                    index=index,
                    gate=gate,
                    scale=self.settings.attn.scale,
                    projections=self.projections,
                )
            ],
        )
        prediction: Tensor = self.unet(
            noisy_latents,
            timesteps,
            encoder_hidden_states,
            added_cond_kwargs=added_cond_kwargs,
            cross_attention_kwargs={"conditioning": conditioning},
            return_dict=False,
        )[0]
        return prediction


def adapter_problems(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """Problems with an adapter's tensors, by name and shape; empty = none."""
    shapes = [
        f"{name} {found[name]}, here {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if found[name] != expected[name]
    ]
    kinds = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": shapes,
    }
    return "; ".join(
        f"{what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        for what, names in kinds.items()
        if names
    )


def _reset(module: nn.Module, generator: torch.Generator | None) -> None:
    """nn.Linear's default initialisation, from `generator`."""
    if generator is None:
        return
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            for parameter in layer.parameters(recurse=False):
                with torch.no_grad():
                    parameter.uniform_(-bound, bound, generator=generator)
