"""The field's metrics with the drawn world's own networks: CLIP-T, CLIP-I, and the same with the adapter's image encoder.

Each is a cosine of embeddings, raw. `_reference` compares with the picture that the method was shown, `_views` with
VIEWS other pictures of the subject that nobody was shown (mean), `_segmented` with those, both sides cut out on white by
the zoo's segmenter in the box where the subject is drawn, or should be. Pictures are uint8 (n, 32, 32, 3), which is the
networks' own size, so there is no interpolation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, CLIPVisionModel, SamModel

from realcustom.evaluation.table import Case
from realcustom.sprites import zoo_path
from realcustom.sprites.questions import other_views
from realcustom.sprites.text import tokenize
from realcustom.sprites.world import Scene, draw

VIEWS = 4


class Metrics:
    """All metrics of pictures against their cases."""

    def __init__(self) -> None:
        self.clip = CLIPModel.from_pretrained(zoo_path("clip")).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(zoo_path("clip"))
        self.encoder = CLIPVisionModel.from_pretrained(zoo_path("image_encoder")).eval()
        self.sam = SamModel.from_pretrained(zoo_path("sam")).eval()
        self._shown: dict[tuple[str, ...], list[tuple[np.ndarray, np.ndarray]]] = {}  # by the uids of cases

    @torch.no_grad()
    def __call__(self, images: np.ndarray, cases: Sequence[Case]) -> Mapping[str, np.ndarray]:
        """By name, (n,) each."""
        targets = [case.truth.question.target for case in cases]
        references = np.stack([np.asarray(case.reference) for case in cases])
        cut = self.cut_out(images, targets)
        values = {"clip_t": cosine(self.see(images), self.read([case.prompt for case in cases]))}
        for name, see in (("clip_i", self.see), ("encoder_i", self.look)):
            whole, part = see(images), see(cut)
            values[f"{name}_reference"] = cosine(whole, see(references))
            shown = self.shown(cases)
            values[f"{name}_views"] = np.mean([cosine(whole, see(pictures)) for pictures, _ in shown], 0)
            values[f"{name}_segmented"] = np.mean([cosine(part, see(pictures)) for _, pictures in shown], 0)
        return values

    def shown(self, cases: Sequence[Case]) -> list[tuple[np.ndarray, np.ndarray]]:
        """VIEWS other pictures of each case's subject, whole and cut out, (n, 32, 32, 3) each; made once."""
        uids = tuple(case.uid for case in cases)
        if uids not in self._shown:
            rows = [other_views(case.truth.question, VIEWS) for case in cases]
            columns = [[row[number] for row in rows] for number in range(VIEWS)]
            drawn = [np.stack([draw(one).image for one in column]) for column in columns]
            self._shown[uids] = [
                (pictures, self.cut_out(pictures, column)) for pictures, column in zip(drawn, columns, strict=True)
            ]
        return self._shown[uids]

    def see(self, images: np.ndarray) -> Tensor:
        """CLIP's image embeddings (n, D)."""
        seen: Tensor = self.clip.visual_projection(self.clip.vision_model(pixel_values(images)).pooler_output)
        return seen

    def read(self, prompts: Sequence[str]) -> Tensor:
        """CLIP's text embeddings (n, D)."""
        ids = tokenize(self.tokenizer, list(prompts))
        ends = (ids == self.tokenizer.eos_token_id).cumsum(1)
        mask = ((ends == 0) | ((ends == 1) & (ids == self.tokenizer.eos_token_id))).long()  # the end is the padding too
        said: Tensor = self.clip.text_projection(self.clip.text_model(ids, attention_mask=mask).pooler_output)
        return said

    def look(self, images: np.ndarray) -> Tensor:
        """The adapter's image encoder's pooled output (n, D)."""
        embeddings: Tensor = self.encoder(pixel_values(images)).pooler_output
        return embeddings

    def cut_out(self, images: np.ndarray, scenes: Sequence[Scene]) -> np.ndarray:
        """Pictures whose first subject the segmenter leaves on white."""
        boxes = torch.tensor([[draw(one).boxes[0]] for one in scenes], dtype=torch.float32)  # (n, 1, 4)
        answer = self.sam(pixel_values=pixel_values(images), input_boxes=boxes, multimask_output=False)
        found = (answer.pred_masks[:, 0, 0] > 0).numpy()  # (n, 32, 32)
        return np.where(found[..., None], images, np.uint8(255))


def pixel_values(images: np.ndarray) -> Tensor:
    """(n, 3, 32, 32) in [-1, 1], as the zoo's image processors make them."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def cosine(one: Tensor, other: Tensor) -> np.ndarray:
    """Of each row."""
    values: np.ndarray = torch.nn.functional.cosine_similarity(one, other).numpy().astype(np.float64)
    return values
