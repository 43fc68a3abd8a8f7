"""A call's text: what diffusers' pipelines take means the same here, and the subjects' words stay where they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig
from PIL import Image
from torch import Tensor

from realcustom import RealCustomPipeline, Subject
from realcustom.conditioning import encode_text
from realcustom.prompts import TextInputs, read_text
from realcustom.rows import match_words
from realcustom.sampling import SamplingParams
from realcustom.settings import PooledText
from tests.support import tiny

PROMPT = "a dog on grass with a hat"
TWO = ["a dog on grass", "a cat in the snow"]
LONG = "a " * 80 + "dog on grass"
Picture = Callable[[int], Image.Image]


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Paths of a tiny base, the paper's adapter for it, and an image encoder."""
    root = tmp_path_factory.mktemp(request.param)
    base = (tiny.tiny_base if request.param == "sd" else tiny.tiny_sdxl_base)(root / "base")
    encoder = tiny.tiny_image_encoder(root / "encoder")
    return base, tiny.tiny_adapter(root / "adapter.safetensors", base, encoder), encoder


@pytest.fixture(scope="module")
def pipe(models: tuple[str, str, str]) -> RealCustomPipeline:
    """No test changes it."""
    return RealCustomPipeline.from_pretrained(*models)


@pytest.fixture(scope="module")
def stock(models: tuple[str, str, str]) -> Any:
    """The stock pipeline of the same base. No test changes it."""
    return load_stock(models[0])


@pytest.fixture
def both(models: tuple[str, str, str]) -> tuple[RealCustomPipeline, Any]:
    """Ours and the stock pipeline, for a test that changes them."""
    return RealCustomPipeline.from_pretrained(*models), load_stock(models[0])


