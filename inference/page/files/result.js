// The result: progress, the image, and the masks of its steps over it.

import { byId, make, say, showImage, urlOf } from "./dom.js";
import { pngOf } from "./pictures.js";

const PLAY_SECONDS = 3;
const DARK = 0.68; // how far the image is darkened where no subject acts
const TINT = 0.3; // how much of a subject's colour lies where it acts

const [view, state, bar, slider, showMask] = ["view", "state", "bar", "step", "show-mask"].map(byId);

/** Shows one drawing: while it is made, and when it is done. */
export class Result {
  constructor() {
    this.entry = null;
    this.index = 0;
    this.timer = 0;
    showMask.onchange = () => this.drawMask();
    slider.oninput = () => {
      this.stop();
      showMask.checked = true;
      this.drawMask();
    };
    byId("play").onclick = () => (this.timer ? this.stop() : this.play());
  }

  /** An entry that is being drawn. */
  begin(entry) {
    this.entry = entry;
    this.index = 0;
    showMask.checked = true;
    this.render();
    byId("result-actions").hidden = true;
    const section = byId("result");
    if (section.getBoundingClientRect().top > innerHeight / 2) section.scrollIntoView(); // on a phone it is below the form
  }

  /** Progress of a drawing that has no steps to show yet. */
  waiting(text) {
    byId("progress").hidden = false;
    bar.removeAttribute("value");
    if (!state.textContent) say(text);
    state.textContent = text;
  }

  /** An event of the stream: progress, and of the image and its masks what there is so far. */
  take(event) {
    this.takeProgress(event);
    if (event.type.endsWith(".partial_image")) {
      this.entry.images[event.image_index] = pngOf(event.b64_json);
      this.render();
    }
    for (const one of event.masks ?? []) {
      (this.entry.masks[one.image] ??= []).push(one.masks.map((mask) => mask.b64_json));
    }
    if (event.masks) {
      slider.max = slider.value = this.entry.masks[this.index].length;
      byId("masks").hidden = false;
      this.drawMask();
    }
  }

  /** Progress alone, of the place in the queue and of the steps. */
  takeProgress({ type, ahead, step, of, seconds_left: left }) {
    if (type === "realcustom.queued" && ahead) {
      this.waiting(`${ahead === 1 ? "One request is" : `${ahead} requests are`} being served already. Yours may join.`);
    }
    if (type !== "realcustom.step") return;
    bar.max = of;
    bar.value = step;
    state.textContent = `Step ${step} of ${of}${left ? `, ${left < 1 ? "less than a second" : `about ${duration(left)}`} left` : ""}`;
    if (step === Math.round(of / 2)) say(`Half of ${of} steps are done.`);
  }

  /** The drawing is done, or ended: show this one, and tell a screen reader. */
  finish(entry, text) {
    this.show(entry);
    say(text);
  }

  /** Show a drawing that is done; null: none. */
  show(entry) {
    this.stop();
    this.entry = entry;
    this.index = 0;
    byId("progress").hidden = true;
    state.textContent = "";
    showMask.checked = false;
    byId("result-actions").hidden = false;
    this.render();
  }

  render() {
    const { entry, index } = this;
    byId("empty").hidden = entry !== null;
    view.hidden = entry === null;
    byId("result-title").textContent = entry ? "Result" : "How it works";
    if (entry === null) return;
    showImage(byId("image"), entry.images[index], entry.request.prompt);
    const unmasked = entry.unmasked?.[index];
    byId("other").hidden = !unmasked;
    byId("figures").classList.toggle("two", Boolean(unmasked));
    showImage(byId("unmasked"), unmasked, `${entry.request.prompt}, drawn without the mask`);
    byId("caption").textContent = unmasked ? `With the mask: “${entry.request.prompt}”` : `“${entry.request.prompt}”`;
    byId("facts").textContent = factsOf(entry, index);
    byId("compare").hidden = !entry.subjects.length || Boolean(entry.unmasked);
    const steps = entry.masks[index]?.length ?? 0;
    byId("masks").hidden = !steps;
    slider.max = slider.value = Math.max(1, steps);
    const done = entry.seeds.length > 0;
    if (done) Object.assign(byId("download"), { href: urlOf(entry.images[index]), download: nameOf(entry, index) });
    this.showSeveral();
    this.drawMask();
  }

