"""Settings of the method: an adapter's structure and its use. Imports neither torch nor ray.

A key has the same name in `RealCustomPipeline.__call__` if it can be given there; an argument of None means the value
of these settings. [P] is stated in the paper (arXiv 2403.00483), [D] is our decision where the paper is silent.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from realcustom.errors import UsageError

RELEASED_SOLVER = "dpmpp_released"  # a scheduler's name, as `ddim`


class Variant(enum.Enum):
    """Which method."""

    REALCUSTOM = "realcustom"  # CVPR 2024: CLIP's patch tokens, adaptive scoring module
    REALCUSTOM_PP = "realcustom_pp"  # RealCustom++: two encoders at two scales, and a projector to the text's width


class PooledText(enum.Enum):
    """SDXL's pooled text."""

    PROJECTED = "projected"  # the second text encoder's `text_embeds`, as SDXL was trained
    UNPROJECTED_COMPAT = "unprojected_compat"  # its `pooler_output`, as in the released RealCustom++ code


class TimeIdsOrder(enum.Enum):
    """The order of a picture's sides in SDXL's size conditioning."""

    HW = "hw"  # height first, as SDXL was trained
    WH_COMPAT = "wh_compat"  # width first, as in the released RealCustom++ code; wrong for pictures that are not square


class EncoderKind(enum.Enum):
    """Which frozen encoder encodes the reference."""

    CLIP = "clip"  # patch tokens of a CLIP vision model [P]
    SIGLIP_DINO = "siglip_dino"  # SigLIP and DINOv2 concatenated, at two scales (RealCustom++)


class SiglipGelu(enum.Enum):
    """The activation in SigLIP's blocks."""

    MODEL = "model"  # as its configuration says; in the hub's models the approximation by tanh
    EXACT = "exact"  # by the error function, as in the encoder that the released weights were trained with


class Reference(enum.Enum):
    """The image encoder's input from a subject's picture."""

    IMAGE = "image"  # the whole picture [P]
    CROP = "crop"  # the subject cut out on white


class Fit(enum.Enum):
    """How a picture that is not square becomes one."""

    PAD = "pad"  # white borders
    CROP = "crop"  # the centre square
    STRETCH = "stretch"


class Fusion(enum.Enum):
    """How the textual and the visual score are combined (paper, eq. 8 and table 3)."""

    TIMESTEP = "timestep"  # (1 - sqrt(alphas_cumprod)) text + sqrt(alphas_cumprod) visual [P]
    TEXT = "text"
    VISUAL = "visual"
    MEAN = "mean"


class Activation(enum.Enum):
    """Activation between the two layers of a scoring network; linear layers would cancel in the softmax."""

    SILU = "silu"
    GELU = "gelu"
    RELU = "relu"


class VisualContext(enum.Enum):
    """The visual score's input from the noised latent."""

    LATENT = "latent"  # the latent itself
    CONV_IN = "conv_in"  # the features of the UNet's first convolution


class Projector(enum.Enum):
    """How the encoder's features become subject tokens (RealCustom++)."""

    NONE = "none"  # the features are the tokens [P]
    HIGHRES = "highres"  # global view, with detail added from the local views; the default released weights
    SHALLOW_FIG = "shallow_fig"  # as in the figure: structure tokens from shallow layers appended
    SHALLOW_V1_COMPAT = "shallow_v1_compat"  # as released: the detail branch has no effect


class TextMask(enum.Enum):
    """The effect of the target word's mask on the text features in the scoring module."""

    MULTIPLY = "multiply"  # features of other tokens become zero [P, figure 3]
    EXCLUDE = "exclude"  # other tokens take no part in the average
    NONE = "none"


class KVInit(enum.Enum):
    """Start of the visual key and value projections."""

    COPY_TEXT = "copy_text"  # the layer's own, where the widths agree; else kaiming
    KAIMING = "kaiming"
    NORMAL = "normal"  # standard deviation 0.02
    ZERO_V = "zero_v"  # values start at zero: step 0 is the base model


