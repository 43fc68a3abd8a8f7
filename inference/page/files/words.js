// The words of the prompt as buttons. The rule is the server's: `words_of` in realcustom/words.py.

import { make } from "./dom.js";

const WORD = /<[^<>\s]+>|[\p{L}\p{N}\p{M}]+(?:[-'’][\p{L}\p{N}\p{M}]+)*/gu;

/** The prompt's parts in order: words, and what stands between them. */
export function partsOf(prompt) {
  const parts = [];
  let end = 0;
  for (const found of prompt.matchAll(WORD)) {
    if (found.index > end) parts.push({ text: prompt.slice(end, found.index), isWord: false });
    parts.push({ text: found[0], isWord: true });
    end = found.index + found[0].length;
  }
  if (end < prompt.length) parts.push({ text: prompt.slice(end), isWord: false });
  return parts;
}

/** The numbers of the words, counted among words, that are part of this phrase somewhere. */
export function placesOf(words, phrase) {
  const wanted = fold(phrase).match(WORD) ?? [];
  const places = new Set();
  for (let start = 0; wanted.length && start + wanted.length <= words.length; start++) {
    if (wanted.every((word, i) => fold(words[start + i]) === word)) wanted.forEach((_, i) => places.add(start + i));
  }
  return places;
}

function fold(text) {
  return text.normalize("NFC").toLowerCase();
}

/** Fill `place` with the prompt, each word a button that calls `choose(word)`. */
export function showWords(place, prompt, choose) {
  const parts = partsOf(prompt).map(({ text, isWord }) =>
    isWord ? make("button", { type: "button", className: "pick", textContent: text, onclick: () => choose(text) }) : text,
  );
  place.replaceChildren(...parts);
}

/** Mark each word with the number of the subject that it belongs to. */
export function markWords(place, phrases) {
  const buttons = [...place.querySelectorAll(".pick")];
  const words = buttons.map((button) => button.textContent);
  const places = phrases.map((phrase) => placesOf(words, phrase));
  buttons.forEach((button, i) => {
    const subject = places.findIndex((one) => one.has(i));
    button.className = subject < 0 ? "pick" : `pick chosen colour-${subject % 4}`;
    button.setAttribute("aria-pressed", subject >= 0);
    button.title = subject < 0 ? "" : `picture ${subject + 1}`;
  });
}
