// The devices of a model as they are now: state, rate, last check, last failure.

import { count, duration, make, makeSvg, say } from "./dom.js";

const SECONDS_SHOWN = 60;
const STATES = {
  starting: "starting",
  proving: "in its self-test",
  ready: "ready",
  failed: "failed",
  waiting: "will start again",
  quarantined: "in quarantine",
  stopped: "stopped",
};
const REASONS = {
  crashed: "its process ended",
  hung: "it did not answer in time",
  wrong_answer: "it answered the golden rows incorrectly",
  driver: "its driver reported an error",
  artifact: "it cannot serve this artifact",
};

/** The list of the devices. */
export class DeviceList {
  constructor(list) {
    this.list = list;
    this.lines = new Map();
  }

  /** Forget the devices, for those of another model. */
  clear() {
    this.lines.clear();
    this.list.replaceChildren();
  }

  /** Show the devices' statistics; return the images that each has computed since the last call. */
  update(devices) {
    const names = devices.map(({ device }) => device);
    if (names.join() !== [...this.lines.keys()].join()) {
      this.clear();
      for (const name of names) {
        const line = new DeviceLine(name);
        this.lines.set(name, line);
        this.list.append(line.element);
      }
    }
    return new Map(devices.map((each) => [each.device, this.lines.get(each.device).update(each)]));
  }
}

class DeviceLine {
  constructor(name) {
    this.rates = [];
    this.seen = null;
    this.state = make("span", { class: "device-state" });
    this.rate = make("span", { class: "rate" });
    this.peak = make("span", { class: "muted peak" });
    this.engine = make("p", { class: "muted engine" });
    this.check = make("p", { class: "muted" });
    this.failure = make("p", { class: "failure" });
    this.curve = makeSvg("polyline", { points: "" });
    const chart = makeSvg("svg", {
      class: "curve", viewBox: `0 0 ${SECONDS_SHOWN} 20`, preserveAspectRatio: "none",
      "aria-hidden": "true",
    });
    chart.append(this.curve);
    const title = make("strong", {}, cardName(name));
    const head = make("p", { class: "device-head" }, title, this.state, this.rate, this.peak);
    this.element = make("li", {}, head, chart, this.engine, this.check, this.failure);
  }

  /** Show the statistics of /model; return the images computed since the last call. */
  update(now) {
    const at = performance.now();
    const images = this.seen ? Math.max(0, now.images - this.seen.images) : 0;
    const seconds = this.seen ? (at - this.seen.at) / 1000 : 1;
    this.seen = { images: now.images, at };
    // A reading soon after an answer is not a second later, and would make one image a high rate.
    this.rates.push(images / Math.max(seconds, 1));
    this.rates.splice(0, this.rates.length - SECONDS_SHOWN);

    this.element.dataset.state = now.state;
    say(this.state, STATES[now.state] ?? now.state);
    const peak = Math.max(...this.rates).toFixed(0);
    say(this.rate, `${this.rates.at(-1).toFixed(0)} images/s`);
    say(this.peak, `at most ${peak} in the last minute`);
    say(this.engine, now.engine);
    say(this.check, checked(now.last_check));
    say(this.failure, failed(now.last_failure));
    this.draw();
    return images;
  }

  draw() {
    const highest = Math.max(4, ...this.rates);
    const first = SECONDS_SHOWN - this.rates.length;
    const points = this.rates.map((rate, at) => `${first + at},${19 - (rate / highest) * 17}`);
    this.curve.setAttribute("points", points.join(" "));
  }
}

function checked(check) {
  if (!check) {
    return "No self-test has been passed yet.";
  }
  const kind = check.kind === "probe" ? "Probe with a golden row" : "Self-test";
  return `${kind} passed ${duration(check.seconds_ago)} ago.`;
}

function failed(failure) {
  if (!failure) {
    return "";
  }
  const reason = REASONS[failure.reason] ?? failure.reason;
  return `Failed ${duration(failure.seconds_ago)} ago: ${reason}.`;
}

/** Return the name for people: the devices of cards are numbers. */
export const cardName = (name) => (/^\d+$/.test(name) ? `card ${name}` : name);

/** Return how many devices are ready, in words. */
export function readiness(devices) {
  const ready = devices.filter(({ state }) => state === "ready").length;
  return `${ready} of ${count(devices.length, "device")}`;
}
