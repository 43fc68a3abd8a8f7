"""Questions of the drawn world as evaluation's cases, and methods that answer them: all from the same noise.

A method takes cases and returns a picture for each. `baselines` are those beside the method itself; what is called a
mask's source, a scope or a number of steps is an argument of `customised`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from sampler_sides import install_ip_adapter
from synthetic_world import BATCH, see_through, shipped
from torch import Tensor
from torch.nn import functional as F

from realcustom.base_loading import load_base
from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.drawing import Call, prepare
from realcustom.evaluation.settings import EvaluateSettings
from realcustom.evaluation.table import Case, Setting, evaluate
from realcustom.maps import text_cross_attentions
from realcustom.model import RealCustomModel
from realcustom.output import to_images
from realcustom.pipeline.quickstart.cases import DrawnJudge, Truth, picture
from realcustom.sampling import SamplingParams
from realcustom.settings import GuidanceMode, MethodSettings, Reference
from realcustom.sprites import zoo_path
from realcustom.sprites.control import Graded, grade
from realcustom.sprites.judge import Judge
from realcustom.sprites.questions import Kind, Question, question
from realcustom.sprites.world import GUIDANCE_SCALE, NUM_INFERENCE_STEPS, SIZE, Scene, draw

GRID = SIZE // 2  # cells a side of the latent
Method = Callable[[Sequence[Case]], Sequence[Image.Image]]


@dataclass(frozen=True, kw_only=True)
class Asked(Truth):
    """The judge's data about a case, and the question that it is."""

    question: Question


def cases_of(kind: Kind, count: int, first: int = 0) -> list[Case]:
    """`count` questions of a kind as cases."""
    return [_case(kind, index) for index in range(first, first + count)]


