// The page: what happens when.

import { Problem, draw, getJson, setKey } from "./client.js";
import { byId, make, setError } from "./dom.js";
import { Form } from "./form.js";
import { History } from "./history.js";
import { bytesOf, dataUrl, pngOf } from "./pictures.js";
import { settingsIn, withSettings } from "./png.js";
import { Result } from "./result.js";
import { Settings } from "./settings.js";
import { Subjects } from "./subjects.js";

const PREVIEWS = 3; // of each image; the server gives no more
const EXAMPLE = { prompt: "a star at the bottom on wood", word: "star", picture: "page/example-subject.png" };

let running = null; // an AbortController while something is drawn
const subjects = new Subjects({ onChange: () => form.wordsChanged(), onFile: takeFile });
const settings = new Settings();
const form = new Form(subjects, settings);
const result = new Result();
const history_ = new History({ onChoose: choose });

/** Draw what the form says. */
async function drawForm() {
  const asked = running ? null : form.read();
  if (!asked) return;
  const { request, cards } = asked;
  const pictures = cards.map((card) => card.picture);
  const named = cards.map((card) => ({ word: card.word.value.trim(), picture: card.picture.key }));
  const entry = { key: Date.now(), request, subjects: named, images: [], masks: [], seeds: [], unmasked: null, steps: 0 };
  await run(cards, async (signal) => {
    result.begin(entry);
    const onEvent = (event) => {
      entry.steps = event.of ?? entry.steps;
      result.take(event);
    };
    const sent = { ...request, partial_images: PREVIEWS, mask_every: 1, subjects: await sentSubjects(named, pictures) };
    complete(entry, await draw(sent, { signal, onEvent, onWait }));
    await history_.keep(entry, pictures);
    result.finish(entry, entry.images.length > 1 ? `Done: ${entry.images.length} images.` : "The image is done.");
  });
}

/** Draw the same once more without the mask, from the same noise. */
async function drawUnmasked() {
  const { entry } = result;
  if (running) return;
  const pictures = entry.subjects.map(({ picture }) => history_.pictures.get(picture));
  await run([], async (signal) => {
    if (pictures.includes(undefined)) throw new Problem("The picture of this result is no longer in this browser.");
    const onEvent = (event) => result.takeProgress(event);
    const same = { ...entry.request, seed: entry.seeds[0], model: entry.model, use_mask: false };
    const done = await draw({ ...same, subjects: await sentSubjects(entry.subjects, pictures) }, { signal, onEvent, onWait });
    entry.unmasked = done.map((event) => pngOf(event.b64_json));
    await history_.keep(entry);
    result.finish(entry, "Both images are there, side by side.");
  });
}

/** One drawing at a time: with its button to cancel, and its problems as sentences. */
async function run(cards, work) {
  const { entry } = result;
  running = new AbortController();
  result.waiting("Waiting for the server …");
  const { signal } = running;
  setRunning(true);
  try {
    await work(signal);
  } catch (error) {
    result.finish(entry, signal.aborted ? "Cancelled." : "");
    if (signal.aborted) return;
    if (!(error instanceof Problem)) throw error;
    form.show(error, cards);
  } finally {
    running = null;
    setRunning(false);
  }
}

function setRunning(on) {
  const { activeElement: focused } = document;
  byId("draw").setAttribute("aria-disabled", on);
  byId("past").inert = byId("result-actions").inert = on;
  if (on && byId("result").contains(focused)) byId("cancel").focus();
  if (!on && (focused === byId("cancel") || focused === document.body)) byId("result").focus({ preventScroll: true });
}

function onWait(problem, seconds) {
  result.waiting(`${problem.message} Trying again in ${seconds} s.`);
}

function sentSubjects(named, pictures) {
  return Promise.all(named.map(async ({ word }, i) => ({ word, image: await dataUrl(pictures[i].blob) })));
}

