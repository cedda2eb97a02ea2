// The model's card: what the manifest and the report of its accuracy say.

import { make, percent } from "./dom.js";

const PRECISIONS = {
  force_float32: "float32",
  force_float16: "float16",
  force_bfloat16: "bfloat16",
  qint8_mixed_float16: "int8 with float16",
  qint8_mixed_float32: "int8 with float32",
  qint8_mixed_bfloat16: "int8 with bfloat16",
};

/** Show the facts of a manifest in the list, and its accuracy if it is known. */
export function showModel(list, manifest, accuracy) {
  const facts = [
    ["Name", manifest.name],
    ["Version", manifest.version],
    ["Classes", manifest.output.classes.toLocaleString("en")],
    ["Preprocessing", preprocessing(manifest.preprocessing)],
    ["Precision", `${PRECISIONS[manifest.precision] ?? manifest.precision}: ${manifest.precision_note}`],
    ["Engine", `${manifest.engine}, for ${manifest.target}`],
    ["Batch", batch(manifest.input.batch)],
    ...(accuracy ? accuracies(accuracy) : []),
    ["Source", manifest.source.kind === "onnx" ? "ONNX" : "Caffe"],
  ];
  list.replaceChildren(...facts.map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function preprocessing({ resize, crop: [height, width], resample, inside }) {
  const scaled = `Short side to ${resize} by ${resample}, then the middle ${width} × ${height}`;
  return `${scaled}; ${inside.color.toUpperCase()} in the network`;
}

const batch = ({ min, max }) => (min === max ? `${max} images` : `${min} to ${max} images`);

function accuracies({ top1, top5, images, labels }) {
  const interval = ({ wilson_95: [low, high] }) => `${percent(low)} to ${percent(high)}`;
  const shown = (share) => `${percent(share.accuracy)} (95 %: ${interval(share)})`;
  return [
    ["Top-1", shown(top1)],
    ["Top-5", shown(top5)],
    ["Measured on", `${images.toLocaleString("en")} images of ${labels}`],
  ];
}
