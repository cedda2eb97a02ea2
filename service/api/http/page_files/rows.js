// The moving picture of rows and devices. The cells are the rows as they are now. The images of the
// last second are played again: each is a cell that fills, waits and runs, and a dot on its way to
// the device that computed it. So a service that answers in milliseconds can be watched, too.

import { cardName } from "./devices.js";
import { make, makeSvg } from "./dom.js";

const STATES = ["running", "waiting", "filling", "lost", "free"];
const WORDS = {
  running: "on a device",
  waiting: "decoded, waiting",
  filling: "being decoded",
  lost: "lost",
  free: "free",
};
const CELLS = 256;
const CELL = 13;
const STEP = 15;
const MARGIN = 4;
const WIRE = 56;
const BOX = 92;
const DEVICES_SHOWN = 5;
const PLAYED = 40;
const REPLAY_MS = 900;

export class RowsPicture {
  constructor(picture, legend) {
    this.picture = picture;
    this.legend = legend;
    this.cells = [];
    this.nodes = new Map();
    this.narrow = matchMedia("(max-width: 40rem)");
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
  }

  /** Show rows by state, the devices, and the images that each device computed since the last call. */
  update(rows, devices, computed) {
    this.shape(rows.capacity, devices.map(({ device }) => device));
    this.colour(rows);
    for (const { device, state, batches_in_flight: batches } of devices.slice(0, DEVICES_SHOWN)) {
      const node = this.nodes.get(device);
      node.group.dataset.state = state;
      node.group.dataset.busy = String(batches > 0);
    }
    if (!this.still.matches) {
      this.replay(computed);
    }
  }

  /** Draw cells and devices again if their number has changed. */
  shape(capacity, names) {
    const shape = `${capacity} ${names} ${this.narrow.matches}`;
    if (shape === this.drawn) {
      return;
    }
    this.drawn = shape;
    this.rowsPerCell = Math.ceil(capacity / CELLS);
    const number = Math.ceil(capacity / this.rowsPerCell);
    const columns = this.narrow.matches ? 16 : 32;
    this.lines = Math.ceil(number / columns);
    this.right = MARGIN + columns * STEP;
    const shown = names.slice(0, DEVICES_SHOWN);
    const height = Math.max(this.lines * STEP, shown.length * 32) + 2 * MARGIN;
    this.middle = height / 2;
    const width = this.right + WIRE + BOX + MARGIN;
    this.picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.picture.replaceChildren();
    this.cells = Array.from({ length: number }, (_, at) => this.cell(at));
    this.nodes.clear();
    shown.forEach((name, at) =>
      this.nodes.set(name, this.node(name, (height / shown.length) * (at + 0.5))));
  }

  cell(at) {
    const x = MARGIN + Math.floor(at / this.lines) * STEP;
    const y = this.middle + (at % this.lines - this.lines / 2) * STEP;
    const cell = makeSvg("rect", { x, y, width: CELL, height: CELL, rx: 2, class: "cell" });
    this.picture.append(cell);
    return cell;
  }

  node(name, y) {
    const group = makeSvg("g", { class: "node" });
    const [from, to] = [this.right, this.right + WIRE];
    const bend = `${to - 30} ${this.middle} ${from + 20} ${y}`;
    const path = makeSvg("path", { d: `M${from} ${this.middle} C ${bend} ${to} ${y}`, class: "wire" });
    const box = makeSvg("rect", { x: to, y: y - 13, width: BOX, height: 26, rx: 5 });
    const text = makeSvg("text", { x: to + BOX / 2, y: y + 5 });
    text.textContent = cardName(name);
    group.append(path, box, text);
    this.picture.append(group);
    return { group, y };
  }

  colour(rows) {
    // A state with at least one row gets at least one cell.
    const wanted = STATES.slice(0, -1).flatMap((state) =>
      Array(Math.ceil((rows[state] ?? 0) / this.rowsPerCell)).fill(state));
    this.cells.forEach((cell, at) => {
      cell.dataset.state = wanted[at] ?? "free";
    });
    const items = STATES.filter((state) => state !== "lost" || rows.lost);
    const text = items.map((state) => `${rows[state]} ${WORDS[state]}`).join(", ");
    if (text !== this.text) {
      this.text = text;
      this.legend.replaceChildren(...items.map((state) =>
        make("li", { "data-state": state }, make("b", {}, rows[state]), ` ${WORDS[state]}`)));
    }
  }

  replay(computed) {
    const total = [...computed.values()].reduce((sum, images) => sum + images, 0);
    const share = Math.min(1, PLAYED / total);
    for (const [name, images] of computed) {
      const node = this.nodes.get(name);
      for (let played = 0; node && played < images * share; played += 1) {
        this.play(node, Math.random() * (total > 1 ? REPLAY_MS : 1));
      }
    }
  }

  /** Play the way of one image: a cell, and a dot to the device. */
  play(node, delay) {
    const free = this.cells.filter((cell) => cell.dataset.state === "free");
    const cell = free[Math.floor(Math.random() ** 2 * free.length)];
    if (!cell) {
      return;
    }
    const ghost = cell.cloneNode();
    const dot = makeSvg("circle", { r: 5, class: "dot" });
    this.picture.append(ghost, dot);
    ["filling", "waiting", "running"].forEach((state, at) =>
      setTimeout(() => { ghost.dataset.state = state; }, delay + at * 160));
    const x = Number(cell.getAttribute("x")) + CELL / 2;
    const y = Number(cell.getAttribute("y")) + CELL / 2;
    const way = [
      { transform: `translate(${x}px, ${y}px)`, opacity: 0, offset: 0 },
      { opacity: 1, offset: 0.2 },
      { transform: `translate(${this.right}px, ${this.middle}px)`, offset: 0.6 },
      { transform: `translate(${this.right + WIRE}px, ${node.y}px)`, opacity: 1, offset: 1 },
    ];
    const timing = { duration: 620, delay: delay + 320, fill: "backwards", easing: "ease-in-out" };
    dot.animate(way, timing).finished.finally(() => {
      ghost.remove();
      dot.remove();
    });
  }
}
