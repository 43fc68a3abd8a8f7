// The form as a request, and a problem as a sentence beside the field that it is about.

import { byId, setError } from "./dom.js";
import { markWords, showWords } from "./words.js";

const prompt = byId("prompt");

/** The prompt, the cards and the settings together. */
export class Form {
  constructor(subjects, settings) {
    this.subjects = subjects;
    this.settings = settings;
    prompt.oninput = () => this.promptChanged();
    this.promptChanged();
  }

  promptChanged() {
    setError(prompt, byId("prompt-error"), "");
    showWords(byId("words"), prompt.value, (word) => this.subjects.choose(word));
    byId("choice").hidden = !prompt.value.trim();
    this.wordsChanged();
  }

  wordsChanged() {
    markWords(byId("words"), this.subjects.words());
  }

  /** `{request, cards}`; null where something is missing, which is then said beside it. */
  read() {
    this.clear();
    if (!prompt.value.trim()) {
      setError(prompt, byId("prompt-error"), "Write what the image should show.");
      prompt.focus();
      return null;
    }
    const cards = this.subjects.filled();
    const values = cards && this.settings.values();
    return values && { request: { prompt: prompt.value, ...values }, cards };
  }

  clear() {
    setError(prompt, byId("prompt-error"), "");
    setError(null, byId("form-error"), "");
  }

  /** Say what the server refused, beside its field where there is one. `cards` are those that were sent. */
  show(problem, cards = []) {
    const [, number, part] = /^subjects\[(\d+)\](?:\.(\w+))?/.exec(problem.param ?? "") ?? [];
    const card = cards[Number(number)];
    if (problem.status === 401) {
      byId("key-row").hidden = false;
      setError(byId("key"), byId("key-error"), "This server asks for a key. Write it here.");
      byId("key").focus();
    } else if (card) {
      const field = part === "word" ? card.word : card.file;
      setError(field, card.error, problem.message);
      field.focus();
    } else if (problem.param === "prompt") {
      setError(prompt, byId("prompt-error"), problem.message);
      prompt.focus();
    } else if (this.settings.has(problem.param)) {
      this.settings.fail(problem.param, problem.message);
    } else {
      setError(null, byId("form-error"), problem.message);
      byId("form-error").scrollIntoView({ block: "nearest" });
    }
  }

  /** Fill in: `subjects` are `[{word, picture}]`. */
  fill({ prompt: text, ...values }, subjects) {
    prompt.value = text;
    this.settings.set(values);
    this.subjects.restore(subjects);
    this.promptChanged();
    this.clear();
  }
}
