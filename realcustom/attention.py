"""Visual cross-attention beside each text cross-attention (paper, eq. 4 and 12).

The processor holds no state: tokens, masks, grids and the recorder arrive as one argument of each UNet call
(`cross_attention_kwargs={"conditioning": ...}`), so that gradient checkpointing, offload and a second call see the
right values and nothing leaks between calls.

Letters: B rows of a UNet call, R rows with subjects, N = h*w queries of a layer, T text tokens, S image tokens, n
selected ones, H heads, d head width, D image width, U subjects.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from realcustom.errors import UsageError
from realcustom.maps import MapRecorder, text_cross_attentions
from realcustom.sdpa import attention_with_normaliser
from realcustom.settings import AttentionSettings, KVInit, MaskResize

KeyValue = tuple[Tensor, Tensor]  # each (B, H, tokens, d)
Projections = Mapping[Attention, Mapping[str, nn.Linear]]  # of each text cross-attention, by the names below
PROJECTIONS = ("to_k_vision", "to_v_vision")  # the adapter's layers in each text cross-attention
# diffusers' hooks that move or cast weights, and change no result
MOVES = ("group_offloading", "layer_execution_tracker", "lazy_", "layerwise_casting", "peft_autocast_disable")


@dataclass(frozen=True, kw_only=True)
class SubjectTokens:
    """One subject's image tokens for a UNet call, and which of them act.

    The gate commutes with the bias-free projections (W(g f) = g (W f)), so keys and values of all tokens can be made
    once, kept in `cache`, and each step gathers and scales them.
    """

    embeds: Tensor  # (R, S, D), ungated
    rows: slice = field(default_factory=lambda: slice(None))  # the UNet call's rows in which it acts
    index: Tensor | None = None  # (R, n) selected tokens, ascending; None = all
    gate: Tensor | None = None  # (R, n) factor of each selected token, fp32
    mask: Tensor | None = None  # (R, 1, H*, W*) influence mask in [0, 1]; None = 1 everywhere
    mask_resize: MaskResize = MaskResize.BILINEAR
    scale: float = 1.0  # weight of the visual term
    projections: Projections | None = None  # of its adapter; None = the layers' own
    cache: dict[Attention, KeyValue] | None = None  # kept by the caller over a call's steps; None = computed each time
    _masks: dict[tuple[int, int], Tensor] = field(init=False, default_factory=dict)  # by grid; new in each copy

    def keys_values(self, attn: Attention) -> KeyValue:
        """Keys and values of the selected tokens in this layer, each (R, H, n, d)."""
        key, value = self.all_keys_values(attn)
        return selected(key, self.index, self.gate), selected(value, self.index, self.gate)

    def all_keys_values(self, attn: Attention) -> KeyValue:
        """Keys and values of all tokens in this layer, ungated, each (R, H, S, d)."""
        pair = None if self.cache is None else self.cache.get(attn)
        if pair is None:
            key, value = self._layers(attn)
            stored = key.weight.dtype  # weights of 8 bits are cast while their layer runs (layerwise casting)
            embeds = self.embeds.to(stored) if stored.itemsize > 1 else self.embeds
            pair = _split(attn, key(embeds)), _split(attn, value(embeds))
            if self.cache is not None:
                self.cache[attn] = pair
        return pair

    def _layers(self, attn: Attention) -> tuple[nn.Linear, nn.Linear]:
        if self.projections is None:
            return attn.to_k_vision, attn.to_v_vision
        own = self.projections[attn]
        return own[PROJECTIONS[0]], own[PROJECTIONS[1]]

    def mask_at(self, grid: tuple[int, int]) -> Tensor | None:
        """The mask on a layer's grid, flattened row-major: (R, N, 1)."""
        if self.mask is None:
            return None
        if grid not in self._masks:
            self._masks[grid] = resize_mask(self.mask, grid, self.mask_resize).flatten(2).mT
        return self._masks[grid]


class Acting(Protocol):
    """What an attention layer needs of a subject, or of several in neighbouring rows (`company.py`)."""

    @property
    def rows(self) -> slice:
        """The UNet call's rows in which it acts."""
        ...

    @property
    def scale(self) -> float:
        """Weight of the visual term."""
        ...

    @property
    def mask(self) -> Tensor | None:
        """(R, 1, H*, W*) in [0, 1]; None = 1 everywhere."""
        ...

    def keys_values(self, attn: Attention) -> KeyValue:
        """Keys and values of the selected tokens in this layer, each (R, H, n, d)."""
        ...

    def mask_at(self, grid: tuple[int, int]) -> Tensor | None:
        """The mask on a layer's grid, flattened row-major: (R, N, 1)."""
        ...