/** Fill an entry in from the events of its images; each image's file holds its own settings. */
function complete(entry, done) {
  const { model, adapter, size, usage } = done[0];
  Object.assign(entry, { model, adapter, size, seconds: usage.seconds, seeds: done.map((event) => event.seed) });
  entry.images = done.map((event) => {
    const { n: _, ...request } = { ...entry.request, seed: event.seed };
    return withSettings(bytesOf(event.b64_json), { request, subjects: entry.subjects, model, adapter });
  });
}

/** A file that was dropped, pasted or chosen: settings that this page wrote, or a picture. */
async function takeFile(file, card) {
  const saved = settingsIn(new Uint8Array(await file.arrayBuffer()));
  notice("");
  if (!saved) return subjects.take(file, card);
  const asPicture = make("button", { type: "button", className: "quiet", textContent: "Use it as a picture instead" });
  asPicture.onclick = () => (notice(""), subjects.take(file));
  restore(saved, "The words and settings of this file are back.", asPicture);
}

/** Fill the form in as a drawing was made. */
function restore({ request, subjects: named }, text, ...more) {
  const found = named.map(({ word, picture }) => ({ word, picture: history_.pictures.get(picture) ?? null }));
  form.fill(request, found);
  const lost = found.some(({ picture }) => !picture);
  notice(lost ? `${text} Its picture is not in this browser: give it again. ` : `${text} `, ...more);
}

function notice(text, ...more) {
  byId("notice").replaceChildren(text, ...more);
  byId("notice").hidden = !text;
}

function choose(entry) {
  result.show(entry);
  byId("result").focus({ preventScroll: true });
  byId("result").scrollIntoView({ block: "nearest" });
}

async function tryExample() {
  if (running) return;
  const blob = await (await fetch(EXAMPLE.picture)).blob();
  form.fill({ prompt: EXAMPLE.prompt }, [{ word: EXAMPLE.word, picture: null }]);
  await subjects.take(blob, subjects.cards[0]);
  await drawForm();
}

/** What the server has: its settings, and the models to choose among. */
async function start() {
  try {
    const [document_, adapters, models] = await Promise.all(["openapi.json", "v1/adapters", "v1/models"].map(getJson));
    const flat = ({ settings: sections = {} }) => Object.assign({}, ...Object.values(sections)); // names of knobs are unique
    const defaults = new Map(adapters.data.map((adapter) => [adapter.model ?? `realcustom:${adapter.id}`, flat(adapter)]));
    settings.build(document_, models.data.map((model) => model.id), defaults);
    if (!adapters.data.length) notice("This server has no adapter: it draws your words alone, and takes no pictures.");
    setError(null, byId("form-error"), "");
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status === 401) return form.show(error);
    setError(null, byId("form-error"), error.message);
    setTimeout(start, 1000 * (error.retryAfter ?? 10));
  }
}

byId("form").onsubmit = (event) => (event.preventDefault(), drawForm());
byId("form").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) drawForm();
};
byId("cancel").onclick = () => running?.abort();
byId("compare").onclick = drawUnmasked;
byId("again").onclick = () => {
  restore(oneOf(result.entry), "These are the words and settings of that image, its seed too: clear it for other images.");
};
byId("forget").onclick = () => (history_.remove([result.entry.key]), result.show(null));
byId("example").onclick = tryExample;
byId("key").onchange = () => {
  setKey(byId("key").value);
  setError(byId("key"), byId("key-error"), "");
  if (!settings.inputs.size) start();
};

/** The settings that draw the image that is shown. */
function oneOf({ request, subjects: named, seeds }) {
  const { n: _, ...one } = request;
  return { request: { ...one, seed: seeds[result.index] }, subjects: named };
}

const hasFiles = (event) => event.dataTransfer.types.includes("Files");
document.ondragover = (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dragging");
};
document.ondragleave = (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
};
document.ondrop = async (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  document.body.classList.remove("dragging");
  const card = subjects.cards.find(({ root }) => root.contains(event.target));
  const files = [...event.dataTransfer.files];
  for (const file of files) await takeFile(file, file === files[0] ? card : undefined);
};
document.onpaste = (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) event.preventDefault(), takeFile(file);
};

await Promise.all([history_.open(), start()]);
