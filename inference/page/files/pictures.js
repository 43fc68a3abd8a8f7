// Pictures on their way in: what the server cannot read, or would find too large, is drawn anew as it can.

const READ_BY_SERVER = ["image/png", "image/jpeg", "image/webp"];
const LONGEST_SIDE = 2048; // pixels; the image encoders see far fewer
const MOST_BYTES = 8 * 1024 * 1024;

/** `{blob, key, note}` of a file: `key` is a hash of its bytes, `note` says what was changed. Throws a sentence. */
export async function readPicture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`“${file.name ?? "This"}” is not a picture that this browser can read. Use a PNG, JPEG or WebP file.`);
  }
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && READ_BY_SERVER.includes(file.type) && file.size <= MOST_BYTES) {
    return { blob: file, key: await keyOf(file), note: "" };
  }
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, width, height);
  const kind = file.type === "image/jpeg" ? "image/jpeg" : "image/webp";
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, kind, 0.95));
  return { blob, key: await keyOf(blob), note: `Sent as ${width} × ${height} pixels.` };
}

/** The picture as text for a request. */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** The bytes of base64. */
export function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

/** The picture in base64 of a PNG. */
export function pngOf(base64) {
  return new Blob([bytesOf(base64)], { type: "image/png" });
}

/** A name for a picture in this browser: not a secret, so a short hash does (crypto.subtle needs https). */
async function keyOf(blob) {
  let [a, b] = [0xdeadbeef, 0x41c6ce57];
  for (const byte of new Uint8Array(await blob.arrayBuffer())) {
    a = Math.imul(a ^ byte, 2654435761);
    b = Math.imul(b ^ byte, 1597334677) ^ (a >>> 16);
  }
  return `${blob.size}-${(a >>> 0).toString(16)}${(b >>> 0).toString(16)}`;
}
