"""The frozen models that compute a record's features where its caches are empty, and the check that they made the caches."""

from __future__ import annotations

import functools
import io

import pyarrow as pa
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from realcustom.base import Base, encode_pixels, encode_prompts
from realcustom.base_loading import load_base
from realcustom.cells import decode_mask
from realcustom.errors import UsageError
from realcustom.identity import model_identity
from realcustom.image_encoder import ImageEncoder, count_local_views, load_image_encoder
from realcustom.pixels import subject_crop
from realcustom.reference import on_white, prepare_reference
from realcustom.settings import MethodSettings
from realcustom.training.augment import augment
from realcustom.training.features import Kind, Picture

VAE = "vae"


class FrozenEncoders:
    """Latents and text features by the base model's parts, image features by the image encoder."""

    def __init__(
        self, base: Base, image_encoder: str, method: MethodSettings, device: torch.device, source: str = ""
    ) -> None:
        """Use the base model; the image encoder is loaded when it is first needed.

        Args:
            base: the base model; its VAE and text encoders are moved when they are first needed.
            image_encoder: folder or hub id.
            device: where features are computed.
            source: folder or hub id of the base, of which the UNet is loaded: the other parts when they are first needed.
                Empty: all are loaded.
        """
        self.base, self.settings, self.device, self._source = base, method.image_encoder, device, source
        self.pooled = method.base.sdxl_pooled
        self._image_encoder = image_encoder
        self.resolution, self.latent_pixels = base.resolution, base.vae_scale_factor
        self.image_encoder_identity = model_identity(image_encoder)
        if source:
            self.give_up()

    @functools.cached_property
    def image_encoder(self) -> ImageEncoder:
        """Loaded at its first use; never if the records' caches hold its features."""
        return load_image_encoder(self._image_encoder, self.settings, self.device, torch.float32)

    @functools.cached_property
    def local_views(self) -> int:
        """Per picture, beside the global one; known without loading the image encoder."""
        return count_local_views(self._image_encoder, self.settings)

    @functools.cached_property
    def shapes(self) -> dict[Kind, tuple[int | None, ...]]:
        """Of the features that the base's UNet takes, by its configuration and the tokenizer's; None: any length."""
        config, tokenizer = self.base.unet.config, self.base.pipeline.tokenizer
        shapes: dict[Kind, tuple[int | None, ...]] = {
            Kind.LATENTS: (config.in_channels, None, None),
            Kind.TEXT: (tokenizer.model_max_length, config.cross_attention_dim),
        }
        if self.base.is_sdxl:
            sizes = 6 * config.addition_time_embed_dim  # stand beside the pooled text
            shapes[Kind.POOLED] = (config.projection_class_embeddings_input_dim - sizes,)
        return shapes

    def loaded(self) -> Base:
        """The base model with all parts on the device; never if the records' caches hold all features."""
        return self._with(VAE, *self._text)

    def give_up(self) -> None:
        """Free the image encoder, the VAE and the text encoders. What is needed after all is loaded again."""
        self.base.pipeline.register_modules(**dict.fromkeys((VAE, *self._text)))
        self.__dict__.pop("image_encoder", None)

    def _with(self, *parts: str) -> Base:
        """The base model with some of its parts on the device, loaded where they are not."""
        pipeline = self.base.pipeline
        missing = [part for part in parts if getattr(pipeline, part) is None]
        if missing:
            loaded = load_base(self._source, dtype=torch.float32, only=missing).pipeline
            pipeline.register_modules(**{part: getattr(loaded, part) for part in missing})
        for part in parts:
            getattr(pipeline, part).to(self.device)
        return self.base

    @property
    def _text(self) -> tuple[str, ...]:
        return ("text_encoder", "text_encoder_2") if self.base.is_sdxl else ("text_encoder",)

    def latents(self, picture: Picture) -> torch.Tensor:
        """(C, h, w) of the picture's part that shows the subject: its bucket, or a square of the base model's own size."""
        mask = None if picture.subject_mask is None else decode_mask(picture.subject_mask)
        size = picture.bucket or (self.resolution, self.resolution)
        pixel_values = subject_crop(on_white(decode_picture(picture.image)), mask, size)
        return encode_pixels(self._with(VAE), pixel_values[None].to(self.device))[0]

    def text_features(self, caption: str) -> torch.Tensor:
        """(T, D)."""
        return encode_prompts(self._with(*self._text), [caption], self.pooled).hidden[0]

    def pooled_text(self, caption: str) -> torch.Tensor:
        """(P,)."""
        pooled = encode_prompts(self._with(*self._text), [caption], self.pooled).pooled
        assert pooled is not None, "the base is SDXL-shaped"
        return pooled[0]

    def image_features(self, picture: Picture) -> torch.Tensor:
        """(S, Di) of the reference that `image_encoder.reference` asks for."""
        return self._encoded(self.reference(picture))

    def augmented_features(self, picture: Picture, *key: object) -> torch.Tensor:
        """(S, Di) of that reference, augmented as `key` draws it."""
        return self._encoded(augment(self.reference(picture), *key))

    def black_features(self) -> torch.Tensor:
        """(S, Di) of a black picture, what the released negative branch has for a reference."""
        return self.image_encoder.encode_black()[0]

    def _encoded(self, reference: Image.Image) -> torch.Tensor:
        return self.image_encoder.encode(self.image_encoder.prepare(reference)[None])[0]

    def reference(self, picture: Picture) -> Image.Image:
        """The square picture that is the image encoder's input."""
        mask = None if picture.subject_mask is None else decode_mask(picture.subject_mask)
        return prepare_reference(decode_picture(picture.image), mask, self.settings)


def decode_picture(data: bytes | None) -> Image.Image:
    """An upright picture from a record's bytes. Raises UsageError if they are missing or broken."""
    if data is None:
        raise UsageError("it has no cached value and no picture to compute one from")
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (UnidentifiedImageError, OSError) as error:
        raise UsageError(f"its picture does not decode: {error}") from error
    return ImageOps.exif_transpose(image)


def check_caches(schema: pa.Schema, encoders: FrozenEncoders) -> None:
    """Raise UsageError if the records' metadata name another model for a cache than this run's, or if `encode` wrote their text
    features without the pooled text that an SDXL-shaped base takes.

    Tables without this metadata pass.
    """
    base, settings = encoders.base.identity, encoders.settings
    expected = {
        Kind.LATENTS: {"model": base},
        Kind.TEXT: {"model": base},
        Kind.IMAGE: {"model": encoders.image_encoder_identity, **settings.of_features()},
        Kind.POOLED: {"model": base, "sdxl_pooled": encoders.pooled.value},
    }
    for kind, wanted in expected.items():
        if kind.value not in schema.names:
            continue
        said = schema.field(kind.value).metadata or {}
        for name, value in wanted.items():
            found = said.get(name.encode(), value.encode()).decode()
            if found != value:
                raise UsageError(
                    f"the records' {kind.value} were made with {name} {found}, this run has {value}; use that {name}, "
                    f"or run the encode stage again"
                )
    encoded = Kind.TEXT.value in schema.names and b"model" in (schema.field(Kind.TEXT.value).metadata or {})
    if encoded and encoders.base.is_sdxl and Kind.POOLED.value not in schema.names:
        raise UsageError(
            f"the records have {Kind.TEXT.value} but no {Kind.POOLED.value}, which a base of SDXL's shape is conditioned on as "
            "well; run the encode stage again"
        )
