// Small helpers for elements, and sentences of error beside their fields.

export const byId = (id) => document.getElementById(id);

/** A new element with properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Say what is wrong with a field (null: with no single one) in the element beside it; an empty sentence takes it back. */
export function setError(field, place, sentence) {
  place.textContent = sentence;
  place.hidden = !sentence;
  place.id ||= `error-${Math.random().toString(36).slice(2)}`;
  if (!field) return;
  if (sentence) {
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", place.id);
  } else if (field.getAttribute("aria-invalid")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-describedby");
  }
}

/** Tell a screen reader, without moving anything. */
export function say(text) {
  byId("said").textContent = text;
}

/** Show a picture; one of few pixels keeps them sharp. */
export function showImage(image, blob, alt) {
  image.hidden = !blob;
  image.alt = blob ? alt : "";
  image.onload = () => image.classList.toggle("tiny", image.naturalWidth <= 128);
  if (blob) image.src = urlOf(blob);
  return image;
}

const urls = new WeakMap();

/** The address of a blob, the same each time. */
export function urlOf(blob) {
  if (!urls.has(blob)) urls.set(blob, URL.createObjectURL(blob));
  return urls.get(blob);
}