def load_stock(base: str) -> Any:
    loaded = diffusers.DiffusionPipeline.from_pretrained(base, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    if not hasattr(
        loaded.text_encoder, "text_model"
    ):  # diffusers looks there for the final norm; transformers 5 has none
        object.__setattr__(loaded.text_encoder, "text_model", loaded.text_encoder)
    return loaded


def drawn(pipeline: Any, *arguments: Any, **options: Any) -> Tensor:
    """Latents of two steps."""
    options = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent", **options}
    latents: Tensor = pipeline(*arguments, generator=torch.Generator().manual_seed(3), **options).images
    return latents


def encoded(pipeline: RealCustomPipeline, prompt: Any, text: TextInputs | None = None, **knobs: Any) -> list[Any]:
    """Ours in the order of the stock pipeline's `encode_prompt`."""
    call_text, _ = read_text(pipeline.base, prompt, (), SamplingParams(**knobs), text or TextInputs())
    own, negative = encode_text(call_text, PooledText.PROJECTED)
    tensors = [own.hidden, negative.hidden, own.pooled, negative.pooled]
    return [tensor for tensor in tensors if tensor is not None]


def encoded_by(stock: Any, prompt: Any, **options: Any) -> list[Tensor]:
    with torch.no_grad():
        return list(
            stock.encode_prompt(
                prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, **options
            )
        )


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def embeds_of(stock: Any, prompt: Any, **options: Any) -> dict[str, Any]:
    """The stock pipeline's embeddings by their names as arguments."""
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return dict(zip(names, encoded_by(stock, prompt, **options), strict=False))


def test_embeddings_are_the_stock_pipeline_s(pipe: RealCustomPipeline, stock: Any) -> None:
    """To the bit; a prompt that fits is read the same whether long ones may be or not."""
    knobs: dict[str, Any]
    for prompt, negative in itertools.product((PROMPT, TWO, ""), (None, "a cat", "")):
        for knobs in ({}, {"clip_skip": 0}, {"clip_skip": 1}, {"long_prompt": True}):
            options = {"clip_skip": knobs["clip_skip"]} if "clip_skip" in knobs else {}
            listed = negative if negative is None or isinstance(prompt, str) else [negative] * len(prompt)
            theirs = encoded_by(stock, prompt, negative_prompt=listed, **options)
            assert equal(encoded(pipe, prompt, negative_prompt=negative, **knobs), theirs), (prompt, negative, knobs)


@pytest.mark.parametrize(
    "text",
    [
        {"prompt_2": "a star in space"},
        {"prompt_2": "a star in space", "negative_prompt": "a cat", "negative_prompt_2": "snow"},
        {"negative_prompt": "a cat", "negative_prompt_2": "snow", "clip_skip": 1},
        {"negative_prompt": "", "negative_prompt_2": "snow"},
        {"prompt_2": "", "negative_prompt": "a cat", "negative_prompt_2": ""},
    ],
)
def test_the_second_encoder_s_own_prompts(pipe: RealCustomPipeline, stock: Any, text: dict[str, Any]) -> None:
    if not pipe.base.is_sdxl:
        names = [name for name in text if name.endswith("_2")]
        with pytest.raises(ValueError, match=f"{', '.join(sorted(names))} is for SDXL"):
            drawn(pipe, PROMPT, **text)
        return
    knobs = {name: value for name, value in text.items() if name in ("negative_prompt", "clip_skip")}
    inputs = TextInputs(**{name: value for name, value in text.items() if name.endswith("_2")})
    assert equal(encoded(pipe, PROMPT, inputs, **knobs), encoded_by(stock, PROMPT, **text))
    torch.testing.assert_close(drawn(pipe, PROMPT, **text), drawn(stock, PROMPT, **text), rtol=0, atol=1e-5)


def test_a_negative_second_prompt_alone_warns(pipe: RealCustomPipeline, stock: Any) -> None:
    """The stock pipeline then uses zeros, and so do we."""
    if pipe.base.is_sdxl:
        with pytest.warns(UserWarning, match="negative_prompt_2 does nothing without negative_prompt"):
            ours = drawn(pipe, PROMPT, negative_prompt_2="snow")
        torch.testing.assert_close(ours, drawn(stock, PROMPT, negative_prompt_2="snow"), rtol=0, atol=1e-5)


def test_a_base_that_has_no_zeros_for_an_empty_prompt(both: tuple[RealCustomPipeline, Any]) -> None:
    pipe, stock = both
    text: dict[str, Any] = {}
    if pipe.base.is_sdxl:
        text = {"negative_prompt_2": "snow"}
        for each in (pipe.diffusers, stock):
            each.register_to_config(force_zeros_for_empty_prompt=False)
    ours = encoded(pipe, PROMPT, TextInputs(**text))
    assert equal(ours, encoded_by(stock, PROMPT, **text)) and ours[1].count_nonzero() > 0


def test_given_embeddings_draw_what_they_draw_in_the_stock_pipeline(pipe: RealCustomPipeline, stock: Any) -> None:
    """All of them, those of the prompts alone, and those of the pooled text beside a prompt."""
    embeds = {name: 1.5 * tensor for name, tensor in embeds_of(stock, TWO, negative_prompt=["a cat", "snow"]).items()}
    torch.testing.assert_close(drawn(pipe, **embeds), drawn(stock, **embeds), rtol=0, atol=1e-5)
    own = {name: tensor for name, tensor in embeds.items() if not name.startswith("negative")}
    torch.testing.assert_close(drawn(pipe, **own), drawn(stock, **own), rtol=0, atol=1e-5)
    ours, theirs = (drawn(each, **own, negative_prompt=["a cat", "hat"]) for each in (pipe, stock))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    if pipe.base.is_sdxl:
        pooled = {"pooled_prompt_embeds": embeds["pooled_prompt_embeds"]}
        torch.testing.assert_close(drawn(pipe, TWO, **pooled), drawn(stock, TWO, **pooled), rtol=0, atol=1e-5)
        assert not torch.allclose(drawn(pipe, TWO, **pooled), drawn(pipe, TWO), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"clip_skip": 1}, {"negative_prompt": "a cat", "num_images_per_prompt": 2}])
def test_a_plain_call_draws_what_the_stock_pipeline_draws(
    pipe: RealCustomPipeline, stock: Any, options: dict[str, Any]
) -> None:
    torch.testing.assert_close(drawn(pipe, PROMPT, **options), drawn(stock, PROMPT, **options), rtol=0, atol=1e-5)