class WordMatching(enum.Enum):
    """How the target word's tokens are found."""

    WHOLE_WORDS = "whole_words"  # by characters, case ignored
    RELEASE_COMPAT = "release_compat"  # substrings, case-sensitive, as in the released code, including its defects


class Occurrence(enum.Enum):
    """Which occurrences of the target word count."""

    ALL = "all"
    FIRST = "first"
    LAST = "last"


class MaskNorm(enum.Enum):
    """How the map is normalised."""

    MAX = "max"  # divided by the largest value [P, eq. 11]
    MINMAX = "minmax"  # the smallest value to 0, the largest to 1, then the selection
    MINMAX_PER_LAYER = "minmax_per_layer"  # each layer's map first, then their mean again; the released default
    NONE = "none"  # the raw map


class MaskSelect(enum.Enum):
    """Which cells of the map are kept."""

    TOPK = "topk"  # the influence_scope * N largest [P]
    THRESHOLD = "threshold"  # those with a value of at least 1 - influence_scope; needs a normalised map


class MaskSource(enum.Enum):
    """Which forward the maps of a step's mask come from."""

    GUIDANCE = "guidance"  # a guidance pass of the same step, before the others [P]
    PREVIOUS = "previous"  # the step before: its guidance branch, or where none runs its generation branch; ours


class MaskLayers(enum.Enum):
    """Which cross-attention layers' maps make the mask."""

    ALL = "all"
    UP = "up"  # those of the decoder


class Overlap(enum.Enum):
    """The rule where the masks of several subjects overlap."""

    SUM = "sum"  # both act
    ARGMAX = "argmax"  # only the one with the larger value


class MaskResize(enum.Enum):
    """How the mask is resized to a layer's grid."""

    BILINEAR = "bilinear"  # align_corners=False, no antialias
    AREA = "area"

    @classmethod
    def _missing_(cls, value: object) -> MaskResize | None:
        """`release_compat` of older settings and checkpoints: bilinear with the heights' ratio for both sides.

        It failed on sizes whose widths have another ratio; for sides that are multiples of 32 it was `bilinear`.
        """
        return cls.BILINEAR if value == "release_compat" else None


class GuidanceMode(enum.Enum):
    """How the branches combine."""

    CASCADE = "cascade"  # e0 + w_t (eT - e0) + w_i (eTI - eT)   [P, eq. 13]
    DIRECT = "direct"  # e0 + w_i (eTI - e0)


class Uncond(enum.Enum):
    """The input of the unconditional branch."""

    NULL_TEXT_NO_IMAGE = "null_text_no_image"  # the empty or negative prompt [P]
    NEGATIVE_TEXT_BLACK_IMAGE_MASKED = "negative_text_black_image_masked"  # and a black reference under the same mask


class Never(enum.Enum):
    """A number of steps that is never reached."""

    NEVER = "never"


class Launches(enum.Enum):
    """How forwards are grouped."""

    BATCHED = "batched"  # the guidance pass, then all other branches in one batch
    SEPARATE = "separate"  # each branch alone: the mode in which bitwise guarantees about whole steps hold


class TimestepSpacing(enum.Enum):
    """Which timesteps a schedule picks; the names are diffusers'."""

    BASE = "base"  # as the base model's own scheduler
    LEADING = "leading"
    LINSPACE = "linspace"
    TRAILING = "trailing"


@dataclass(frozen=True, kw_only=True)
class BaseSettings:
    """How the base model is conditioned. Its family and what it predicts are read from the model itself."""

    sdxl_pooled: PooledText = PooledText.PROJECTED  # the pooled text that SDXL is given; no effect on other bases
    # the sides' order in SDXL's size conditioning; no effect on other bases
    time_ids_order: TimeIdsOrder = TimeIdsOrder.HW


