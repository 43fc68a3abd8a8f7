"""The picture of an influence mask over the steps."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from realcustom.evaluation.film import LINE, MOMENTS, film_of

STEPS, BATCH, HEIGHT, WIDTH = 20, 2, 3, 4


def read(data: bytes | None) -> np.ndarray:
    assert data is not None
    return np.asarray(Image.open(io.BytesIO(data)))


def test_steps_are_in_reading_order_and_subjects_below_each_other() -> None:
    """Each mask holds one number, which says its step, subject and row of the batch."""
    level = np.arange(STEPS * 2 * BATCH).reshape(STEPS, 2, BATCH)
    masks = [
        tuple(
            (torch.tensor(level[step, subject]) / 255).reshape(BATCH, 1, 1, 1).expand(-1, -1, HEIGHT, WIDTH)
            for subject in range(2)
        )
        for step in range(STEPS)
    ]
    film = read(film_of(masks, row=1))
    assert film.shape == (2 * MOMENTS // LINE * HEIGHT, LINE * WIDTH)
    shown = film[::HEIGHT, ::WIDTH].reshape(2, MOMENTS)
    assert shown[:, 0].tolist() == level[0, :, 1].tolist() and shown[:, -1].tolist() == level[-1, :, 1].tolist()
    assert [(column == level[:, :, 1]).all(1).sum() for column in shown.T] == [1] * MOMENTS
    assert (np.kron(film[::HEIGHT, ::WIDTH], np.ones((HEIGHT, WIDTH))) == film).all()


def test_fewer_steps_than_moments_are_each_shown_once() -> None:
    masks = [(torch.full((1, 1, HEIGHT, WIDTH), step / 4),) for step in range(3)]
    assert read(film_of(masks, row=0))[0, ::WIDTH].tolist() == [0, 64, 128, 0]


def test_no_mask_no_film() -> None:
    assert film_of([], row=0) is None