def selected(tokens: Tensor, index: Tensor | None, gate: Tensor | None) -> Tensor:
    """Of keys or values (R, H, S, d) those at `index` (R, n), times their gate (R, n): (R, H, n, d). None = all."""
    if index is None or gate is None:
        return tokens
    at = index[:, None, :, None].expand(-1, tokens.shape[1], -1, tokens.shape[3])
    return (tokens.gather(2, at) * gate[:, None, :, None]).to(tokens.dtype)  # fp32: 1.004 is 1.0 in bf16


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """The arguments that one UNet call passes to its attention layers."""

    grids: Mapping[int, tuple[int, int]]  # number of queries -> (h, w) of that level, see `by_queries`
    subjects: Sequence[Acting] = ()
    recorders: Sequence[MapRecorder] = ()

    def grid(self, queries: int) -> tuple[int, int]:
        """(h, w) of a layer with this many queries. Raises UsageError if the latent has no level of this size."""
        if queries not in self.grids:
            raise UsageError(
                f"a cross-attention layer has {queries} queries, where the latent's levels have {sorted(self.grids)}: a patch "
                "of the UNet merges or drops tokens (as tomesd does with merge_crossattn=True); take it off"
            )
        return self.grids[queries]


def resize_mask(mask: Tensor, grid: tuple[int, int], how: MaskResize) -> Tensor:
    """A mask (R, 1, H, W) at a layer's exact size (R, 1, h, w); at its own size it is unchanged."""
    if tuple(mask.shape[-2:]) == tuple(grid):
        return mask
    if how is MaskResize.AREA:
        return F.interpolate(mask, size=grid, mode="area")
    return F.interpolate(mask, size=grid, mode="bilinear", align_corners=False)


class DecoupledAttentionProcessor:
    """diffusers' scaled-dot-product attention, plus, in cross-attention, the masked visual term and the recorder.

    The layer's own output uses the same kernels as stock diffusers, so that without a subject it is bitwise equal.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # (B, N, C)
        encoder_hidden_states: Tensor | None = None,  # (B, T, D_text); None in self-attention
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,  # unused; diffusers passes it
        conditioning: Conditioning | None = None,
    ) -> Tensor:
        residual = hidden_states
        batch = len(hidden_states)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if attention_mask is not None:
            prepared = attn.prepare_attention_mask(attention_mask, context.shape[1], batch)
            attention_mask = prepared.view(batch, attn.heads, -1, prepared.shape[-1])
        query = _split(attn, attn.to_q(hidden_states))  # (B, H, N, d)
        key, value = _split(attn, attn.to_k(context)), _split(attn, attn.to_v(context))
        output = _attend(attn, query, key, value, attention_mask, conditioning, is_self=encoder_hidden_states is None)
        output = output.transpose(1, 2).flatten(2).to(query.dtype)  # (B, N, H*d)
        if conditioning is not None and encoder_hidden_states is not None:
            output = _add_subjects(attn, output, query, conditioning)
        projected: Tensor = attn.to_out[1](attn.to_out[0](output))
        if attn.residual_connection:
            projected = projected + residual
        if attn.rescale_output_factor != 1:
            projected = projected / attn.rescale_output_factor
        return projected

    # diffusers asks for the signature at each call; to derive it takes four times as long as to find it here.
    __call__.__signature__ = inspect.signature(__call__)  # type: ignore[attr-defined]


def _split(attn: Attention, tokens: Tensor) -> Tensor:
    """(B, n, H*d) -> (B, H, n, d)."""
    rows, count, width = tokens.shape
    return tokens.view(rows, count, attn.heads, width // attn.heads).transpose(1, 2)


def _attend(
    attn: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    conditioning: Conditioning | None,
    *,
    is_self: bool,
) -> Tensor:
    """Attention (B, H, N, d), bitwise that of stock diffusers; the recorder, if there is one, takes its map."""
    count = query.shape[2]
    recorders = () if conditioning is None else conditioning.recorders
    taking = [recorder for recorder in recorders if recorder.takes(attn, count, is_self=is_self)]
    if not taking:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
    assert conditioning is not None
    normaliser = None  # maps are over all text tokens, those that an attention mask hides too
    if is_self or attention_mask is not None:
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
    else:
        output, normaliser = attention_with_normaliser(query, key, value)
    for recorder in taking:
        if is_self:
            recorder.record_self(query, key)
        else:
            recorder.record(attn, query, key, conditioning.grid(count), normaliser)
    return output


def _add_subjects(attn: Attention, output: Tensor, query: Tensor, conditioning: Conditioning) -> Tensor:
    """`output` (B, N, H*d) with each subject's visual attention added in the rows in which it acts."""
    if not conditioning.subjects:
        return output
    if output.requires_grad:
        output = output.clone()  # not in place: autograd needs the attention's output
    for subject in conditioning.subjects:
        key, value = subject.keys_values(attn)
        visual = F.scaled_dot_product_attention(query[subject.rows], key, value)  # (R, H, N, d)
        visual = visual.transpose(1, 2).flatten(2)  # (R, N, H*d)
        rows = output[subject.rows]  # (R, N, H*d), a view
        mask = None if subject.mask is None else subject.mask_at(conditioning.grid(query.shape[2]))  # (R, N, 1)
        if mask is None:
            rows.add_(visual, alpha=subject.scale)
        else:
            rows.addcmul_(visual, mask.to(visual.dtype), value=subject.scale)
    return output