@dataclass(frozen=True, kw_only=True)
class ImageEncoderSettings:
    """The frozen image encoder and its input. Its picture size is read from the model."""

    kind: EncoderKind = EncoderKind.CLIP
    # hub id (`id@revision`) or folder of a CLIP vision model [D]; for siglip_dino two, "SIGLIP,DINOV2"
    model: str = "openai/clip-vit-large-patch14"
    layers: tuple[int, ...] = (-2,)  # hidden states used as tokens, the deepest last; -2 = the last but one
    dino_layers: tuple[int, ...] = (-2,)  # the same for DINOv2 (siglip_dino)
    high_res: int = 768  # side in pixels of the picture whose parts are the local views (siglip_dino)
    siglip_gelu: SiglipGelu = SiglipGelu.MODEL  # (siglip_dino)
    drop_prefix: bool = True  # leave class and register tokens out
    reference: Reference = Reference.IMAGE
    fit: Fit = Fit.PAD

    def of_features(self) -> dict[str, str]:
        """All settings that decide cached features besides the model, as in a table's metadata."""
        details = {
            "kind": self.kind.value,
            "reference": self.reference.value,
            "fit": self.fit.value,
            "layers": str(list(self.layers)),
            "drop_prefix": str(self.drop_prefix),
        }
        if self.siglip_gelu is SiglipGelu.EXACT:
            # in the kind, which tables made before this setting have too: theirs are features of the model's activation
            details["kind"] += " with exact GELU"
        if self.kind is EncoderKind.SIGLIP_DINO:
            details |= {"dino_layers": str(list(self.dino_layers)), "high_res": str(self.high_res)}
        return details

    def __post_init__(self) -> None:
        if not self.layers or not self.dino_layers:
            raise UsageError("layers and dino_layers name at least one hidden state each")
        if self.kind is EncoderKind.CLIP and len(self.layers) > 1:
            raise UsageError(f"kind clip takes the tokens of one hidden state, layers names {list(self.layers)}")
        if self.kind is EncoderKind.SIGLIP_DINO and len(self.layers) != len(self.dino_layers):
            raise UsageError(
                f"layers {list(self.layers)} and dino_layers {list(self.dino_layers)} must be equally many: their "
                "features are set side by side"
            )
        if self.kind is EncoderKind.SIGLIP_DINO and not self.drop_prefix:
            raise UsageError("kind siglip_dino sets patch tokens side by side: drop_prefix must be true")


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """From image features to the tokens that act: projector, then the adaptive scoring module (section 3.2, eq. 5-10)."""

    scoring: bool = True  # off: all tokens, ungated
    fusion: Fusion = Fusion.TIMESTEP
    hidden: int = 512  # width of the two scoring MLPs [D]
    act: Activation = Activation.SILU  # between the two layers of a scoring network [D]
    visual_context: VisualContext = VisualContext.LATENT  # the visual score's input from the noised latent [D]
    gamma_num_train: tuple[float, float] = (0.3, 1.0)  # range of the ratio of tokens kept while training [P]
    influence_quantity: float = 0.8  # ratio of tokens kept at inference, gamma_num [P]
    text_mask_mode: TextMask = TextMask.MULTIPLY
    mask_latent: bool = True  # the influence mask multiplies the latent in the scoring module's input [P]
    projector: Projector = Projector.NONE

    def __post_init__(self) -> None:
        low, high = self.gamma_num_train
        if not 0 <= low <= high <= 1:
            raise UsageError(f"gamma_num_train must be two ratios low <= high within 0..1, got {self.gamma_num_train}")
        _ratio("influence_quantity", self.influence_quantity)
        if self.hidden < 1:
            raise UsageError(f"hidden must be at least 1, got {self.hidden}")


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """The visual cross-attention."""

    kv_init: KVInit = KVInit.COPY_TEXT
    scale: float = 1.0  # of the visual term