def test_a_subject_acts_on_given_embeddings(pipe: RealCustomPipeline, stock: Any, picture: Picture) -> None:
    """The words from the prompt that they were made from, or by their positions: to the bit as with the prompt alone."""
    subjects = [Subject(image=picture(0), word="dog"), Subject(image=picture(1), word=("a", "hat"))]
    expected = drawn(pipe, PROMPT, subjects)
    embeds = embeds_of(stock, PROMPT)
    assert torch.equal(drawn(pipe, PROMPT, subjects, **embeds), expected)
    assert torch.equal(drawn(pipe, None, subjects, token_words=[[2], [1, 6, 7]], **embeds), expected)
    assert torch.equal(drawn(pipe, PROMPT, subjects, token_words=[[2], [7, 1, 6]]), expected)
    assert not torch.allclose(drawn(pipe, PROMPT, subjects, token_words=[[4], [1, 6, 7]]), expected, atol=1e-5)
    rows = [[subjects[0]], [subjects[1], subjects[0]]]
    words = pipe(None, rows, **embeds_of(stock, TWO), token_words=[[[2]], [[1], [2, 3]]], num_inference_steps=1).words
    assert words == [["dog"], ["a, hat", "dog"]]


def test_a_textual_inversion_of_several_vectors(both: tuple[RealCustomPipeline, Any], picture: Picture) -> None:
    """All its vectors are read, as in the stock pipeline, and all are the word; the words behind it move."""
    pipe, stock = both
    prompt = "a <my-toy> on grass with a dog"
    vectors = torch.randn(3, tiny.TEXT_WIDTH, generator=torch.Generator().manual_seed(5))
    plain = encoded(pipe, prompt)
    for each in (pipe.diffusers, stock):
        for suffix in ("", "_2") if pipe.base.is_sdxl else ("",):
            parts = {"tokenizer": getattr(each, f"tokenizer{suffix}")}
            parts["text_encoder"] = getattr(each, f"text_encoder{suffix}")
            width = parts["text_encoder"].get_input_embeddings().weight.shape[1]
            each.load_textual_inversion(vectors.repeat(1, 2)[:, :width], token="<my-toy>", **parts)
    assert equal(encoded(pipe, prompt), encoded_by(stock, prompt)) and not equal(encoded(pipe, prompt), plain)
    negative = "grass <my-toy>"
    theirs = encoded_by(stock, prompt, negative_prompt=negative)
    assert equal(encoded(pipe, prompt, negative_prompt=negative), theirs)
    subjects = [Subject(image=picture(0), word="<my-toy>"), Subject(image=picture(1), word="dog")]
    text, rows = read_text(pipe.base, prompt, subjects, SamplingParams(), TextInputs())
    assert [match.positions for match in match_words(text, pipe.settings, rows)[0]] == [(2, 3, 4), (9,)]
    out = pipe(prompt, subjects, num_inference_steps=1, output_type="latent")
    assert out.words == [["<my-toy>", "dog"]] and isinstance(out.images, Tensor) and out.images.isfinite().all()


def test_what_is_cut_off_is_said(pipe: RealCustomPipeline, stock: Any) -> None:
    with pytest.warns(UserWarning, match="^prompt is longer than the 75 tokens .* cut off: 'a a a a a dog on grass'"):
        ours = drawn(pipe, LONG)
    torch.testing.assert_close(ours, drawn(stock, LONG), rtol=0, atol=1e-5)
    with pytest.warns(UserWarning, match=r"^negative_prompt is longer .* \(long_prompt reads all\)"):
        drawn(pipe, PROMPT, negative_prompt=LONG)
    if pipe.base.is_sdxl:
        with pytest.warns(UserWarning, match="^prompt_2 is longer"):
            drawn(pipe, PROMPT, prompt_2=LONG)