  showSeveral() {
    const { images } = this.entry;
    byId("several").hidden = images.length < 2;
    const buttons = images.map((blob, i) => {
      const image = showImage(make("img"), blob, "");
      const choose = () => ((this.index = i), this.render(), byId("several").children[i].focus());
      const button = make("button", { type: "button", ariaLabel: `Image ${i + 1}`, onclick: choose }, image);
      button.setAttribute("aria-pressed", i === this.index);
      return button;
    });
    byId("several").replaceChildren(...buttons);
  }

  play() {
    const steps = Number(slider.max);
    showMask.checked = true;
    if (Number(slider.value) === steps) slider.value = 1;
    const next = () => {
      this.drawMask();
      if (Number(slider.value) === steps) this.stop();
      else slider.value = Number(slider.value) + 1;
    };
    this.timer = setInterval(next, Math.max(60, (PLAY_SECONDS * 1000) / steps));
    this.labelPlay("❚❚", "Stop");
    next();
  }

  stop() {
    clearInterval(this.timer);
    this.timer = 0;
    this.labelPlay("▶", "Play the steps");
  }

  labelPlay(sign, name) {
    byId("play").textContent = sign;
    byId("play").setAttribute("aria-label", name);
  }

  async drawMask() {
    const canvas = byId("mask");
    const steps = this.entry?.masks[this.index] ?? [];
    const step = Number(slider.value);
    byId("step-text").textContent = `step ${step} of ${steps.length}`;
    canvas.hidden = !showMask.checked || !steps.length;
    if (canvas.hidden) return;
    const wanted = steps[step - 1];
    const masks = await Promise.all(wanted.map(pixelsOf));
    if (wanted === (this.entry?.masks[this.index] ?? [])[Number(slider.value) - 1]) paint(canvas, masks);
  }
}

/** A mask's grey values, and its size. */
async function pixelsOf(base64) {
  const bitmap = await createImageBitmap(pngOf(base64));
  const { width, height } = bitmap;
  const context = Object.assign(document.createElement("canvas"), { width, height }).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  return { width, height, data: context.getImageData(0, 0, width, height).data };
}

/** Darken where no mask is, and lay each subject's colour where its mask is. */
function paint(canvas, masks) {
  const { width, height } = masks[0];
  Object.assign(canvas, { width, height });
  const style = getComputedStyle(canvas);
  const colours = masks.map((_, i) => rgb(style.getPropertyValue(`--colour-${i % 4}`).trim()));
  const image = new ImageData(width, height);
  for (let at = 0; at < image.data.length; at += 4) {
    const here = masks.map((mask) => mask.data[at] / 255);
    const tint = TINT * Math.max(...here);
    const alpha = tint + DARK * (1 - Math.max(...here));
    const total = here.reduce((sum, value) => sum + value, 0) || 1;
    for (let channel = 0; channel < 3; channel++) {
      const colour = here.reduce((sum, value, i) => sum + (value / total) * colours[i][channel], 0);
      image.data[at + channel] = (colour * tint) / alpha;
    }
    image.data[at + 3] = alpha * 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function duration(seconds) {
  return seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`;
}

function factsOf(entry, index) {
  if (!entry.seeds.length) return "";
  const size = entry.size.replace("x", " × ");
  return `Seed ${entry.seeds[index]} · ${size} pixels · ${entry.steps} steps · ${entry.seconds.toFixed(1)} s`;
}

function nameOf(entry, index) {
  const words = entry.request.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  return `${[...words.slice(0, 6), entry.seeds[index]].join("-")}.png`;
}
