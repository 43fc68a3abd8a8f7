"""Subjects' tokens that a pipeline keeps."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.encoded import SubjectCache

CPU = torch.device("cpu")


def test_tokens_are_kept_within_bytes_and_the_last_one_always(tiny_pipeline: RealCustomPipeline) -> None:
    model, encoder, settings = tiny_pipeline.model, tiny_pipeline.image_encoder, tiny_pipeline.settings.image_encoder
    assert model is not None and encoder is not None
    pictures = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)) for seed in range(3)
    ]
    size = model.project(encoder.encode_black())[0].nbytes
    for room, kept in ((2 * size, [1, 2]), (1, [2])):
        cache = SubjectCache(max_bytes=room)
        tokens = [cache.tokens(picture, None, model, encoder, settings, CPU) for picture in pictures]
        assert cache.held_bytes == len(kept) * size
        again = {
            number: cache.tokens(pictures[number], None, model, encoder, settings, CPU) for number in reversed(kept)
        }
        assert all(again[number] is tokens[number] for number in kept)  # not made anew
        assert cache.tokens(pictures[0], None, model, encoder, settings, CPU) is not tokens[0]
        cache.clear()
        assert cache.held_bytes == 0


def test_tokens_are_on_the_models_device_wherever_the_subject_is_kept(tiny_pipeline: RealCustomPipeline) -> None:
    model, encoder, settings = tiny_pipeline.model, tiny_pipeline.image_encoder, tiny_pipeline.settings.image_encoder
    assert model is not None and encoder is not None
    assert model.encoder_hidden_states_vision_projection is None  # which would take them to its own device
    subject = tiny_pipeline.encode_subject(Image.new("RGB", (24, 24)))
    assert subject.features.device == CPU
    tokens = SubjectCache().tokens(subject, None, model, encoder, settings, torch.device("meta"))
    assert tokens.device.type == "meta" and tokens.shape == subject.features.shape
