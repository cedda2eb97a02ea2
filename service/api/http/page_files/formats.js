// What the service would refuse for a known reason is explained before it is sent.

import { Refusal } from "./service.js";

const HEIC_BRANDS = /^(hei[cfmsx]|hev[cmsx]|mif1|msf1)$/;
const AVIF_BRANDS = /^avi[fs]$/;
const PHONE_PHOTO = {
  detail: "This photo is in HEIC, the format of iPhones, which the service does not read.",
  remedy:
    "Export it as JPEG and choose that file. For new photos: Settings > Camera > Formats > " +
    "Most Compatible.",
};

/** Throw a Refusal if the service would refuse `file` for its format, or its size above `maxBytes`. */
export async function check(file, maxBytes) {
  const head = new Uint8Array(await file.slice(0, 32).arrayBuffer());
  const format = formatOf(head, file.name);
  if (format === "HEIC") {
    throw new Refusal(415, PHONE_PHOTO);
  }
  if (format === "AVIF") {
    throw new Refusal(415, {
      detail: "This image is in AVIF, which the service does not read.",
      remedy: "Export it as JPEG, PNG or WebP and choose that file.",
    });
  }
  if (format === "a video") {
    throw new Refusal(415, { detail: "This file is a video.", remedy: "Choose an image." });
  }
  if (file.size === 0) {
    throw new Refusal(400, { detail: "This file is empty.", remedy: "Choose another one." });
  }
  if (file.size > maxBytes) {
    const [size, most] = [file.size, maxBytes].map((bytes) => (bytes / 2 ** 20).toFixed(1));
    throw new Refusal(413, {
      detail: `This file has ${size} MiB, and the service takes up to ${most} MiB.`,
      remedy: "Save it smaller, for example as JPEG. Half the width and height is plenty.",
    });
  }
}

/** Return the format by the first bytes, or by the name if the bytes are no known image. */
function formatOf(head, name) {
  const text = String.fromCharCode(...head);
  if (text.slice(4, 8) === "ftyp") {
    const brands = [text.slice(8, 12), ...(text.slice(16).match(/.{4}/gs) ?? [])];
    if (brands.some((brand) => AVIF_BRANDS.test(brand))) {
      return "AVIF";
    }
    return brands.some((brand) => HEIC_BRANDS.test(brand)) ? "HEIC" : "a video";
  }
  const known = /^(\xff\xd8\xff|\x89PNG|RIFF....WEBP|BM|GIF8)/s.test(text);
  return !known && /\.hei[cf]$/i.test(name) ? "HEIC" : "";
}
