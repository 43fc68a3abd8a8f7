"""The page at `/`, driven as a person does: Debian's Chromium without a window, on a real server over loopback."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from realcustom import config
from realcustom.inference.keys import Key, digest_of
from realcustom.inference.page.routes import FILES
from realcustom.phrases import words_of
from tests.support.slow_steps import slow_steps

CHROMIUM = shutil.which("chromium")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

expect = sync_api.expect
expect.set_options(timeout=20_000)  # milliseconds, on a busy machine
PROMPT = "a cat in the snow"
BYTES = 60_000  # of all the page's files together
SECRET = "alice-has-a-long-key"


def _picture(seed: int = 0) -> dict[str, Any]:
    """A file as a browser's file field takes it."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
    return {"name": f"picture {seed}.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


@pytest.fixture(scope="module")
def running(serve: Callable[..., Any]) -> Any:
    return serve()


@pytest.fixture
def slow(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes a while, so that a person could see it."""
    slow_steps(running.service.engine(), monkeypatch, 0.1)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(chromium: Any, running: Any) -> Iterator[Open]:
    """Opens the page in a browser of its own that reaches this server alone; it must log no error."""
    contexts, said = [], list[str]()

    def start(url: str = running.url, width: int = 1400, scheme: str = "light") -> Any:
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on(
            "request",
            lambda request: said.append(request.url) if not request.url.startswith((url, "blob:", "data:")) else None,
        )
        page.goto(url)
        expect(page.locator("#fields .row").first).to_be_attached()
        return page

    yield start
    for context in contexts:
        context.close()
    provoked = (
        "Failed to load resource: the server responded with a status of 4",
        "Failed to load resource: net::ERR_CONNECTION_REFUSED",
    )
    assert [text for text in said if not text.startswith(provoked)] == []


def _fill(page: Any, steps: int = 4, word: str = "cat") -> None:
    """A picture, a prompt, the word clicked, few steps."""
    page.set_input_files(".card .file", _picture())
    page.fill("#prompt", PROMPT)
    page.click(f"#words >> text='{word}'")
    _set(page, "num_inference_steps", str(steps))


def _set(page: Any, name: str, value: str) -> None:
    page.locator("#settings").evaluate("details => { details.open = true; }")
    page.fill(f"#set-{name}", value)


def _draw(page: Any) -> None:
    page.click("#draw")
    _wait(page)


def _wait(page: Any) -> None:
    expect(page.locator("#progress")).to_be_hidden()


def _overlay(page: Any) -> list[int]:
    """The opacity of every cell of the mask over the image."""
    cells = page.evaluate(
        "() => { const c = document.getElementById('mask'); "
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 3); }"
    )
    return [int(cell) for cell in cells]


def _is_wide(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > innerWidth"))


def _faults(page: Any) -> list[str]:
    """What axe finds that is serious or critical."""
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]


def test_the_files_are_few_and_small_and_come_from_here(running: Any) -> None:
    files = sorted(FILES.iterdir())
    assert sum(file.stat().st_size for file in files) < BYTES
    for file in files:
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        answer = httpx.get(running.url + path)
        assert (answer.status_code, answer.content) == (200, file.read_bytes())
        assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        again = httpx.get(running.url + path, headers={"If-None-Match": f'"other", W/{answer.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert httpx.head(running.url + path).headers["content-length"] == str(len(answer.content))
        if file.suffix in (".html", ".js", ".css"):
            text = file.read_text()
            assert (
                "http://" not in text and "https://" not in text and " style=" not in text and " onclick=" not in text
            )
    html = (FILES / "index.html").read_text()
    assert html.count("<script") == 1 and '<script type="module" src="page/main.js"></script>' in html


@pytest.mark.parametrize(
    "path",
    ["/page", "/page/", "/page/index.html", "/page/../api.py", "/page/%2e%2e/api.py", "/page/..%2froutes.py", "/page//etc/passwd"],
)  # fmt: skip
def test_no_other_file_is_given(running: Any, path: str) -> None:
    assert httpx.get(running.url + path).status_code == 404


@needs_chromium
def test_words_are_those_of_the_server(open_page: Open) -> None:
    page = open_page()
    for prompt in (
        PROMPT,
        "a dog's well-known toy, <this> one; x2 “ÉTÉ” 3.5 été_là -- naïve’s",
        "",
        "一只猫 в снегу",
        "a\nb",
    ):
        parts = page.evaluate("async (text) => (await import('./page/words.js')).partsOf(text)", prompt)
        assert "".join(part["text"] for part in parts) == prompt
        words = [part["text"] for part in parts if part["isWord"]]
        assert list(dict.fromkeys(words)) == words_of(prompt)


@needs_chromium
@pytest.mark.usefixtures("slow")
def test_from_a_picture_to_a_file_and_back(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    _fill(page, steps=8)
    chosen = page.locator("#words .pick", has_text="cat")
    expect(chosen).to_have_attribute("aria-pressed", "true")
    assert page.input_value(".card .word") == "cat"
    page.click("#draw")
    expect(page.locator("#state")).to_have_text("Waiting for the server …")
    expect(page.locator("#state")).to_contain_text("of 8, ")
    expect(page.locator("#mask")).to_be_visible()  # the mask narrows while it is drawn,
    expect(page.locator("#image")).to_be_visible()  # over a preview
    assert page.locator("#progress").is_visible() and page.locator("#download").is_hidden()
    _wait(page)
    assert page.locator("#said").inner_text() == "The image is done."
    expect(page.locator("#mask")).to_be_hidden()  # the image alone, until the slider is moved
    assert page.get_attribute("#step", "max") == "8"
    page.focus("#step")
    page.keyboard.press("Home")
    expect(page.locator("#step-text")).to_have_text("step 1 of 8")
    expect(page.locator("#mask")).to_be_visible()
    first = _overlay(page)
    page.click("#play")
    expect(page.locator("#play")).to_have_attribute("aria-label", "Stop")
    expect(page.locator("#step-text")).to_have_text("step 8 of 8")
    expect(page.locator("#play")).to_have_attribute("aria-label", "Play the steps")
    assert len(set(first)) > 1 and _overlay(page) != first  # it is narrower now, or elsewhere
    with page.expect_download() as download:
        page.click("#download")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    _check_file(page, file)
    _check_restored(open_page(), page, file)


def _check_file(page: Any, file: Path) -> None:
    """The file is a PNG of the image with its settings; another program reads them."""
    with Image.open(file) as image:
        image.load()
        saved = json.loads(image.text["realcustom"])  # type: ignore[attr-defined]
        assert image.size == (32, 32)
    assert saved["request"]["prompt"] == PROMPT and saved["request"]["num_inference_steps"] == 8
    assert f"Seed {saved['request']['seed']}" in page.inner_text("#facts")
    assert [one["word"] for one in saved["subjects"]] == ["cat"] and saved["model"].startswith("realcustom:")
    assert base64.b64encode(_picture()["buffer"]) not in file.read_bytes()


def _check_restored(stranger: Any, page: Any, file: Path) -> None:
    """Dropped on the page, the file brings the words and settings back; the picture where the browser has it."""
    page.reload()
    expect(page.locator("#entries button")).to_have_count(1)
    for one in (page, stranger):
        _drop(one, file)
        expect(one.locator("#notice")).to_contain_text("The words and settings of this file are back.")
        assert one.input_value("#prompt") == PROMPT and one.input_value(".card .word") == "cat"
        assert one.input_value("#set-num_inference_steps") == "8" and one.input_value("#set-seed")
    assert "give it again" in stranger.inner_text("#notice") and "give it again" not in page.inner_text("#notice")
    _draw(page)
    new, old = _pixels(page)
    assert new == old
    stranger.click("#notice >> text=Use it as a picture instead")
    expect(stranger.locator(".card img")).to_be_visible()


def _pixels(page: Any) -> list[list[int]]:
    """The pixels of the images in the history."""
    found = page.evaluate(
        """async () => Promise.all([...document.querySelectorAll('#entries img')].map(async (image) => {
             await image.decode();
             const canvas = document.createElement('canvas');
             canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
             const context = canvas.getContext('2d');
             context.drawImage(image, 0, 0);
             return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
           }))"""
    )
    return [list(map(int, one)) for one in found]


def _drop(page: Any, file: Path, kind: str = "drop") -> None:
    """A file dropped on the page, or pasted."""
    page.evaluate(
        """([text, name, kind]) => {
             const data = new DataTransfer();
             const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
             data.items.add(new File([bytes], name, { type: 'image/png' }));
             const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
             document.body.dispatchEvent(kind === 'drop' ? new DragEvent(kind, options) : new ClipboardEvent(kind, options));
           }""",
        [base64.b64encode(file.read_bytes()).decode(), file.name, kind],
    )


@needs_chromium
def test_pictures_are_dropped_and_pasted(open_page: Open, tmp_path: Path) -> None:
    page = open_page()
    for seed, kind in enumerate(("drop", "paste")):
        file = tmp_path / f"{kind}.png"
        file.write_bytes(_picture(seed)["buffer"])
        _drop(page, file, kind)
        expect(page.locator(".card img:visible")).to_have_count(seed + 1)
    other = tmp_path / "notes.png"
    other.write_text("no picture")
    _drop(page, other)
    expect(page.locator(".card .error:visible")).to_have_text(
        "“notes.png” is not a picture that this browser can read. Use a PNG, JPEG or WebP file."
    )


@needs_chromium
def test_two_pictures_each_with_its_word_and_colour(open_page: Open) -> None:
    page = open_page()
    _fill(page, steps=2)
    page.click("#add")
    page.set_input_files(".card:nth-child(2) .file", _picture(1))
    page.click("#words >> text='snow'")
    cat, snow = (page.locator("#words .pick", has_text=word) for word in ("cat", "snow"))
    colours = [one.evaluate("one => getComputedStyle(one).backgroundColor") for one in (cat, snow)]
    assert colours[0] != colours[1]
    assert colours[1] == page.locator(".card:nth-child(2)").evaluate("one => getComputedStyle(one).borderLeftColor")
    page.fill(".card:nth-child(2) .word", "the  Snow")
    expect(page.locator("#words .chosen")).to_have_count(3)  # words in a row
    _set(page, "n", "2")
    with page.expect_request("**/v1/images/generations") as sent:
        _draw(page)
    assert [one["word"] for one in sent.value.post_data_json["subjects"]] == ["cat", "the  Snow"]
    page.click("#several button:nth-child(2)")
    expect(page.locator("#several button:nth-child(2)")).to_have_attribute("aria-pressed", "true")
    page.click(".card:nth-child(1) .remove")
    assert page.locator(".card").count() == 1 and page.input_value(".card .word") == "the  Snow"


@needs_chromium
def test_side_by_side_without_the_mask_from_the_same_noise(open_page: Open) -> None:
    page = open_page()
    _fill(page)
    with page.expect_request("**/v1/images/generations") as masked:
        _draw(page)
    with page.expect_request("**/v1/images/generations") as unmasked:
        page.click("#compare")
    expect(page.locator("#other")).to_be_visible()
    one, other = masked.value.post_data_json, unmasked.value.post_data_json
    assert other["use_mask"] is False and f"Seed {other['seed']} " in page.inner_text("#facts")
    assert other["subjects"] == one["subjects"] and other["num_inference_steps"] == one["num_inference_steps"]
    left, right = (
        page.locator(name).evaluate("image => [image.naturalWidth, image.src]") for name in ("#image", "#unmasked")
    )
    assert left[0] == right[0] == 32 and left[1] != right[1]
    page.reload()
    page.click("#entries button")
    expect(page.locator("#unmasked")).to_be_visible()  # it is kept with the image


@needs_chromium
@pytest.mark.usefixtures("slow")
def test_cancel_ends_the_work_and_the_next_request_runs(open_page: Open, running: Any) -> None:
    page = open_page()
    _fill(page, steps=100)
    page.click("#draw")
    expect(page.locator("#state")).to_contain_text("of 100")
    page.click("#cancel")
    expect(page.locator("#said")).to_have_text("Cancelled.")
    expect(page.locator("#empty")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "result" and page.locator("#entries button").count() == 0
    deadline = time.monotonic() + 5
    while running.service.engine().jobs and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running.service.engine().jobs == 0
    _set(page, "num_inference_steps", "2")
    _draw(page)
    expect(page.locator("#download")).to_be_visible()


@needs_chromium
def test_errors_are_sentences_beside_their_fields(open_page: Open) -> None:
    page = open_page()
    page.click("#draw")
    _check_error(page, "#prompt", "Write what the image should show.")
    page.fill("#prompt", PROMPT)
    assert page.locator("#prompt-error").is_hidden()
    page.set_input_files(".card .file", _picture())
    page.click("#draw")
    _check_error(page, ".card .word", "Click the word that means the thing in this picture.")
    page.fill(".card .word", "dog")
    page.click("#draw")
    _check_error(page, ".card .word", "The word 'dog' is not in the prompt; its words are: a, cat, in, the, snow")
    page.fill(".card .word", "cat")
    _set(page, "num_inference_steps", "3000")
    page.click("#draw")
    _check_error(page, "#set-num_inference_steps", "3000 is more than this server's limit of 2000.")
    _set(page, "num_inference_steps", "2")
    _set(page, "size", "33x32")
    page.click("#draw")
    _check_error(page, "#set-size", "The width must be a multiple of 2 pixels, got 33.")
    assert page.input_value("#prompt") == PROMPT and page.locator("#empty").is_visible()
    page.click("#defaults")
    assert page.input_value("#set-size") == "" and page.inner_text("#changed") == "(all at their defaults)"


def _check_error(page: Any, field: str, sentence: str) -> None:
    """The sentence is there, its field is named by it and has the focus."""
    expect(page.locator(field)).to_have_attribute("aria-invalid", "true")
    described = page.get_attribute(field, "aria-describedby").split()[0]
    expect(page.locator(f"#{described}")).to_contain_text(sentence)
    expect(page.locator(field)).to_be_focused()


@needs_chromium
def test_a_server_that_is_gone_is_said_and_nothing_is_lost(open_page: Open) -> None:
    page = open_page()
    page.fill("#prompt", PROMPT)
    page.route("**/v1/**", lambda route: route.abort("connectionrefused"))
    with page.expect_event("console"):
        page.click("#draw")
    expect(page.locator("#form-error")).to_contain_text("The server does not answer.")
    assert _faults(page) == [] and page.input_value("#prompt") == PROMPT
    page.unroute("**/v1/**")
    _set(page, "num_inference_steps", "1")
    _draw(page)
    assert page.locator("#form-error").is_hidden()


@needs_chromium
def test_settings_are_those_of_the_document(open_page: Open, running: Any) -> None:
    engine = running.service.engine()
    engine.adapter["settings"] = config.to_dict(engine.pipeline.settings)
    page = open_page()
    document = httpx.get(f"{running.url}/openapi.json").json()
    fields = document["components"]["schemas"]["GenerationRequest"]["properties"]
    shown = [
        one.removeprefix("set-")
        for one in page.eval_on_selector_all("#fields [id^=set-]:not(p)", "all => all.map((one) => one.id)")
    ]
    assert {"n", "seed", "size", "num_inference_steps", "guidance_scale", "influence_scope"} <= set(shown)
    assert not {"quality", "stream", "prompt"} & set(shown)
    for name in shown:
        hint = page.text_content(f"#set-{name}-hint")
        assert fields[name]["description"].replace("`", "").lower() in hint.lower()
    default = f"Default: {engine.pipeline.settings.mask.influence_scope:g}."
    expect(page.locator("#set-influence_scope-hint")).to_contain_text(default)  # of the adapter that is chosen
    page.locator("#settings").evaluate("details => { details.open = true; }")
    page.select_option("#set-model", index=1)
    expect(page.locator("#set-influence_scope-hint")).not_to_contain_text("Default")


@needs_chromium
def test_a_full_server_is_asked_again_and_says_what_is_ahead(
    open_page: Open, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = serve()
    full.service.engine().max_queue = 0
    scheduler = type(full.service.engine().pipeline.scheduler)
    step, gate = scheduler.step, threading.Event()

    def gated(*args: Any, **kwargs: Any) -> Any:
        gate.wait(20)
        return step(*args, **kwargs)

    monkeypatch.setattr(scheduler, "step", gated)
    body = {"prompt": PROMPT, "num_inference_steps": 1}
    other = threading.Thread(
        target=httpx.post, args=(f"{full.url}/v1/images/generations",), kwargs={"json": body, "timeout": 60}
    )
    other.start()
    page = open_page(full.url)
    page.fill("#prompt", PROMPT)
    _set(page, "num_inference_steps", "1")
    while not full.service.engine().jobs:
        time.sleep(0.02)
    page.click("#draw")
    expect(page.locator("#state")).to_contain_text("Trying again in")
    full.service.engine().max_queue = 16
    expect(page.locator("#state")).to_have_text("One request is being served already. Yours may join.")
    gate.set()
    other.join()
    _wait(page)
    expect(page.locator("#download")).to_be_visible()


@needs_chromium
def test_a_key_is_asked_for(open_page: Open, serve: Callable[..., Any], chromium: Any) -> None:
    closed = serve([Key(name="alice", digest=digest_of(SECRET))])
    page = chromium.new_page()
    page.goto(closed.url)
    expect(page.locator("#key-error")).to_have_text("This server asks for a key. Write it here.")
    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type(SECRET)
    page.keyboard.press("Tab")
    expect(page.locator("#fields .row").first).to_be_attached()
    page.fill("#prompt", PROMPT)
    _set(page, "num_inference_steps", "1")
    _draw(page)
    expect(page.locator("#download")).to_be_visible()
    assert SECRET not in json.dumps(page.context.storage_state(indexed_db=True))
    page.close()


@needs_chromium
@pytest.mark.usefixtures("slow")
def test_the_keyboard_alone(open_page: Open) -> None:
    page, choosers = open_page(), list[Any]()
    page.on(
        "filechooser", lambda chooser: choosers.append(chooser)
    )  # from the start: while none listens, the browser opens a window of its own

    def tab_to(selector: str) -> None:
        for _ in range(60):
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not come to {selector}")

    tab_to(".skip")
    tab_to(".card .file")
    page.keyboard.press("Space")
    deadline = time.monotonic() + 20
    while not choosers and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    choosers[0].set_files(_picture())
    expect(page.locator(".card img")).to_be_visible()
    tab_to("#prompt")
    page.keyboard.type(PROMPT)
    tab_to("#words .pick:nth-child(2)")
    page.keyboard.press("Space")
    assert page.input_value(".card .word") == "cat"
    tab_to("summary")
    page.keyboard.press("Enter")
    tab_to("#set-num_inference_steps")
    page.keyboard.type("20")  # time for the Tabs on a busy machine
    page.keyboard.press("Control+Enter")
    expect(page.locator("#state")).to_contain_text("of 20")
    tab_to("#cancel")
    _wait(page)
    expect(page.locator("#result")).to_be_focused()  # where the button was that is gone
    tab_to("#step")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#step-text")).to_have_text("step 19 of 20")
    tab_to("#compare")
    page.keyboard.press("Enter")
    expect(page.locator("#other")).to_be_visible()
    tab_to("#entries button")
    page.keyboard.press("Enter")
    expect(page.locator("#result")).to_be_focused()


@needs_chromium
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_nothing_serious_for_axe_and_no_wider_than_a_phone(open_page: Open, width: int, scheme: str) -> None:
    page = open_page(width=width, scheme=scheme)
    assert _faults(page) == [] and not _is_wide(page)
    page.click("#draw")
    _fill(page, steps=3)
    page.click("#add")
    page.fill(".card:nth-child(2) .word", "dog")
    page.click("#draw")
    expect(page.locator(".card:nth-child(2) .error")).to_be_visible()
    assert _faults(page) == [] and not _is_wide(page)
    page.click(".card:nth-child(2) .remove")
    _set(page, "n", "3")
    _draw(page)
    page.click("#compare")
    expect(page.locator("#other")).to_be_visible()
    page.check("#show-mask")
    page.click("#again")
    assert _faults(page) == [] and not _is_wide(page)


@needs_chromium
def test_earlier_images_are_kept_and_deleted(open_page: Open) -> None:
    page = open_page()
    _fill(page, steps=1)
    _draw(page)
    _draw(page)
    page.reload()
    expect(page.locator("#entries button")).to_have_count(2)
    page.click("#entries button")
    expect(page.locator("#image")).to_be_visible()
    page.click("#again")
    assert page.input_value(".card .word") == "cat" and page.input_value("#set-seed")
    expect(page.locator(".card img")).to_be_visible()
    page.click("#forget")
    expect(page.locator("#entries button")).to_have_count(1)
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#clear")
    expect(page.locator("#past")).to_be_hidden()
    page.reload()
    expect(page.locator("#past")).to_be_hidden()
    stores = page.context.storage_state(indexed_db=True)["origins"]
    assert json.dumps(stores).count("b64") == 0


@needs_chromium
def test_the_example_is_drawn(open_page: Open) -> None:
    page = open_page()
    expect(page.locator("h1 + .lead")).to_contain_text("Give it one picture of a thing")
    page.route("**/v1/images/generations", lambda route: route.continue_(post_data=_with_few_steps(route.request)))
    page.click("#example")
    _wait(page)
    expect(page.locator("#download")).to_be_visible()


def _with_few_steps(request: Any) -> str:
    body = request.post_data_json
    assert body["prompt"] == "a star at the bottom on wood" and body["subjects"][0]["word"] == "star"
    # the tiny models' words
    body |= {"prompt": PROMPT, "num_inference_steps": 2, "subjects": [{**body["subjects"][0], "word": "cat"}]}
    return json.dumps(body)
