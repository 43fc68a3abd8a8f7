"""The detector's input, and the segmenter's one look at each picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SamImageProcessorPil, SamModel, SamProcessor

from realcustom.preprocessing.engine.models import Runtime
from realcustom.preprocessing.settings import ComputeSettings, SubjectsSettings
from realcustom.preprocessing.subjects.detector import Detector
from realcustom.preprocessing.subjects.segmenter import Segmenter
from tests.support import tiny_models
from tests.support.corpora import picture


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> SubjectsSettings:
    root = tmp_path_factory.mktemp("models")
    return SubjectsSettings(
        detector=tiny_models.grounding_dino(root / "dino"),
        segmenter=tiny_models.sam(root / "sam"),
        min_detection_score=0.0,
    )


@pytest.mark.parametrize(
    ("size", "shape"),
    [((60, 60), (800, 800)), ((800, 600), (800, 1067)), ((600, 800), (1067, 800)), ((900, 600), (800, 1200))]
    + [((100, 99), (800, 1067)), ((160, 90), (800, 1333)), ((3000, 100), (800, 1333)), ((90, 160), (1333, 800))],
    ids=str,
)
def test_the_detector_s_input_has_nearly_the_picture_s_aspect(
    settings: SubjectsSettings, size: tuple[int, int], shape: tuple[int, int]
) -> None:
    detector = Detector(settings, Runtime(ComputeSettings()))
    detector._processor.size = type(detector._processor.size)(shortest_edge=800, longest_edge=1333)
    assert detector.shape(*size) == shape
    pixels = detector._processor(
        [Image.new("RGB", size)], pad_size={"height": shape[0], "width": shape[1]}, return_tensors="pt"
    )
    assert pixels.pixel_values.shape[2:] == shape
    assert pixels.pixel_mask.float().mean() > 0.74 or size == (3000, 100)


def test_boxes_do_not_depend_on_the_company_in_a_batch(settings: SubjectsSettings) -> None:
    detector = Detector(settings, Runtime(ComputeSettings()))
    pictures = [picture(seed, (64, 48)) for seed in range(3)]
    together = detector(pictures, ["toy"] * 3, 4)
    alone = [detector([one], ["toy"], 4)[0] for one in pictures]
    assert together == alone and len(together[0].candidates) == 6


def test_the_segmenter_sees_a_picture_once_and_each_box_as_sam_does_alone(settings: SubjectsSettings) -> None:
    segmenter = Segmenter(settings, Runtime(ComputeSettings()))
    seen: list[int] = []
    segmenter._model.vision_encoder.register_forward_hook(lambda module, given, output: seen.append(1))
    pictures = [picture(seed, (70 + 10 * seed, 48)) for seed in range(3)]
    which = [0, 1, 0, 0, 2, 1, 0]
    boxes = [(float(i), 2.0 + i, 30.0 + 3 * i, 40.0) for i in range(len(which))]
    found = segmenter([pictures[index] for index in which], boxes, 3)
    assert len(seen) == 1 and len(found) == len(boxes)
    assert settings.segmenter is not None
    model = SamModel.from_pretrained(settings.segmenter).eval()
    processor = SamProcessor(SamImageProcessorPil.from_pretrained(settings.segmenter))
    for index, box, segment in zip(which, boxes, found, strict=True):
        inputs = processor([pictures[index]] * 3, input_boxes=[[list(box)]] * 3, return_tensors="pt")
        with torch.inference_mode():
            output = model(
                pixel_values=inputs.pixel_values,
                input_boxes=inputs.input_boxes.to(torch.float32),
                multimask_output=False,
            )
        masks = processor.post_process_masks(output.pred_masks, inputs.original_sizes, inputs.reshaped_input_sizes)
        np.testing.assert_array_equal(segment.mask, masks[0].reshape(segment.mask.shape).numpy())
        assert segment.score == pytest.approx(float(output.iou_scores[0, 0, 0]), abs=1e-6)