def install(unet: UNet2DConditionModel) -> None:
    """Set the processor on every attention layer of the UNet."""
    unet.set_attn_processor(DecoupledAttentionProcessor())


def is_installed(unet: UNet2DConditionModel) -> bool:
    """Whether the UNet's attention layers have this module's processor."""
    return all(isinstance(processor, DecoupledAttentionProcessor) for processor in unet.attn_processors.values())


def holds_adapter(unet: UNet2DConditionModel) -> bool:
    """Whether the UNet's layers hold an adapter's visual projections."""
    return any(hasattr(attn, PROJECTIONS[0]) for attn in text_cross_attentions(unet).values())


def check_unused(unet: UNet2DConditionModel) -> None:
    """Raise UsageError if the UNet holds another pipeline's adapter, which a second one would replace."""
    if holds_adapter(unet):
        raise UsageError(
            "the base's UNet holds the adapter of another RealCustomPipeline: add this one beside it with "
            "pipe.with_adapter(adapter), or load the base again"
        )


def check_unpatched(unet: UNet2DConditionModel, *, has_adapter: bool) -> None:
    """Raise UsageError if a forward of the UNet's parts was replaced, or, with an adapter, its attention processors."""
    if _is_plain(unet, has_adapter=has_adapter):
        return
    other = {type(p).__name__ for p in unet.attn_processors.values() if not isinstance(p, DecoupledAttentionProcessor)}
    if has_adapter and other:
        raise UsageError(
            f"the UNet's attention processors were replaced by {', '.join(sorted(other))}, in which no subject can act: "
            "leave out attention slicing, xformers, fused projections and IP-Adapters, or load the pipeline again"
        )
    for path, module in unet.named_modules():
        who = _patched_by(module) if path else None  # the UNet's own forward may be compiled
        if who is not None:
            raise UsageError(
                f"{who} replaced the forward of the UNet's {path}: a step would then run without some of its layers, and with "
                "the features of another branch; take it off (DeepCache: helper.disable())"
            )


def _is_plain(unet: UNet2DConditionModel, *, has_adapter: bool) -> bool:
    """Whether nothing that counts was replaced or hooked; a walk as short as can be, since it comes before each call."""
    left = list(unet._modules.values())
    while left:
        module = left.pop()
        if module is None:
            continue
        own, parts = vars(module), module._modules
        if "forward" in own or "_diffusers_hook" in own:
            return False
        processors = [where["processor"] for where in (own, parts) if has_adapter and "processor" in where]
        if not all(isinstance(one, DecoupledAttentionProcessor) for one in processors):
            return False
        left.extend(parts.values())
    return True


def _patched_by(module: nn.Module) -> str | None:
    """What replaced this module's forward, if it is not an offload or a cast of diffusers or accelerate."""
    registry = getattr(module, "_diffusers_hook", None)
    if registry is not None:
        caches = [name for name in registry.hooks if not name.startswith(MOVES)]
        return f"diffusers' hook {caches[0]}" if caches else None
    forward = vars(module).get("forward")
    own = getattr(forward, "__func__", None) is type(module).forward  # a patch that was taken off leaves it here
    if forward is None or own or hasattr(module, "_hf_hook"):  # accelerate's offload
        return None
    return str(getattr(forward, "__module__", None) or type(forward).__name__)


def add_visual_projections(
    unet: UNet2DConditionModel,
    image_embed_dim: int,
    settings: AttentionSettings,
    generator: torch.Generator | None = None,
) -> None:
    """Give every text cross-attention its bias-free `to_k_vision` and `to_v_vision` (image_embed_dim -> its inner width)."""
    for attn, layers in visual_projections(unet, image_embed_dim, settings, generator).items():
        for name, layer in layers.items():
            attn.add_module(name, layer)


def visual_projections(
    unet: UNet2DConditionModel,
    image_embed_dim: int,
    settings: AttentionSettings,
    generator: torch.Generator | None = None,
) -> dict[Attention, dict[str, nn.Linear]]:
    """New projections for every text cross-attention, which is left as it is."""
    made: dict[Attention, dict[str, nn.Linear]] = {}
    for attn in text_cross_attentions(unet).values():
        layers = made[attn] = {}
        for name, own in zip(PROJECTIONS, (attn.to_k, attn.to_v), strict=True):
            layer = nn.Linear(image_embed_dim, own.weight.shape[0], bias=False)
            _initialise(layer.weight, own.weight, settings.kv_init, own is attn.to_v, generator)
            layers[name] = layer.to(own.weight.device, own.weight.dtype)
    return made


@torch.no_grad()
def _initialise(weight: Tensor, own: Tensor, init: KVInit, is_value: bool, generator: torch.Generator | None) -> None:
    if init is KVInit.ZERO_V and is_value:
        weight.zero_()
    elif init is KVInit.NORMAL:
        weight.normal_(std=0.02, generator=generator)
    elif init is KVInit.COPY_TEXT and own.shape == weight.shape:
        weight.copy_(own)
    else:
        nn.init.kaiming_uniform_(weight, a=5**0.5, generator=generator)  # nn.Linear's default