def test_a_long_prompt_is_read_in_chunks(pipe: RealCustomPipeline, stock: Any, picture: Picture) -> None:
    """Each chunk is what the stock pipeline makes of its text; a word of the second one is at 77 + 1 + i."""
    ours = encoded(pipe, [LONG, PROMPT], long_prompt=True, negative_prompt="a cat")
    first, second, short, empty = (
        encoded_by(stock, text)[0] for text in ("a " * 75, "a " * 5 + LONG[160:], PROMPT, "")
    )
    torch.testing.assert_close(ours[0][:1], torch.cat([first, second], 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours[0][1:], torch.cat([short, empty], 1), rtol=0, atol=1e-5)
    negative = encoded_by(stock, "a cat")[0]
    torch.testing.assert_close(ours[1], torch.cat([negative, empty], 1).repeat(2, 1, 1), rtol=0, atol=1e-5)
    if pipe.base.is_sdxl:
        torch.testing.assert_close(ours[2][:1], encoded_by(stock, "a " * 75)[2], rtol=0, atol=1e-5)
    subject = Subject(image=picture(0), word="dog")
    with pytest.raises(ValueError, match="stands at token 81 of the prompt, the text encoder reads 75"):
        drawn(pipe, LONG, [subject])
    expected = drawn(pipe, LONG, [subject], long_prompt=True)
    assert torch.equal(drawn(pipe, LONG, [subject], long_prompt=True, token_words=[[77 + 1 + 5]]), expected)
    assert not torch.allclose(expected, drawn(pipe, LONG, long_prompt=True), atol=1e-5)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    embeds = dict(zip(names, encoded(pipe, LONG, long_prompt=True), strict=False))
    assert torch.equal(drawn(pipe, LONG, [subject], **embeds), expected)  # two chunks by their shape
    torch.testing.assert_close(drawn(pipe, **embeds), drawn(stock, **embeds), rtol=0, atol=1e-5)


def test_a_longer_negative_prompt_lengthens_the_prompt(pipe: RealCustomPipeline, picture: Picture) -> None:
    subject = Subject(image=picture(0), word="dog")
    own, negative = encoded(pipe, PROMPT, negative_prompt=LONG, long_prompt=True)[:2]
    assert own.shape == negative.shape == (1, 154, own.shape[2])
    assert torch.isfinite(drawn(pipe, PROMPT, [subject], negative_prompt=LONG, long_prompt=True)).all()


def test_arguments_that_contradict_each_other(pipe: RealCustomPipeline, stock: Any, picture: Picture) -> None:
    subject = Subject(image=picture(0), word="dog")
    embeds, sdxl = embeds_of(stock, PROMPT), pipe.base.is_sdxl
    own = {name: tensor for name, tensor in embeds.items() if not name.startswith("negative")}
    odd = {name: tensor[:, :40] if tensor.ndim == 3 else tensor for name, tensor in embeds.items()}
    odd_own = {name: odd[name] for name in own}
    cases: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((), {}, "give prompt or prompt_embeds; both are None"),
        ((PROMPT,), embeds, "give prompt or prompt_embeds, not both"),
        ((PROMPT, [subject]), {**embeds, "token_words": [[2]]}, "give prompt or prompt_embeds, not both"),
        ((None, [subject]), embeds, "give token_words, the positions"),
        ((), {**embeds, "negative_prompt": "a"}, "give negative_prompt or negative_prompt_embeds, not both"),
        ((), {**embeds, "prompt_embeds": embeds["prompt_embeds"][..., 1:]}, r"prompt_embeds has shape \(1, tokens, "),
        ((TWO, [[subject], []]), embeds, r"prompt_embeds has shape \(2, tokens, "),
        ((), {**embeds, "prompt_embeds": odd["prompt_embeds"]}, r"embeddings of one shape, got \(1, 40, .*\(1, 77, "),
        ((PROMPT, [subject]), odd, "prompt_embeds of 40 tokens, not a multiple of the tokenizer's 77"),
        ((), {**odd_own, "negative_prompt": "a cat"}, "need token_words for the subjects and negative_prompt_embeds"),
        (
            (PROMPT, [subject]),
            {"token_words": [[2], [3]]},
            r"positions of \[2\] words, the prompts have \[1\] subjects",
        ),
        ((TWO, [[subject], [subject]]), {"token_words": [[2]]}, r"positions of \[1\] words, .* \[1, 1\] subjects"),
        ((PROMPT,), {"token_words": [[2]]}, r"positions of \[1\] words, the prompts have \[0\] subjects"),
        ((PROMPT, [subject]), {"token_words": [[77]]}, r"positions from 0 to 76, at least one a subject, got \[77\]"),
        ((PROMPT, [subject]), {"token_words": [[]]}, "at least one a subject"),
        ((PROMPT, subject), {}, "subjects is a list"),
        ((PROMPT,), {"clip_skip": 3}, f"clip_skip is at most {1 if sdxl else 2} for this text encoder, got 3"),
        ((PROMPT,), {"clip_skip": -1}, "clip_skip must be at least 0, got -1"),
        ((PROMPT,), {"cross_attention_kwargs": {"gligen": 1}}, "cross_attention_kwargs takes scale, .* got gligen"),
    ]
    if sdxl:
        lone = {name: embeds[name] for name in ("prompt_embeds", "negative_prompt_embeds")}
        cases += [
            ((), lone, "prompt_embeds needs pooled_prompt_embeds"),
            ((PROMPT,), {"negative_prompt_embeds": lone["negative_prompt_embeds"]}, "needs negative_pooled_prompt_"),
            ((), {**embeds, "prompt_2": "a"}, "give prompt_2 or prompt_embeds, not both"),
            ((), {**embeds, "negative_prompt_2": "a"}, "give negative_prompt_2 or negative_prompt_embeds, not both"),
            ((PROMPT,), {"prompt_2": ["a", "b"]}, "2 values of prompt_2 for 1 prompts"),
            (
                (TWO,),
                {"pooled_prompt_embeds": embeds["pooled_prompt_embeds"]},
                r"has shape \(2, width of the pooled text",
            ),
        ]
    for arguments, options, message in cases:
        with pytest.raises(ValueError, match=message):
            drawn(pipe, *arguments, **options)


