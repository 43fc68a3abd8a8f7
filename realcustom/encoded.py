"""A subject that is encoded once: a public value for many calls, and the cache of a pipeline.

Letters: S_raw tokens of the image encoder, D their width, S and Di the same after the projector.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from realcustom.arrays import Picture
from realcustom.encoders import ImageEncoder
from realcustom.errors import UsageError
from realcustom.model import RealCustomModel
from realcustom.reference import prepare_reference
from realcustom.settings import ImageEncoderSettings

BLACK = b"black"
CACHED_BYTES = 256 * 1024 * 1024  # of projected tokens that a pipeline keeps; the least recently used are removed first


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedSubject:
    """A subject's picture as the image encoder sees it; a `Subject`'s image for any pipeline with the same encoder.

    It does not depend on the adapter's weights, on a device or on a dtype.
    """

    features: Tensor  # (S_raw, D)
    key: bytes  # of the encoder's input
    encoder: str  # the image encoder's identity
    settings: ImageEncoderSettings

    def check(self, encoder: ImageEncoder, settings: ImageEncoderSettings) -> None:
        """Raise UsageError where it was encoded by another encoder, or in another way."""
        if self.encoder != encoder.identity:
            raise UsageError(
                f"this subject was encoded by {self.encoder}, this pipeline's image encoder is {encoder.identity}: encode it "
                "again with pipe.encode_subject(image)"
            )
        if replace(self.settings, model=settings.model) != settings:
            raise UsageError(
                "this subject was encoded with other image_encoder settings than this pipeline's: encode it again with "
                "pipe.encode_subject(image)"
            )


def encode_subject(
    image: Picture, mask: Picture | None, encoder: ImageEncoder, settings: ImageEncoderSettings
) -> EncodedSubject:
    """Encode a picture. Raises as `prepare_reference`."""
    reference = prepare_reference(image, mask, settings)
    features = encoder.encode(encoder.prepare(reference)[None])[0]
    return EncodedSubject(features=features, key=_key(reference), encoder=encoder.identity, settings=settings)


class SubjectCache:
    """Projected tokens of references, by the content of the encoder's input; the last one stays, however large.

    Args:
        max_bytes: of all of them, on the models' device.
    """

    def __init__(self, max_bytes: int = CACHED_BYTES) -> None:
        self.max_bytes, self.held_bytes = max_bytes, 0
        self._tokens: OrderedDict[bytes, Tensor] = OrderedDict()

    def tokens(
        self,
        image: Picture | EncodedSubject,
        mask: Picture | None,
        model: RealCustomModel,
        encoder: ImageEncoder,
        settings: ImageEncoderSettings,
        device: torch.device,
    ) -> Tensor:
        """The subject's projected tokens, (S, Di), on `device`, the models' own: an encoded subject may be elsewhere."""
        if isinstance(image, EncodedSubject):
            image.check(encoder, settings)
            features, key = image.features, image.key + str(image.features.dtype).encode()
            return self._get(key, lambda: model.project(features[None].to(device))[0])
        reference = prepare_reference(image, mask, settings)
        return self._get(_key(reference), lambda: model.project(encoder.encode(encoder.prepare(reference)[None]))[0])

    def black(self, model: RealCustomModel, encoder: ImageEncoder, dtype: torch.dtype) -> Tensor:
        """The tokens (S, Di) of a black picture, which are not zeros."""
        return self._get(BLACK, lambda: model.project(encoder.encode_black())[0].to(dtype))

    def clear(self) -> None:
        """Remove all."""
        self._tokens.clear()
        self.held_bytes = 0

    def _get(self, key: bytes, make: Callable[[], Tensor]) -> Tensor:
        if key not in self._tokens:
            self._tokens[key] = make()
            self.held_bytes += self._tokens[key].nbytes
        self._tokens.move_to_end(key)
        while self.held_bytes > self.max_bytes and len(self._tokens) > 1:
            _, oldest = self._tokens.popitem(last=False)
            self.held_bytes -= oldest.nbytes
        return self._tokens[key]


def _key(reference: Image.Image) -> bytes:
    return hashlib.sha256(f"{reference.size}".encode() + reference.tobytes()).digest()
