// Small helpers for elements and numbers. Text goes in by textContent only: labels, file names and
// the texts of errors may contain anything.

/** Return the element of the page with this id. */
export const byId = (id) => document.getElementById(id);

/** Return a new element with these attributes, and these elements or texts in it. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Return a new SVG element with these attributes. */
export function makeSvg(tag, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, value);
  }
  return element;
}

/** Show `text` in the element, or hide the element if there is none. A text is set only once, so
 * that a screen reader reads it once. */
export function say(element, text) {
  if (element.textContent !== text) {
    element.textContent = text;
  }
  element.hidden = !text;
}

/** Return a share from 0 to 1 as a percentage. */
export const percent = (share) => `${(share * 100).toFixed(share < 0.1 ? 2 : 1)} %`;

/** Return milliseconds with a unit. */
export const milliseconds = (ms) => `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;

/** Return a duration in the largest unit that suits it. */
export function duration(seconds) {
  if (seconds < 90) {
    return `${Math.round(seconds)} s`;
  }
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

/** Return "1 image", "2 images". */
export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

/** Wait; end early with the signal's reason if it is aborted. */
export function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}
