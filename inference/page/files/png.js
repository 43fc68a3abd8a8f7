// The settings inside a PNG: a tEXt chunk of JSON, in ASCII.

const KEYWORD = "realcustom";
const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const HEADER_END = 33; // the signature, and the chunk IHDR that comes first

/** A PNG of these bytes with `settings` written behind its header. */
export function withSettings(bytes, settings) {
  const json = JSON.stringify(settings).replace(/[^\x20-\x7e]/g, (letter) => {
    return `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
  const text = new TextEncoder().encode(`tEXt${KEYWORD}\0${json}`);
  const chunk = new Uint8Array(text.length + 8);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, text.length - 4);
  chunk.set(text, 4);
  view.setUint32(text.length + 4, checksum(text));
  return new Blob([bytes.slice(0, HEADER_END), chunk, bytes.slice(HEADER_END)], { type: "image/png" });
}

/** The settings in a file's bytes; null where there are none. */
export function settingsIn(bytes) {
  if (!SIGNATURE.every((byte, i) => bytes[i] === byte)) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const text = latin(bytes.subarray(at + 4, at + 8 + length));
    if (text.startsWith(`tEXt${KEYWORD}\0`)) return parsed(text.slice(KEYWORD.length + 5));
    at += length + 12;
  }
  return null;
}

function parsed(json) {
  try {
    const settings = JSON.parse(json);
    const whole = typeof settings.request?.prompt === "string" && Array.isArray(settings.subjects);
    return whole && settings.subjects.every((one) => typeof one?.word === "string") ? settings : null;
  } catch {
    return null;
  }
}

function latin(bytes) {
  return bytes.length > 1e6 ? "" : new TextDecoder("latin1").decode(bytes);
}

/** CRC-32 as PNG has it. */
function checksum(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  return ~crc >>> 0;
}
