"""Settings of the method: what an adapter is and how it acts. Imports neither torch nor ray.

Every key is that of `RealCustomPipeline.__call__` where it can be given there; an argument of None means "as these
settings say". [P] is stated in the paper (arXiv 2403.00483), [D] is our decision where the paper is silent.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Variant(enum.Enum):
    """Which method."""

    REALCUSTOM = "realcustom"  # CVPR 2024: image tokens, adaptive scoring module


class Reference(enum.Enum):
    """What the image encoder sees of a subject's picture."""

    IMAGE = "image"  # the whole picture [P]
    CROP = "crop"  # the subject cut out on white


class Fit(enum.Enum):
    """How a picture that is not square becomes one."""

    PAD = "pad"  # white borders
    CROP = "crop"  # the centre square
    STRETCH = "stretch"


class Fusion(enum.Enum):
    """How the textual and the visual score become one (paper, eq. 8 and table 3)."""

    TIMESTEP = "timestep"  # (1 - sqrt(alphas_cumprod)) text + sqrt(alphas_cumprod) visual [P]
    TEXT = "text"
    VISUAL = "visual"
    MEAN = "mean"


class TextMask(enum.Enum):
    """What the target word's mask does to the text features on their way into the scoring module."""

    MULTIPLY = "multiply"  # features of other tokens become zero [P, figure 3]
    EXCLUDE = "exclude"  # other tokens take no part in the average
    NONE = "none"


class KVInit(enum.Enum):
    """Start of the visual key and value projections."""

    COPY_TEXT = "copy_text"  # the layer's own, where the widths agree; else kaiming
    KAIMING = "kaiming"
    NORMAL = "normal"  # standard deviation 0.02
    ZERO_V = "zero_v"  # values start at zero: step 0 is the base model


class Occurrence(enum.Enum):
    """Which occurrences of the target word count."""

    ALL = "all"
    FIRST = "first"
    LAST = "last"


class MaskNorm(enum.Enum):
    """How the map becomes a mask."""

    MAX = "max"  # top-k, then divided by the largest value [P, eq. 11]
    NONE = "none"  # top-k of the raw map


class Overlap(enum.Enum):
    """What happens where the masks of several subjects overlap."""

    SUM = "sum"  # both act
    ARGMAX = "argmax"  # the larger one alone


class MaskResize(enum.Enum):
    """How the mask comes to a layer's grid."""

    BILINEAR = "bilinear"  # align_corners=False, no antialias
    AREA = "area"


class GuidanceMode(enum.Enum):
    """How the branches combine."""

    CASCADE = "cascade"  # e0 + w_t (eT - e0) + w_i (eTI - eT)   [P, eq. 13]
    DIRECT = "direct"  # e0 + w_i (eTI - e0)


class Launches(enum.Enum):
    """How forwards are grouped."""

    BATCHED = "batched"  # the guidance pass, then all other branches in one batch
    SEPARATE = "separate"  # each branch alone: the mode in which bitwise statements about whole steps hold


class TimestepSpacing(enum.Enum):
    """Which timesteps a schedule picks; the names are diffusers'."""

    LEADING = "leading"
    LINSPACE = "linspace"
    TRAILING = "trailing"


@dataclass(frozen=True, kw_only=True)
class ImageEncoderSettings:
    """The frozen image encoder and what it is shown."""

    model: str = "openai/clip-vit-large-patch14"  # hub id (`id@revision`) or folder of a CLIP vision model [D]
    layer: int = -2  # hidden state that gives the tokens; -2 = the last but one
    drop_prefix: bool = True  # leave the class token out
    reference: Reference = Reference.IMAGE
    fit: Fit = Fit.PAD


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """The adaptive scoring module (section 3.2, eq. 5-10)."""

    scoring: bool = True  # off: all tokens, ungated
    fusion: Fusion = Fusion.TIMESTEP
    hidden: int = 512  # width of the two scoring MLPs [D]
    gamma_num_train: tuple[float, float] = (0.3, 1.0)  # range of the ratio of tokens kept while training [P]
    influence_quantity: float = 0.8  # ratio of tokens kept at inference, gamma_num [P]
    text_mask_mode: TextMask = TextMask.MULTIPLY
    mask_latent: bool = True  # the influence mask multiplies the latent on its way into the scoring module [P]

    def __post_init__(self) -> None:
        low, high = self.gamma_num_train
        if not 0 <= low <= high <= 1:
            raise ValueError(f"gamma_num_train must be two ratios low <= high within 0..1, got {self.gamma_num_train}")
        _ratio("influence_quantity", self.influence_quantity)
        if self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {self.hidden}")


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """The visual cross-attention."""

    kv_init: KVInit = KVInit.COPY_TEXT
    scale: float = 1.0  # of the visual term


@dataclass(frozen=True, kw_only=True)
class WordSettings:
    """How the target word is found in the prompt."""

    occurrence: Occurrence | int = Occurrence.ALL  # or the number of one, counted from 0
    plural: bool = False  # where the word is not there, try word + 's' and word + 'es'


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """Adaptive mask guidance (section 3.3, eq. 11)."""

    influence_scope: float = 0.25  # ratio of pixels kept, gamma_scope; robust within 0.2 to 0.4 [P]
    norm: MaskNorm = MaskNorm.MAX
    binary: bool = False  # kept pixels become 1
    mask_resize: MaskResize = MaskResize.BILINEAR
    overlap: Overlap = Overlap.SUM
    mask_reuse_after: int | None = None  # steps with a fresh mask, then the last one stays; none = every step

    def __post_init__(self) -> None:
        _ratio("influence_scope", self.influence_scope)
        if self.mask_reuse_after is not None and self.mask_reuse_after < 0:
            raise ValueError(f"mask_reuse_after must be 0 or more, or none, got {self.mask_reuse_after}")


@dataclass(frozen=True, kw_only=True)
class GuidanceSettings:
    """Classifier-free guidance with three terms (eq. 13)."""

    mode: GuidanceMode = GuidanceMode.CASCADE
    launches: Launches = Launches.BATCHED
    guidance_scale: float = 7.5  # w_t
    subject_guidance_scale: float = 12.5  # w_i; in direct mode the only weight


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """The sampling schedule."""

    scheduler: str | None = (
        "DDIMScheduler"  # a diffusers class, built from the base's configuration; none = the base's own
    )
    num_inference_steps: int = 50
    timestep_spacing: TimestepSpacing | None = None  # none = as the base's configuration says

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}")


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """All that an adapter checkpoint says of its method. The defaults are the paper's on SD 1.x."""

    variant: Variant = Variant.REALCUSTOM
    image_encoder: ImageEncoderSettings = field(default_factory=ImageEncoderSettings)
    tokens: TokenSettings = field(default_factory=TokenSettings)
    attn: AttentionSettings = field(default_factory=AttentionSettings)
    words: WordSettings = field(default_factory=WordSettings)
    mask: MaskSettings = field(default_factory=MaskSettings)
    guidance: GuidanceSettings = field(default_factory=GuidanceSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)


def _ratio(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a ratio from 0 to 1, got {value}")
