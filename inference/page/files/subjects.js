// The cards: each is a picture and its word.

import { byId, setError, showImage } from "./dom.js";
import { readPicture } from "./pictures.js";

const list = byId("cards");
const MOST = 4; // colours that are told apart; a server may allow fewer, and then says so

/** The cards on the page. `onChange` is called after every change, `onFile(file, card)` decides what a file is. */
export class Subjects {
  constructor({ onChange, onFile }) {
    this.onChange = onChange;
    this.onFile = onFile;
    this.cards = [];
    this.active = null;
    byId("add").onclick = () => this.add().file.focus();
    this.add();
  }

  add() {
    const root = byId("card").content.firstElementChild.cloneNode(true);
    const find = (name) => root.querySelector(name);
    const card = {
      root, picture: null,
      file: find(".file"), word: find(".word"), error: find(".error"), ask: find(".ask"),
    };
    card.word.oninput = () => this.changed(card);
    card.file.onchange = () => (card.file.files[0] && this.onFile(card.file.files[0], card), (card.file.value = ""));
    root.addEventListener("focusin", () => (this.active = card));
    find(".remove").onclick = () => this.remove(card);
    this.cards.push(card);
    this.active = card;
    list.append(root);
    this.number();
    return card;
  }

  remove(card) {
    this.cards = this.cards.filter((one) => one !== card);
    card.root.remove();
    if (!this.cards.length) this.add();
    this.active = this.cards.at(-1);
    this.number();
    this.active.file.focus();
    this.onChange();
  }

  /** Colours, names and what can be removed follow the cards' order. */
  number() {
    this.cards.forEach((card, i) => {
      card.root.className = `card colour-${i}`;
      const remove = card.root.querySelector(".remove");
      card.file.setAttribute("aria-label", `${card.ask.textContent} (picture ${i + 1})`);
      card.word.setAttribute("aria-label", `Its word (picture ${i + 1})`);
      remove.setAttribute("aria-label", `Remove picture ${i + 1}`);
      remove.hidden = this.cards.length === 1 && !card.picture && !card.word.value;
    });
    byId("add").hidden = this.cards.length === MOST || !this.cards[0].picture;
  }

  changed(card) {
    setError(card.word, card.error, "");
    setError(card.file, card.error, "");
    this.number();
    this.onChange();
  }

  /** Read a file into a card; without one, into the first that has no picture, or a new one. */
  async take(file, card = this.cards.find((one) => !one.picture)) {
    card ??= this.cards.length < MOST ? this.add() : this.active;
    try {
      this.show(card, await readPicture(file));
    } catch (error) {
      setError(card.file, card.error, error.message);
      card.file.focus();
    }
  }

  show(card, picture) {
    card.picture = picture;
    showImage(card.root.querySelector("img"), picture.blob, "The picture you gave");
    card.ask.textContent = "Change";
    const note = card.root.querySelector(".size");
    note.textContent = picture.note;
    note.hidden = !picture.note;
    this.changed(card);
  }

  /** Give the word to a card: away from the one that has it, else to one without a word, else to the active one. */
  choose(word) {
    const has = this.cards.find((card) => card.word.value.toLowerCase() === word.toLowerCase());
    const card = has ?? this.cards.find((one) => !one.word.value.trim()) ?? this.active;
    card.word.value = has ? "" : word;
    this.changed(card);
  }

  words() {
    return this.cards.map((card) => card.word.value);
  }

  /** The cards that are filled in. Says beside a card what it lacks, and then returns null. */
  filled() {
    const used = this.cards.filter((card) => card.picture || card.word.value.trim());
    for (const card of used) {
      if (card.picture && card.word.value.trim()) continue;
      const [field, sentence] = card.picture
        ? [card.word, "Click the word that means the thing in this picture."]
        : [card.file, `Give a picture of “${card.word.value.trim()}”, or clear its word.`];
      setError(field, card.error, sentence);
      field.focus();
      return null;
    }
    return used;
  }

  /** Cards as they were: `[{word, picture}]`, a picture of null is still to be given. */
  restore(subjects) {
    for (const card of this.cards) card.root.remove();
    this.cards = [];
    for (const { word, picture } of subjects.length ? subjects.slice(0, MOST) : [{ word: "", picture: null }]) {
      const card = this.add();
      card.word.value = word;
      if (picture) this.show(card, picture);
    }
    this.number();
    this.onChange();
  }
}
