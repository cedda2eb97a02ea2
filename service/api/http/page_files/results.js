// The cards of the answers: an image, its five labels as bars, and the stages of this very answer.

import { count, make, milliseconds, percent, say } from "./dom.js";

// The order of Server-Timing, in words for people.
const STAGES = {
  receive: "the file arrives",
  decode: "file to pixels",
  queue: "waits for its batch",
  copy_in: "pixels to the device",
  compute: "the network",
  copy_out: "probabilities back",
  encode: "the answer is written",
};

/** A card for one image file, which shows what happens to it. */
export class Card {
  /** `url` is an object URL of the file, or null if the browser shall not show it. */
  constructor(name, url) {
    this.name = name;
    this.element = make("article", { class: "card waiting", "aria-label": name });
    this.message = make("p", { class: "message" }, "Waiting");
    this.body = make("div", { class: "card-body" }, make("p", { class: "file" }, name), this.message);
    this.element.append(photo(url), this.body);
  }

  /** Show what the file waits for. */
  wait(text) {
    say(this.message, text);
  }

  /** Show the answer; return a sentence about it. */
  answer(found, open) {
    const best = found.predictions[0];
    this.element.classList.remove("waiting");
    this.element.dataset.outcome = "answered";
    this.message.replaceWith(bars(found.predictions));
    this.element.append(stages(found, open));
    return `${this.name}: ${best.label}, ${percent(best.score)}.`;
  }

  /** Show why there is no answer, and what to do; return the same as a sentence. */
  fail(refusal) {
    this.element.classList.remove("waiting");
    this.element.dataset.outcome = "failed";
    const remedy = make("span", { class: "remedy" }, refusal.remedy);
    this.message.replaceChildren(make("strong", {}, refusal.message), " ", remedy);
    return `${this.name}: ${refusal.message} ${refusal.remedy}`;
  }
}

/** Return the image, or a place for one that the browser cannot show. */
function photo(url) {
  const frame = make("div", { class: "photo" });
  const missing = () => frame.replaceChildren(make("span", { class: "muted" }, "No preview"));
  if (!url) {
    missing();
    return frame;
  }
  const image = make("img", { src: url, alt: "" });
  image.addEventListener("error", missing);
  frame.append(image);
  return frame;
}

function bars(predictions) {
  const list = make("ol", { class: "bars" });
  for (const { label, score, wnid } of predictions) {
    const bar = make("span", { class: "bar", "aria-hidden": "true" }, make("span"));
    bar.style.setProperty("--share", score);
    const name = make("span", { class: "label", title: [label, wnid].join(" ").trim() }, label);
    list.append(make("li", {}, name, make("span", { class: "score" }, percent(score)), bar));
  }
  return list;
}

/** Return the waterfall of the stages, in a part that can be opened. */
function stages(found, open) {
  const part = make("details", { class: "stages" });
  part.open = open;
  part.append(make("summary", {}, headline(found)));
  if (!found.stages.length) {
    const off = "This service does not report its stages (its setting server_timing is off).";
    part.append(make("p", { class: "muted" }, off));
    return part;
  }
  const table = make("table", {}, make("caption", { class: "visually-hidden" }, "Stages"));
  const body = make("tbody");
  const whole = Math.max(found.total, 0.1);
  let begin = 0;
  for (const { name, ms } of found.stages) {
    const note = name === "compute" ? placed(found) : (STAGES[name] ?? "");
    body.append(row(name.replace("_", " "), note, ms, begin / whole, ms / whole));
    begin += ms;
  }
  const rest = Math.max(0, found.total - begin);
  body.append(row("hand-overs", "between the stages", rest, begin / whole, rest / whole, "rest"));
  table.append(body);
  const way = Math.max(0, found.elapsed - found.total);
  const sum = `${milliseconds(found.total)} in the service, and ${milliseconds(way)} on the way ` +
    "and in this browser.";
  part.append(table, make("p", { class: "muted sum" }, sum));
  return part;
}

function row(name, note, ms, begin, share, kind = "") {
  const bar = make("span", { class: "span", "aria-hidden": "true" });
  bar.style.setProperty("--begin", Math.min(begin, 1));
  bar.style.setProperty("--share", Math.min(share, 1 - Math.min(begin, 1)));
  const head = make("th", { scope: "row" }, name, make("small", {}, note));
  const cells = [make("td", { class: "track" }, bar), make("td", { class: "ms" }, milliseconds(ms))];
  return make("tr", { class: kind }, head, ...cells);
}

const placed = ({ device, batch }) => `on ${device}, in a batch of ${batch}`;

function headline(found) {
  const parts = [`Answered in ${milliseconds(found.elapsed)}`];
  if (found.device) {
    parts.push(found.device, `batch of ${found.batch}`);
  }
  return parts.join(" · ");
}

/** Return a sentence about all answers. */
export function summary(answered, failed, waiting) {
  const parts = [`${count(answered, "image")} answered`];
  if (failed) {
    parts.push(`${failed} not answered`);
  }
  if (waiting) {
    parts.push(`${waiting} to come`);
  }
  return `${parts.join(", ")}.`;
}