def test_other_lengths_than_the_tokenizer_s(pipe: RealCustomPipeline, stock: Any, picture: Picture) -> None:
    """Embeddings of any length act, where positions and the negative ones are given."""
    odd = {name: each[:, :40] if each.ndim == 3 else each for name, each in embeds_of(stock, PROMPT).items()}
    torch.testing.assert_close(drawn(pipe, **odd), drawn(stock, **odd), rtol=0, atol=1e-5)
    subject = Subject(image=picture(0), word="dog")
    assert not torch.allclose(drawn(pipe, None, [subject], token_words=[[2]], **odd), drawn(pipe, **odd), atol=1e-5)


def test_what_does_nothing_beside_embeddings_warns(pipe: RealCustomPipeline, stock: Any) -> None:
    embeds = embeds_of(stock, PROMPT)
    for option in ({"clip_skip": 1}, {"long_prompt": True}):
        with pytest.warns(UserWarning, match=f"{next(iter(option))} does nothing with prompt_embeds"):
            drawn(pipe, **embeds, **option)


def test_the_weight_of_a_lora(both: tuple[RealCustomPipeline, Any], picture: Picture) -> None:
    """In UNet and text encoders, for one call."""
    pipe, stock = both
    for each in (pipe.diffusers, stock):
        for model in (each.unet, each.text_encoder):
            torch.manual_seed(7)
            model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "q_proj"], init_lora_weights=False))
    whole = drawn(pipe, PROMPT)
    for scale in (0.0, 0.3):
        options: dict[str, Any] = {"cross_attention_kwargs": {"scale": scale}}
        ours = drawn(pipe, PROMPT, **options)
        torch.testing.assert_close(ours, drawn(stock, PROMPT, **options), rtol=0, atol=1e-5)
        assert not torch.allclose(ours, whole, atol=1e-5) and torch.equal(drawn(pipe, PROMPT), whole)
    subject = [Subject(image=picture(0), word="dog")]
    less = drawn(pipe, PROMPT, subject, cross_attention_kwargs={"scale": 0.3})
    assert not torch.allclose(less, drawn(pipe, PROMPT, subject), atol=1e-5)


def test_several_images_of_a_prompt(pipe: RealCustomPipeline, stock: Any, picture: Picture) -> None:
    """Each prompt's embeddings and words go to all its images."""
    subjects = [[Subject(image=picture(0), word="dog")], [Subject(image=picture(1), word="cat")]]
    noise = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    four = drawn(pipe, TWO, subjects, num_images_per_prompt=2, latents=noise, **embeds_of(stock, TWO))
    for at, (prompt, row) in enumerate(zip(TWO, subjects, strict=True)):
        own = slice(2 * at, 2 * at + 2)
        two = drawn(pipe, prompt, row, num_images_per_prompt=2, latents=noise[own])
        torch.testing.assert_close(four[own], two, rtol=0, atol=1e-4)
