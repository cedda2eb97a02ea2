// The state of the service, read once a second while the page is seen. After a failure the pauses
// grow, and the page shows that the connection is lost.

import { modelState } from "./service.js";

const INTERVAL_MS = 1_000;
const LONGEST_MS = 10_000;

/**
 * Read the state again and again. `onState(state)` is called with each, `onFailure(refusal, seconds)`
 * with the seconds until the next attempt. Return a function that reads at once, for example after
 * an answer or when there is a new key.
 */
export function watch(onState, onFailure) {
  let timer = 0;
  let failures = 0;
  let reading = false;

  async function read() {
    clearTimeout(timer);
    if (reading || document.hidden) {
      return;
    }
    reading = true;
    let pause = INTERVAL_MS;
    try {
      const state = await modelState();
      failures = 0;
      onState(state);
    } catch (error) {
      pause = Math.min(error.retryAfterMs ?? INTERVAL_MS * 2 ** failures, LONGEST_MS);
      failures += 1;
      onFailure(error, Math.ceil(pause / 1000));
      if (error.status === 401 || error.status === 403) {
        pause = Infinity; // only another key changes this
      }
    }
    reading = false;
    if (pause < Infinity) {
      timer = setTimeout(read, pause);
    }
  }

  document.addEventListener("visibilitychange", read);
  window.addEventListener("online", read);
  read();
  return read;
}
