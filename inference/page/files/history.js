// What was drawn, and the pictures it was drawn with, kept in this browser (IndexedDB).

import { byId, make, showImage } from "./dom.js";

const MOST = 40; // drawings; older ones go

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Drawings by key, the newest last. Where the browser keeps nothing, they live as long as the page. */
export class History {
  constructor({ onChoose }) {
    this.onChoose = onChoose;
    this.entries = new Map();
    this.pictures = new Map();
    this.store = null;
    byId("clear").onclick = () => {
      if (confirm("Delete all images that this browser keeps of this page?")) this.remove([...this.entries.keys()]);
    };
  }

  async open() {
    try {
      const opening = indexedDB.open("realcustom", 1);
      opening.onupgradeneeded = () => {
        opening.result.createObjectStore("entries", { keyPath: "key" });
        opening.result.createObjectStore("pictures", { keyPath: "key" });
      };
      this.store = await settled(opening);
      const [entries, pictures] = this.stores("readonly");
      const found = await Promise.all([settled(entries.getAll()), settled(pictures.getAll())]);
      found[0].sort((a, b) => a.key - b.key).forEach((entry) => this.entries.set(entry.key, entry));
      found[1].forEach((picture) => this.pictures.set(picture.key, picture));
    } catch {
      this.lose();
    }
    this.show();
  }

  stores(mode) {
    const transaction = this.store.transaction(["entries", "pictures"], mode);
    return ["entries", "pictures"].map((name) => transaction.objectStore(name));
  }

  lose() {
    this.store = null;
    byId("past-hint").textContent = "This browser keeps nothing of this page (or has no room): these end with the page.";
  }

  /** Keep a drawing, or what changed of it, and the pictures it was drawn with. */
  async keep(entry, pictures = []) {
    this.entries.set(entry.key, entry);
    for (const picture of pictures) this.pictures.set(picture.key, picture);
    try {
      const [entries, kept] = this.store ? this.stores("readwrite") : [];
      pictures.forEach((picture) => kept?.put(picture));
      if (entries) await settled(entries.put(entry));
    } catch {
      this.lose();
    }
    const old = [...this.entries.keys()].slice(0, -MOST);
    await this.remove(old);
  }

  async remove(keys) {
    keys.forEach((key) => this.entries.delete(key));
    const used = new Set([...this.entries.values()].flatMap((entry) => entry.subjects.map(({ picture }) => picture)));
    const unused = [...this.pictures.keys()].filter((key) => !used.has(key));
    unused.forEach((key) => this.pictures.delete(key));
    if (this.store && (keys.length || unused.length)) {
      const [entries, pictures] = this.stores("readwrite");
      keys.forEach((key) => entries.delete(key));
      unused.forEach((key) => pictures.delete(key));
    }
    this.show();
  }

  show() {
    byId("past").hidden = !this.entries.size;
    const items = [...this.entries.values()].reverse().map((entry) => {
      const image = showImage(make("img"), entry.images[0], entry.request.prompt);
      const open = make("button", { type: "button", title: entry.request.prompt, onclick: () => this.onChoose(entry) }, image);
      return make("li", {}, open);
    });
    byId("entries").replaceChildren(...items);
  }
}