@dataclass(frozen=True, kw_only=True)
class WordSettings:
    """How the target word is found in the prompt."""

    RENAMED_VALUES: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "match": {"ids": "whole_words", "offsets": "whole_words"}
    }

    match: WordMatching = WordMatching.WHOLE_WORDS
    occurrence: Occurrence | int = Occurrence.ALL  # or the number of an occurrence, from 0
    plural: bool = False  # if the word is not found, try word + 's' and word + 'es'


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """Adaptive mask guidance (section 3.3, eq. 11)."""

    influence_scope: float = 0.25  # ratio of pixels kept, gamma_scope; robust within 0.2 to 0.4 [P]
    source: MaskSource = MaskSource.GUIDANCE
    norm: MaskNorm = MaskNorm.MAX
    binary: bool = False  # kept cells become 1
    select: MaskSelect = MaskSelect.TOPK
    layers: MaskLayers | tuple[int, ...] = MaskLayers.ALL  # or the longer sides of the grids whose maps count
    self_refine: bool = False  # spread the map along the self-attention of the largest grid (RealCustom++)
    eps: float = 0.0  # added to a norm's divisor; 1e-6 in the released code
    mask_resize: MaskResize = MaskResize.BILINEAR
    overlap: Overlap = Overlap.SUM
    mask_reuse_after: Never | int = Never.NEVER  # steps with a new mask; then the last one is reused

    def __post_init__(self) -> None:
        _ratio("influence_scope", self.influence_scope)
        steps = self.mask_reuse_after
        if not isinstance(steps, Never) and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 0):
            raise UsageError(f"mask_reuse_after is 'never' or a number of steps from 0, got {steps!r}")
        if self.select is MaskSelect.THRESHOLD and self.norm is MaskNorm.NONE:
            raise UsageError("select threshold compares with 1 - influence_scope and needs a norm, got norm none")
        if isinstance(self.layers, tuple) and (not self.layers or min(self.layers) < 1):
            raise UsageError(f"layers is all, up or a list of grid sides from 1, got {list(self.layers)}")
        if not 0 <= self.eps < 1:
            raise UsageError(f"eps is added to a divisor of at most 1: from 0 to below 1, got {self.eps}")


@dataclass(frozen=True, kw_only=True)
class GuidanceSettings:
    """Classifier-free guidance with three terms (eq. 13)."""

    RENAMED_VALUES: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "mode": {"direct_rescale": "direct", "cascade_rescale": "cascade"}  # guidance_rescale acts in both
    }

    mode: GuidanceMode = GuidanceMode.CASCADE
    launches: Launches = Launches.BATCHED
    guidance_scale: float = 7.5  # w_t
    subject_guidance_scale: float = 12.5  # w_i; in mode direct the only weight
    # phi, from 0 (nothing) to 1: the share by which the result is scaled to the standard deviation of the generation branch
    guidance_rescale: float = 0.0
    rescale_by_mask: bool = False  # outside of the masks to the deviation of the guidance branch
    uncond: Uncond = Uncond.NULL_TEXT_NO_IMAGE

    @staticmethod
    def of_older(data: Mapping[str, Any]) -> dict[str, Any]:
        """Plain data of these settings from when the mode said whether, and how, `guidance_rescale` acts."""
        kept, mode = dict(data), data.get("mode")
        if "rescale_by_mask" in kept:
            return kept
        if mode == "cascade_rescale_masked":
            kept |= {"mode": "cascade", "rescale_by_mask": True}
        elif mode in ("cascade", "direct"):
            kept["guidance_rescale"] = 0.0
        return kept

    def __post_init__(self) -> None:
        _ratio("guidance_rescale", self.guidance_rescale)


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """The sampling schedule."""

    # `ddim`, `dpmpp_single`, `dpmpp_released` (the released code's solver with its own timesteps), a diffusers class
    # (built from the base's own configuration), or `base`: the base's own
    scheduler: str = "ddim"
    num_inference_steps: int = 50  # denoising steps, at least 1; quality and time grow with it
    timestep_spacing: TimestepSpacing = TimestepSpacing.BASE

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise UsageError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}")


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """All settings of the method in an adapter checkpoint. The defaults are the paper's on SD 1.x."""

    variant: Variant = Variant.REALCUSTOM
    base: BaseSettings = field(default_factory=BaseSettings)
    image_encoder: ImageEncoderSettings = field(default_factory=ImageEncoderSettings)
    tokens: TokenSettings = field(default_factory=TokenSettings)
    attn: AttentionSettings = field(default_factory=AttentionSettings)
    words: WordSettings = field(default_factory=WordSettings)
    mask: MaskSettings = field(default_factory=MaskSettings)
    guidance: GuidanceSettings = field(default_factory=GuidanceSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)

    def __post_init__(self) -> None:
        pp = self.variant is Variant.REALCUSTOM_PP
        if pp != (self.tokens.projector is not Projector.NONE):
            raise UsageError(
                f"variant {self.variant.value} with tokens.projector {self.tokens.projector.value}: realcustom has none, "
                "realcustom_pp needs one of highres, shallow_fig, shallow_v1_compat"
            )
        if pp != (self.image_encoder.kind is EncoderKind.SIGLIP_DINO):
            raise UsageError(
                f"variant {self.variant.value} with image_encoder.kind {self.image_encoder.kind.value}: realcustom takes "
                "clip, realcustom_pp siglip_dino"
            )
        deep_only = self.tokens.projector is Projector.HIGHRES
        if pp and deep_only != (len(self.image_encoder.layers) == 1):
            raise UsageError(
                f"tokens.projector {self.tokens.projector.value} with {len(self.image_encoder.layers)} image_encoder.layers: "
                "highres takes the deepest alone, the shallow ones need others before it"
            )


