// The settings, made from the server's own document: names, types, limits and a line each.

import { byId, make, setError } from "./dom.js";

// what the page sets itself, or has no use for
const NOT_SHOWN = new Set([
  "prompt", "subjects", "stream", "partial_images", "mask_every", "step_events", "return_masks", "use_mask",
  "response_format", "output_format", "output_compression", "deadline_seconds",
]);

/** The settings on the page. */
export class Settings {
  constructor() {
    this.inputs = new Map();
    byId("fields").oninput = (event) => this.changed(event.target);
    byId("defaults").onclick = () => this.set({});
  }

  /** Make the fields. `models` are the names that a request can choose, `defaults` an adapter's settings by such a name. */
  build(document_, models, defaults) {
    this.document = document_.components.schemas.GenerationRequest.properties;
    this.defaultsOf = (model) => defaults.get(model || models[0]) ?? {};
    for (const [name, field] of Object.entries(this.document)) {
      const type = field.anyOf?.find((one) => one.type !== "null") ?? field;
      if (NOT_SHOWN.has(name) || !type.type) continue; // without a type: accepted, and does nothing
      if (name === "model" && models.length < 2) continue;
      const input = name === "model" ? choiceOf(models) : inputOf(type, field.default);
      input.id = `set-${name}`;
      this.inputs.set(name, input);
      byId("fields").append(rowOf(name, input));
    }
    this.describe();
    this.count();
  }

  /** Each setting's line, with its default in the model that is chosen. */
  describe() {
    const chosen = this.defaultsOf(this.inputs.get("model")?.value);
    for (const [name, input] of this.inputs) {
      const standard = name === "model" || input.type === "checkbox" ? null : this.document[name].default ?? chosen[name];
      if (input.type !== "checkbox") input.placeholder = standard ?? "";
      const line = (this.document[name].description ?? "").replaceAll("`", "");
      const text = line.charAt(0).toUpperCase() + line.slice(1) + (standard == null ? "" : `. Default: ${standard}`);
      byId(`${input.id}-hint`).textContent = `${text}.`;
    }
  }

  /** The settings that are not left at their defaults. Says beside a field what is no number, and then returns null. */
  values() {
    const values = {};
    for (const [name, input] of this.inputs) {
      if (input.validity.badInput) {
        this.fail(name, "This is not a number.");
        return null;
      }
      if (input.type === "checkbox") {
        if (input.checked !== input.defaultChecked) values[name] = input.checked;
      } else if (input.value.trim()) {
        values[name] = input.type === "number" ? Number(input.value) : input.value.trim();
      }
    }
    return values;
  }

  set(values) {
    for (const [name, input] of this.inputs) {
      if (input.type === "checkbox") input.checked = values[name] ?? input.defaultChecked;
      else input.value = values[name] ?? "";
      this.changed(input);
    }
  }

  has(name) {
    return this.inputs.has(name);
  }

  fail(name, sentence) {
    const input = this.inputs.get(name);
    byId("settings").open = true;
    setError(input, byId(`${input.id}-error`), sentence);
    input.setAttribute("aria-describedby", `${input.id}-error ${input.id}-hint`);
    input.focus();
  }

  changed(input) {
    setError(input, byId(`${input.id}-error`), "");
    input.setAttribute("aria-describedby", `${input.id}-hint`);
    if (input === this.inputs.get("model")) this.describe();
    this.count();
  }

  count() {
    const number = [...this.inputs.values()].filter((input) =>
      input.type === "checkbox" ? input.checked !== input.defaultChecked : input.value || input.validity.badInput,
    ).length;
    byId("changed").textContent = number ? `(${number} changed)` : "(all at their defaults)";
    byId("defaults").hidden = !number;
  }
}

function inputOf(type, standard) {
  if (type.type === "boolean") return make("input", { type: "checkbox", defaultChecked: standard === true });
  if (type.type === "string") return make("input", { type: "text", autocomplete: "off" });
  const input = make("input", { type: "number", step: type.type === "integer" ? "1" : "any" });
  if (type.minimum !== undefined) input.min = type.minimum;
  if (type.maximum !== undefined) input.max = type.maximum;
  return input;
}

function choiceOf(models) {
  const optionOf = (id, i) => make("option", { value: i ? id : "", textContent: id }); // the first is that of no name
  return make("select", {}, ...models.map(optionOf));
}

function rowOf(name, input) {
  const words = name.replaceAll("_", " ");
  const label = make("label", { htmlFor: input.id, textContent: words.charAt(0).toUpperCase() + words.slice(1) });
  const hint = make("p", { className: "hint", id: `${input.id}-hint` });
  input.setAttribute("aria-describedby", hint.id);
  const className = input.type === "number" || input.type === "checkbox" ? "row" : "row wide";
  const error = make("p", { className: "error", id: `${input.id}-error`, hidden: true });
  return make("div", { className }, label, input, hint, error);
}
