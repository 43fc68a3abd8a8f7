// The server's HTTP interface: JSON, the stream of a drawing, and errors as sentences.

/** What went wrong, as a sentence. `param` is the field of the request at fault, `retryAfter` are seconds. */
export class Problem extends Error {
  constructor(message, { status = 0, kind = "", param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, kind, param, retryAfter });
  }
}

let key = "";

/** The bearer key of every further request; it is kept in this page's memory alone. */
export function setKey(value) {
  key = value.trim();
}

/** The JSON at this address. */
export async function getJson(path) {
  return (await reach(path, {})).json();
}

/**
 * Draw. A server that is full or still loading is asked again when it says so.
 * `watch` has `signal` (ends it), `onEvent(event)` and `onWait(problem, seconds)`. Returns one event for each image.
 */
export async function draw(body, watch) {
  for (;;) {
    try {
      return await drawOnce(body, watch);
    } catch (error) {
      if (!(error instanceof Problem) || error.retryAfter === null) throw error;
      for (let left = error.retryAfter; left > 0; left--) {
        watch.onWait(error, left);
        await pause(1000, watch.signal);
      }
    }
  }
}

async function drawOnce(body, { signal, onEvent }) {
  const id = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(36)).join("");
  const cancel = () => reach(`v1/requests/${id}`, { method: "DELETE", keepalive: true }).catch(() => {});
  signal.addEventListener("abort", cancel);
  try {
    const headers = { "Content-Type": "application/json", "X-Request-Id": id };
    const options = { method: "POST", body: JSON.stringify({ ...body, stream: true }), headers, signal };
    const done = [];
    for await (const event of events(await reach("v1/images/generations", options))) {
      if (event.error) throw problemOf(event.error);
      if (event.type.endsWith(".completed")) done.push(event);
      else onEvent(event);
    }
    if (!done.length) throw new Problem("The connection ended before the image was done. Try again.");
    return done;
  } finally {
    signal.removeEventListener("abort", cancel);
  }
}

/** The data of each server-sent event. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Problem("The connection to the server broke off. Try again.");
    });
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6)); // else a comment that keeps the connection open
    }
  }
}

async function reach(path, options) {
  const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer. Check that it runs, then try again; nothing you wrote is lost.");
  }
  if (answer.ok) return answer;
  const retryAfter = answer.headers.has("Retry-After") ? Number(answer.headers.get("Retry-After")) || 1 : null;
  const said = await answer.json().catch(() => ({}));
  const error = said.error ?? { message: `The server answered with status ${answer.status}. Try again.` };
  throw problemOf(error, { status: answer.status, retryAfter });
}

function problemOf({ type, message, param }, more = {}) {
  const bare = param && message.startsWith(`${param}: `) ? message.slice(param.length + 2) : message;
  const sentence = bare.charAt(0).toUpperCase() + bare.slice(1);
  return new Problem(/[.!?)]$/.test(sentence) ? sentence : `${sentence}.`, { kind: type, param, ...more });
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}