def without_effect(settings: MethodSettings) -> list[str]:
    """Changed settings that have no effect with the others, each as a sentence."""
    tokens, mask, encoder = settings.tokens, settings.mask, settings.image_encoder
    idle: list[str] = []
    names: tuple[str, ...]
    if settings.guidance.rescale_by_mask and not settings.guidance.guidance_rescale:
        idle.append("guidance.rescale_by_mask does nothing with guidance.guidance_rescale 0")
    if not tokens.scoring:
        names = ("fusion", "visual_context", "influence_quantity", "text_mask_mode", "mask_latent")
        idle += [
            f"tokens.{name} does nothing with tokens.scoring off: all tokens act" for name in _changed(tokens, names)
        ]
    elif tokens.fusion is Fusion.TEXT:
        names = ("visual_context", "mask_latent")
        idle += [f"tokens.{name} does nothing with tokens.fusion text" for name in _changed(tokens, names)]
    elif tokens.fusion is Fusion.VISUAL:
        idle += [
            f"tokens.{name} does nothing with tokens.fusion visual" for name in _changed(tokens, ("text_mask_mode",))
        ]
    if mask.norm is MaskNorm.NONE:
        idle += [f"mask.{name} does nothing with mask.norm none" for name in _changed(mask, ("eps",))]
        if mask.binary:
            idle.append("mask.norm none does nothing with mask.binary: kept cells are 1")
    if settings.sampler.scheduler == RELEASED_SOLVER and settings.sampler.timestep_spacing is not TimestepSpacing.BASE:
        idle.append(f"sampler.timestep_spacing does nothing with sampler.scheduler {RELEASED_SOLVER}: it has its own")
    if encoder.kind is EncoderKind.CLIP:
        idle += [
            f"image_encoder.{name} does nothing with image_encoder.kind clip"
            for name in _changed(encoder, ("dino_layers", "high_res", "siglip_gelu"))
        ]
    return idle


def _changed(section: Any, names: tuple[str, ...]) -> list[str]:
    """The fields that differ from their default."""
    return [name for name in names if getattr(section, name) != getattr(type(section)(), name)]


def _ratio(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UsageError(f"{name} is a ratio from 0 to 1, got {value}")
