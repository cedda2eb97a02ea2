// The requests of this page: POST /classify and GET /model, with the key if there is one.

import { sleep } from "./dom.js";

const STORED_KEY = "topfive.key";
const MAX_ATTEMPTS = 12;
const LONGEST_WAIT_MS = 15_000;
const MODEL_TIMEOUT_MS = 5_000;

/** A request that the service has refused, or that has not reached it (status 0). */
export class Refusal extends Error {
  constructor(status, problem, retryAfterMs = null) {
    super(problem.detail);
    this.status = status;
    this.code = problem.code ?? "";
    this.remedy = problem.remedy ?? "";
    this.retryAfterMs = retryAfterMs;
  }
}

// A browser that stores nothing for this page throws; then the key lasts until the page is left.
let heldKey = "";
try {
  heldKey = sessionStorage.getItem(STORED_KEY) ?? "";
} catch {
  // heldKey stays empty
}

/** Return the key that requests are sent with; empty without one. */
export const currentKey = () => heldKey;

/** Keep `key` for this tab; an empty one is forgotten. */
export function keepKey(key) {
  heldKey = key;
  try {
    if (key) {
      sessionStorage.setItem(STORED_KEY, key);
    } else {
      sessionStorage.removeItem(STORED_KEY);
    }
  } catch {
    // see above
  }
}

/** Return the state of the service. Throw a Refusal. */
export async function modelState() {
  const answer = await send("model", { signal: AbortSignal.timeout(MODEL_TIMEOUT_MS) });
  return body(answer);
}

/**
 * Return the answer for one image file: its predictions, its stages in milliseconds, its batch, its
 * device, and the milliseconds that this browser has waited.
 *
 * While the service is busy, starting or out of reach, the request is sent again; `onWait(refusal,
 * seconds)` is called before each wait. Throw a Refusal, or the reason of `signal`.
 */
export async function classify(file, model, signal, onWait) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await classifyOnce(file, model, signal);
    } catch (error) {
      if (!(error instanceof Refusal) || attempt === MAX_ATTEMPTS || !passes(error)) {
        throw error;
      }
      const ms = Math.min(error.retryAfterMs ?? 500 * 2 ** attempt, LONGEST_WAIT_MS);
      onWait(error, Math.ceil(ms / 1000));
      await sleep(ms, signal);
    }
  }
}

async function classifyOnce(file, model, signal) {
  const path = model ? `classify?model=${encodeURIComponent(model)}` : "classify";
  // The bytes decide the format, so the type of the file is not sent.
  const headers = { "Content-Type": "application/octet-stream" };
  const sentAt = performance.now();
  const answer = await send(path, { method: "POST", headers, body: file, signal });
  const { results: [{ predictions }] } = await body(answer);
  const elapsed = performance.now() - sentAt;
  const timing = serverTiming(answer.headers.get("Server-Timing"));
  return { predictions, elapsed, ...timing };
}

/** Return whether the same request may be answered later. */
const passes = (refusal) => [0, 429, 503, 504].includes(refusal.status);

async function send(path, options) {
  const headers = { ...options.headers, Accept: "application/json" };
  if (heldKey) {
    headers.Authorization = `Bearer ${heldKey}`;
  }
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (options.signal?.aborted && options.signal.reason?.name === "AbortError") {
      throw error;
    }
    throw new Refusal(0, {
      detail: "The service cannot be reached.",
      remedy: "Check the connection, and that the service is running.",
    });
  }
  if (!answer.ok) {
    throw await refusal(answer);
  }
  return answer;
}

async function refusal(answer) {
  // A proxy in between may answer something else than JSON.
  const problem = await answer.json().catch(() => ({}));
  const detail = problem.detail ?? `The service answered ${answer.status}.`;
  const seconds = Number(answer.headers.get("Retry-After"));
  const retryAfterMs = problem.retry_after_ms ?? (seconds > 0 ? seconds * 1000 : null);
  return new Refusal(answer.status, { ...problem, detail }, retryAfterMs);
}

async function body(answer) {
  try {
    return await answer.json();
  } catch {
    throw new Refusal(0, {
      detail: "The answer did not arrive as a whole.",
      remedy: "Try again.",
    });
  }
}

/** Return the stages of a Server-Timing header, in its order, with the batch and the device. */
function serverTiming(header) {
  const timing = { stages: [], total: null, batch: null, device: null };
  for (const entry of (header ?? "").split(",")) {
    const [, name, parameter, value] = entry.match(/^\s*([\w-]+);(dur|desc)="?([^"]*)"?/) ?? [];
    if (parameter === "desc") {
      timing[name] = value;
    } else if (name === "total") {
      timing.total = Number(value);
    } else if (name) {
      timing.stages.push({ name, ms: Number(value) });
    }
  }
  return timing;
}
