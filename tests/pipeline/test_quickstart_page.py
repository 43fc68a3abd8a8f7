"""The quickstart's page in a browser, opened from its file: the slider, the swaps, light and dark, down to a phone's width."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from realcustom.evaluation.statistics import Interval
from realcustom.evaluation.table import Row, Setting
from realcustom.pipeline.chart import loss_svg, measured_svg
from realcustom.pipeline.quickstart import page as quickstart_page
from realcustom.pipeline.quickstart.cases import drawn_cases
from realcustom.pipeline.quickstart.film import Film, Films
from realcustom.pipeline.quickstart.strips import film_content
from realcustom.preprocessing.report.page import Card, Page, Section, around, render
from realcustom.preprocessing.report.pictures import data_uri

CHROMIUM = shutil.which("chromium")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
expect = sync_api.expect
STEPS = 5
Open = Callable[..., Any]


def _picture(shade: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (shade, 80, 255 - shade))


def _film(first: int, masked: bool = True) -> Film:
    masks = [np.full((16, 16), step / STEPS) for step in range(STEPS)] if masked else None
    return Film(frames=[_picture(first + 10 * step) for step in range(STEPS)], masks=masks)


def _films(uid: str) -> Films:
    (case,) = drawn_cases(1)
    return Films(
        case=type(case)(**{**vars(case), "uid": uid}),
        right=_film(0),
        wrong=_film(50),
        right_unmasked=_film(100, masked=False),
        wrong_unmasked=_film(150, masked=False),
        text_alone=_picture(0),
    )


def _row(setting: Setting) -> Row:
    similarity = Interval(mean=0.7, low=0.6, high=0.8)
    return Row(setting=setting, similarity=similarity, background_accuracy=1.0, noun_accuracy=0.9, images=4)


def _content() -> dict[str, Any]:
    """What a run gives the template, of the right shape, with pictures of one colour."""
    uri = data_uri(_picture(9))
    stage = {"in": 9, "kept": 8, "dropped": {"near_duplicate": 1}, "quarantined": {}, "rows_out": 8}
    names = ["ingest", "score", "select", "caption", "subjects", "encode"]
    models = ["detection_recall", "detection_precision", "mask_iou", "caption_accuracy", "plain_noun"]
    models += ["plain_background", "plain_place", "attention_iou"]
    rows = [_row(setting) for setting in Setting]
    prompt = "a picture of a triangle at the bottom on water"
    return {
        "report": {
            "stages": dict.fromkeys(names, stage),
            "models": dict.fromkeys(models, 0.9),
            "training": {"loss_before": 0.2, "loss_after": 0.1, "adapter_sha256": 64 * "a"},
            "table": [row.to_dict() for row in rows],
            "reused": ["corpus"],
            "seconds": {**dict.fromkeys(names, 1.0), "training": 60.0, "total": 200.0},
        },
        "films": [
            film_content(_films("case-0"), "one"),
            film_content(_films("photograph"), "two", "A real photograph."),
        ],
        "request": {**around(prompt, 15, 23), "prompt": prompt, "seed": 1, "reference": uri, "images": [uri] * 3},
        "corpus": {"pictures": 9, "samples": [{"image": uri, "caption": prompt}] * 8},
        "excluded": [{"image": uri, "reason": "tiny image"}, {"image": None, "reason": "torn tar"}] * 3,
        "subjects": [{"image": uri, "subject": uri, **around(prompt, 15, 23)}] * 4,
        "rows": [{**row.to_dict(), "name": row.setting.value.replace("_", " "), "method": False} for row in rows],
        "cases": [{"prompt": prompt, "pictures": {f"the picture {number}": uri for number in range(6)}}] * 2,
        "stage_pages": {name: f"stages/{name}@0/report.html" for name in names},
        "training": {
            "initial_adapter": None,
            "steps": 200,
            "workers": 2,
            "fewest_tokens": 0.2,
            "other_views": 0.1,
            "similarity": measured_svg(
                "similarity", [(100, rows[0].similarity), (200, rows[1].similarity)], [("text alone", 0.3)]
            ),
            "loss": loss_svg([(1, 0.3), (200, 0.2)], [(0, 0.25), (200, 0.2)]),
        },
        "verdict": "In words.",
        "next_steps": [
            {"why": "Draw", "command": ".venv/bin/realcustom generate --adapter " + 9 * "outputs/quickstart/"}
        ],
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    quickstart_page.write_page(folder / "index.html", _content())
    cards = [
        Card(picture=data_uri(_picture(3)), caption=around("a star on grass", 2, 6), scores={"sharpness": "3"})
    ] * 9
    sections = [Section(title="Kept", cards=cards), Section(title="dropped: small", cards=[Card(foot=["1.jpg"])])]
    stage = Page(title="select@0", subtitle="on score@1", account=[("in", 9)], sections=sections)
    (folder / "report.html").write_bytes(render(stage))
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, pages: dict[str, Path]) -> Iterator[Open]:
    """Opens a page from its file; it must ask for nothing else and log no error."""
    contexts, said = [], list[str]()

    def start(name: str = "index", width: int = 1400, scheme: str = "light") -> Any:
        contexts.append(chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        page.goto(pages[name].as_uri())
        return page

    yield start
    for context in contexts:
        context.close()
    assert said == []


def _colour(page: Any, veiled: bool = False) -> tuple[int, ...]:
    """Of the middle of the picture that is being denoised."""
    page.locator("#lay").set_checked(veiled)
    shot = page.locator("#screen").screenshot()
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    return tuple(image.getpixel((image.width // 2, image.height // 2)))  # type: ignore[arg-type]


def test_the_slider_shows_each_step_with_its_mask(open_page: Open) -> None:
    page = open_page()
    expect(page.locator("#says")).to_contain_text(f"Step {STEPS} of {STEPS}, finished: the subject may act in 80 %")
    slider = page.locator("#step")
    slider.focus()
    for step in range(STEPS, 0, -1):
        expect(page.locator("#says")).to_contain_text(f"Step {step} of {STEPS}")
        assert _colour(page) == _picture(10 * (step - 1)).getpixel((0, 0))
        slider.focus()
        page.keyboard.press("ArrowLeft")
    dark, bright = _colour(page, veiled=True), _colour(page)
    assert max(dark) < max(bright) / 2  # the first mask is closed everywhere


def test_keys_and_the_pointer_swap_reference_and_mask_at_the_same_step(open_page: Open) -> None:
    page = open_page()
    last = 10 * (STEPS - 1)
    assert _colour(page) == _picture(last).getpixel((0, 0))
    page.keyboard.press("r")
    assert _colour(page) == _picture(50 + last).getpixel((0, 0))
    expect(page.locator("#which-says")).to_contain_text("wrong reference")
    page.keyboard.press("m")
    assert _colour(page) == _picture(150 + last).getpixel((0, 0))
    expect(page.locator("#says")).to_contain_text("no mask: the subject acts everywhere")
    page.keyboard.press("r")
    assert _colour(page) == _picture(100 + last).getpixel((0, 0))
    page.get_by_text("with the mask", exact=True).hover()  # while the pointer is there
    expect(page.locator("#says")).to_contain_text("the subject may act in")
    page.locator("h1").hover()
    expect(page.locator("#says")).to_contain_text("no mask")
    page.get_by_text("two", exact=True).click()
    expect(page.locator("#note")).to_have_text("A real photograph.")


def test_play_runs_to_the_last_step(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="Play").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    expect(page.locator("#step")).to_have_value(str(STEPS))
    expect(page.get_by_role("button", name="Play")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("name", ["index", "report"])
def test_it_fits_and_can_be_read_by_everyone(open_page: Open, name: str, width: int, scheme: str) -> None:
    page = open_page(name, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    out = "elements => elements.filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    assert page.locator("table, img, svg, pre, .choice label").evaluate_all(out) == []
    found = [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in axe.Axe().run(page).response["violations"]]
    assert found == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_and_bars_stand_out(open_page: Open, scheme: str) -> None:
    """At least 3:1 against what they lie on (WCAG 2, 1.4.11)."""
    page = open_page(scheme=scheme)
    colours = page.evaluate(
        "names => names.map(n => { document.body.style.color = `var(--${n})`; return getComputedStyle(document.body).color })",
        names := ["paper", "wash", "line", "bar", "accent", "soft", "ink"],
    )
    light = {
        name: _luminance([int(n) for n in re.findall(r"\d+", text)]) for name, text in zip(names, colours, strict=True)
    }
    for ground in ("paper", "wash"):
        for name, least in (("line", 3), ("bar", 3), ("accent", 4.5), ("soft", 4.5), ("ink", 7)):
            high, low = sorted((light[ground], light[name]), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= least, (ground, name)


def _luminance(colour: list[int]) -> float:
    shares = [value / 255 for value in colour]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
