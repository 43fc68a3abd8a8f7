"""The image encoder's input for a subject: one function for training, caches and serving."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from realcustom.arrays import Picture, to_mask, to_picture
from realcustom.colour import in_srgb
from realcustom.errors import UsageError
from realcustom.settings import EncoderKind, Fit, ImageEncoderSettings, Reference

WHITE = (255, 255, 255)
MARGIN = 0.05  # white margin around a cut-out, as a share of the subject's longer side


def prepare_reference(image: Picture, mask: Picture | None, settings: ImageEncoderSettings) -> Image.Image:
    """A subject's picture, any size and mode, as the square RGB picture that the encoder takes.

    Args:
        image: the picture, as `to_picture` takes it; EXIF orientation is applied, transparency becomes white.
        mask: where the subject is, as `to_mask` takes it, of the picture's size after EXIF orientation; non-zero =
            subject. For `reference: crop`; without a mask the alpha channel is used.
    Raises:
        UsageError: a cut-out is asked for and neither a mask nor transparency is there, or the mask is empty or of
            another size; as `to_picture` and `to_mask`.
    """
    image = ImageOps.exif_transpose(to_picture(image))
    alpha = _alpha(image)
    rgb = on_white(image)
    if settings.reference is Reference.CROP:
        rgb = cut_out(rgb, _subject_mask(mask, alpha, rgb.size))
    if settings.kind is EncoderKind.SIGLIP_DINO and settings.fit is Fit.STRETCH:
        return rgb  # the encoder's own resize stretches it
    return square(rgb, settings.fit)


def on_white(image: Image.Image) -> Image.Image:
    """sRGB, 8 bit, with transparency on white; grey, palette and CMYK pictures converted, ICC profiles applied."""
    image = in_srgb(image)
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips instead of scaling
        values = np.asarray(image, dtype=np.int64)
        return Image.fromarray((values.clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    alpha = _alpha(image)
    if alpha is None:
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, WHITE)
    canvas.paste(image.convert("RGB"), mask=alpha)
    return canvas


def cut_out(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """The subject on white, cropped to its box with a small margin. `mask`: bool (H, W), not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x0, y0, x1, y1 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    cropped = np.where(mask[..., None], np.asarray(image), np.uint8(255))[y0:y1, x0:x1]
    margin = round(MARGIN * max(cropped.shape[:2]))
    return ImageOps.expand(Image.fromarray(cropped), margin, WHITE)


def square(image: Image.Image, fit: Fit) -> Image.Image:
    """A square picture: white borders, the centre, or both sides scaled to the longer one."""
    width, height = image.size
    if width == height:
        return image
    shorter, side = min(width, height), max(width, height)
    if fit is Fit.STRETCH:
        return image.resize((side, side), Image.Resampling.BICUBIC)
    if fit is Fit.CROP:
        return ImageOps.fit(image, (shorter, shorter))
    canvas = Image.new("RGB", (side, side), WHITE)
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas


def _alpha(image: Image.Image) -> Image.Image | None:
    if image.has_transparency_data:
        return image.convert("RGBA").getchannel("A")
    return None


def _subject_mask(mask: Picture | None, alpha: Image.Image | None, size: tuple[int, int]) -> np.ndarray:
    chosen = mask if mask is not None else alpha
    if chosen is None or (mask is None and alpha is not None and np.asarray(alpha).min() == 255):
        raise UsageError(
            "this adapter takes a subject cut out on white (reference: crop): give a mask or a picture with transparency"
        )
    array = to_mask(chosen)
    if array.shape != (size[1], size[0]):
        raise UsageError(f"the mask is {array.shape[1]} x {array.shape[0]}, the picture {size[0]} x {size[1]}")
    if not array.any():
        raise UsageError("the mask is empty: it marks no pixel as the subject")
    return array