def mixed_cases(count: int) -> list[Case]:
    """Half plain questions, half prompts that contradict their reference."""
    return [*cases_of(Kind.PLAIN, count // 2), *cases_of(Kind.CONTRADICTION, count - count // 2)]


def _case(kind: Kind, index: int) -> Case:
    asked = question(kind, index)
    identity = asked.target.subjects[0].identity
    truth = Asked(identity=identity, background=asked.target.background, reference=asked.references[0], question=asked)
    return Case(
        uid=f"{kind.value}-{index}",
        prompt=asked.target.caption,
        target_word=identity.noun,
        reference=picture(asked.references[0]),
        wrong_reference=picture(asked.wrong_references[0]),
        oracle=picture(asked.target),
        seed=20_000 + index,
        truth=truth,
    )


def answers(method: Method, cases: Sequence[Case]) -> np.ndarray:
    """The method's pictures of the cases, uint8 (n, 32, 32, 3)."""
    settings = EvaluateSettings(images=len(cases), batch_size=BATCH)
    row = Setting.SUBJECT_WITH_MASK
    table = evaluate(cases, lambda _, batch: method(batch), DrawnJudge(), settings, rows=(row,))
    return np.stack([np.asarray(image.convert("RGB")) for image in table.images[row]])


def graded(judge: Judge, images: np.ndarray, cases: Sequence[Case], subject: int = 0) -> Graded:
    """Graded scores of a method's pictures."""
    return grade(judge, images, [case.truth.question.target for case in cases], subject)


def customised(pipeline: RealCustomPipeline, *, wrong: bool = False, **arguments: Any) -> Method:
    """A pipeline with each case's subjects, or with others of the same nouns; cut out where its adapter asks for that."""
    cut_out = pipeline.settings.image_encoder.reference is Reference.CROP

    def method(cases: Sequence[Case]) -> Sequence[Image.Image]:
        subjects = [subjects_of(case, wrong=wrong, cut_out=cut_out) for case in cases]
        return list(pipeline([case.prompt for case in cases], subjects, generator=noise(cases), **arguments).images)

    return method


def plain(pipeline: RealCustomPipeline) -> Method:
    """Text alone."""

    def method(cases: Sequence[Case]) -> Sequence[Image.Image]:
        nothing: list[list[Subject]] = [[] for _ in cases]
        return list(pipeline([case.prompt for case in cases], nothing, generator=noise(cases)).images)

    return method


def oracle_mask(pipeline: RealCustomPipeline) -> Method:
    """The method with the true silhouette of each subject in the place of the mask of the word's attention."""

    def method(cases: Sequence[Case]) -> Sequence[Image.Image]:
        call = Call(
            prompt=[case.prompt for case in cases],
            subjects=[subjects_of(case) for case in cases],
            sampling=SamplingParams(),
            generator=noise(cases),
        )
        with torch.no_grad():
            sampler = prepare(pipeline, call).sampler
            drawings = [draw(case.truth.question.target) for case in cases]
            sampler._masks = tuple(
                _cells([drawing.masks[number] for drawing in drawings]) for number in range(sampler.rows.subjects)
            )
            sampler._live = 0  # no mask is computed
            while not sampler.done:
                sampler.step()
            return list(to_images(pipeline.base, sampler.latents, "pil"))

    return method


def ip_adapter(pipeline: RealCustomPipeline, *, given_mask: bool) -> Method:
    """diffusers' own IP-Adapter with the keys and values of `pipeline`'s adapter; its UNet is taken over.

    One case a call: of a batch's image embeddings the stock pipeline makes as many copies as the batch has prompts, so
    that each picture would attend to all subjects of the batch.

    Args:
        given_mask: the box in which the subject is to be, through diffusers' `ip_adapter_masks`; else no mask.
    """
    assert pipeline.image_encoder is not None
    stock, encoder = _install_ip_adapter(pipeline), pipeline.image_encoder

    def one(case: Case) -> Image.Image:
        tokens = encoder.encode(encoder.prepare(case.reference)[None])  # (1, S, Di)
        mask = _cells([box_mask(case.truth.question.target)], binary=True)
        image: Image.Image = stock(
            case.prompt,
            generator=noise([case]),
            num_inference_steps=NUM_INFERENCE_STEPS,
            guidance_scale=GUIDANCE_SCALE,
            ip_adapter_image_embeds=[torch.cat([torch.zeros_like(tokens), tokens])[:, None]],
            cross_attention_kwargs={"ip_adapter_masks": [mask]} if given_mask else None,
        ).images[0]
        return image

    return lambda cases: [one(case) for case in cases]


def baselines() -> dict[str, Method]:
    """By name; each with a pipeline of its own where it changes one."""
    pipeline = shipped()
    return {
        "plain": plain(pipeline),
        "no_mask": customised(pipeline, use_mask=False),
        "masked": customised(pipeline),
        "joint_guidance": customised(shipped(direct)),
        "ip_adapter": ip_adapter(shipped(), given_mask=False),
        "given_mask": ip_adapter(shipped(), given_mask=True),
        "oracle_mask": oracle_mask(pipeline),
        "wrong_reference": customised(pipeline, wrong=True),
        "untrained": customised(untrained()),
        "true_drawing": lambda cases: [case.oracle for case in cases],
    }


def only(methods: Mapping[str, Method], wanted: Sequence[str]) -> Mapping[str, Method]:
    """Those that are wanted, all for none. Raises ValueError for a name that is none of theirs."""
    unknown = [name for name in wanted if name not in methods]
    if unknown:
        raise ValueError(f"there is no method {unknown[0]}; there are {', '.join(methods)}")
    return {name: method for name, method in methods.items() if not wanted or name in wanted}


def direct(settings: MethodSettings) -> MethodSettings:
    """Settings with the guidance of the IP-Adapter: text and subject together against neither."""
    guidance = dataclasses.replace(settings.guidance, mode=GuidanceMode.DIRECT, subject_guidance_scale=GUIDANCE_SCALE)
    return dataclasses.replace(settings, guidance=guidance)


def binary() -> RealCustomPipeline:
    """The shipped adapter with masks of zeros and ones."""
    return shipped(lambda settings: dataclasses.replace(settings, mask=dataclasses.replace(settings.mask, binary=True)))


def untrained() -> RealCustomPipeline:
    """The shipped base with an adapter of new weights."""
    pipeline = shipped()
    assert pipeline.model is not None
    fresh = RealCustomModel(
        load_base(zoo_path("pipeline")).unet,
        pipeline.settings,
        pipeline.model.image_embed_dim,
        torch.Generator().manual_seed(0),
    )
    pipeline.model.load_adapter_state_dict(fresh.adapter_state_dict())
    return pipeline


def subjects_of(case: Case, *, wrong: bool = False, cut_out: bool = False) -> list[Subject]:
    """The case's subjects, in the prompt's order."""
    asked: Question = case.truth.question
    shown = asked.wrong_references if wrong else asked.references
    see = see_through if cut_out else picture
    return [Subject(image=see(one), word=one.subjects[0].identity.noun) for one in shown]


def noise(cases: Sequence[Case]) -> list[torch.Generator]:
    """The generators of the cases' starting noise."""
    return [torch.Generator().manual_seed(case.seed) for case in cases]


def box_mask(scene: Scene) -> np.ndarray:
    """The first subject's box, bool (32, 32)."""
    x0, y0, x1, y1 = draw(scene).boxes[0]
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def _cells(masks: Sequence[np.ndarray], *, binary: bool = False) -> Tensor:
    """Pixels' masks as shares of the latent's cells, (n, 1, 16, 16); binary: 1 from half a cell on."""
    shares = F.avg_pool2d(torch.from_numpy(np.stack(masks)).float()[:, None], SIZE // GRID)
    return (shares >= 0.5).float() if binary else shares


def _install_ip_adapter(pipeline: RealCustomPipeline) -> StableDiffusionPipeline:
    """The stock pipeline whose UNet has diffusers' processors with the adapter's weights."""
    stock, unet = pipeline.base.pipeline, pipeline.base.unet
    layers = text_cross_attentions(unet)
    vision = {path: (layer.to_k_vision.weight, layer.to_v_vision.weight) for path, layer in layers.items()}
    install_ip_adapter(unet, vision, tokens=1)
    stock.set_progress_bar_config(disable=True)
    return stock
