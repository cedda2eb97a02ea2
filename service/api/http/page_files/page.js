// The page of a topfive service: images in, labels out, and the state of the service.

import { byId, make, say } from "./dom.js";
import { DeviceList, readiness } from "./devices.js";
import { check } from "./formats.js";
import { watch } from "./live.js";
import { showModel } from "./model.js";
import { Card, summary } from "./results.js";
import { RowsPicture } from "./rows.js";
import { classify, currentKey, keepKey, Refusal } from "./service.js";
import { Snippets } from "./snippets.js";

// A browser has six connections to a host, and one of them is for the state.
const IN_FLIGHT = 5;
const MOST_IMAGES = 100;
const UNREADY = {
  starting: "The service is starting. Images that you choose now are answered when it is ready.",
  no_device: "No device is ready. The service is starting one again, and answers then.",
  draining: "The service is stopping. It answers what it has accepted.",
};

const deviceList = new DeviceList(byId("devices"));
const rowsPicture = new RowsPicture(byId("rows"), byId("rows-legend"));
const snippets = new Snippets();
let chosenModel = "";
let shownVersion = "";
let maxBytes = Infinity;
let run = null;

// Images in, answers out.

/** Classify these files in place of those on the page. */
async function classifyAll(files) {
  const images = files.slice(0, MOST_IMAGES);
  if (!images.length) {
    return;
  }
  endRun();
  run = new AbortController();
  const { signal } = run;
  const urls = images.map((file) => URL.createObjectURL(file));
  signal.addEventListener("abort", () => urls.forEach((url) => URL.revokeObjectURL(url)));
  const cards = images.map((file, at) => new Card(file.name || "image", urls[at]));
  const counts = { answered: 0, failed: 0, waiting: images.length };
  showCards(cards, files.length - images.length);

  const show = (sentence) => {
    byId("results-summary").textContent =
      images.length === 1 ? "" : summary(counts.answered, counts.failed, counts.waiting);
    if (images.length === 1 || !counts.waiting) {
      byId("spoken").textContent = images.length === 1 ? sentence : byId("results-summary").textContent;
    }
  };
  const queue = images.map((file, at) => [file, cards[at]]);
  const work = async () => {
    for (let next = queue.shift(); next && !signal.aborted; next = queue.shift()) {
      const sentence = await answerOne(...next, images.length === 1, signal, counts);
      if (!signal.aborted) {
        counts.waiting -= 1;
        show(sentence);
      }
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, work));
  readSoon();
}

/** Classify one file and show the outcome; return it as a sentence. */
async function answerOne(file, card, alone, signal, counts) {
  try {
    card.wait("Sending");
    await check(file, maxBytes);
    const found = await classify(file, chosenModel, signal, (refusal, seconds) => {
      card.wait(`${refusal.message} Trying again in ${seconds} s.`);
    });
    counts.answered += 1;
    return card.answer(found, alone);
  } catch (error) {
    if (signal.aborted) {
      return "";
    }
    counts.failed += 1;
    if (error.status === 401) {
      askForKey(error);
    }
    return card.fail(error instanceof Refusal ? error : unexpected(error));
  }
}

/** Return a Refusal for what no part of the page has expected, such as a file that was deleted. */
function unexpected(error) {
  console.error(error);
  return new Refusal(0, { detail: `The browser cannot read or send it: ${error.message}`,
    remedy: "Choose the file again." });
}

function showCards(cards, left) {
  const results = byId("results");
  byId("cards").replaceChildren(...cards.map((card) => card.element));
  byId("cards").dataset.count = cards.length === 1 ? "one" : "several";
  byId("results-title").textContent = cards.length === 1 ? "Answer" : "Answers";
  byId("results-summary").textContent = "";
  byId("spoken").textContent = "";
  if (left) {
    byId("cards").append(make("p", { class: "message" },
      `${left} more were left out: choose at most ${MOST_IMAGES} at a time.`));
  }
  results.hidden = false;
  document.body.classList.add("asked");
  results.scrollIntoView({ block: "nearest" });
}

function endRun() {
  run?.abort(new DOMException("Other images were chosen.", "AbortError"));
  run = null;
}

function clear() {
  endRun();
  byId("results").hidden = true;
  byId("cards").replaceChildren();
  document.body.classList.remove("asked");
  byId("choose").focus();
}

// The ways in: choose, photograph, drop, paste, a sample.

for (const input of [byId("choose"), byId("photograph")]) {
  input.addEventListener("change", () => {
    classifyAll([...input.files]);
    input.value = "";
  });
}

for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", async () => {
    const name = button.dataset.sample;
    const answer = await fetch(`page/${name}`, { cache: "force-cache" }).catch(() => null);
    if (answer?.ok) {
      classifyAll([new File([await answer.blob()], name)]);
    }
  });
}

// A camera without a touch screen is no phone's; there the file dialog is enough.
byId("camera").hidden = navigator.maxTouchPoints === 0;

const hasFiles = (transfer) => transfer?.types.includes("Files");
window.addEventListener("dragover", (event) => {
  if (hasFiles(event.dataTransfer)) {
    event.preventDefault();
    byId("zone").classList.add("dragging");
  }
});
window.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) {
    byId("zone").classList.remove("dragging");
  }
});
window.addEventListener("drop", (event) => {
  byId("zone").classList.remove("dragging");
  if (hasFiles(event.dataTransfer)) {
    event.preventDefault();
    classifyAll([...event.dataTransfer.files]);
  }
});
window.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) {
    event.preventDefault();
    classifyAll(files);
  }
});
byId("clear").addEventListener("click", clear);

// The state of the service.

function showState(state) {
  say(byId("connection-notice"), "");
  byId("key-form").hidden = true;
  byId("forget-key").hidden = !currentKey();
  maxBytes = state.statistics.bodies.max_body_bytes;
  const keys = state.access?.keys ?? false;
  say(byId("access-notice"), !keys && state.access?.public
    ? "Everyone who reaches this address can use the service. With --keys-file its operator can require keys."
    : "");
  byId("metrics-link").hidden = keys || (state.access?.apart ?? false);

  const several = state.models.length > 1;
  const served = chosen(state.models, state.model?.name);
  chosenModel = several && served ? served.name : "";
  showChoice(state.models, served);
  snippets.update(chosenModel, keys);
  const devices = served?.statistics?.devices ?? [];
  const ready = state.ready || (served?.ready && !state.reason);
  showPill(ready ? "ready" : state.reason || "no_device", devices);
  const unready = served?.ready && state.reason !== "draining" ? "" : UNREADY[state.reason] ?? "";
  say(byId("service-notice"), unready || (served && !served.manifest ? served.reason : ""));
  if (!served?.manifest) {
    return;
  }
  if (shownVersion !== `${served.name} ${served.version}`) {
    shownVersion = `${served.name} ${served.version}`;
    deviceList.clear();
    showModel(byId("model"), served.manifest, served.accuracy);
  }
  const computed = deviceList.update(devices);
  rowsPicture.update(served.statistics.rows, devices, computed);
}

/** Return the model to show: the chosen one, the default one, or the first that is served. */
function chosen(models, defaultName) {
  const named = (name) => models.find((each) => each.name === name);
  return named(chosenModel) ?? named(defaultName) ?? models.find(({ manifest }) => manifest)
    ?? models[0];
}

function showChoice(models, served) {
  const names = models.map(({ name }) => name);
  const select = byId("model-name");
  byId("model-choice").hidden = names.length < 2;
  if ([...select.options].map(({ value }) => value).join() !== names.join()) {
    select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  }
  if (served && document.activeElement !== select) {
    select.value = served.name;
  }
}

function showPill(state, devices) {
  const words = { ready: "Ready", starting: "Starting", no_device: "No device", draining: "Stopping",
    lost: "Connection lost", key: "Key needed" };
  const pill = byId("state");
  pill.dataset.state = state;
  say(pill, devices.length ? `${words[state]} · ${readiness(devices)}` : words[state]);
}

function showFailure(refusal, seconds) {
  if (refusal.status === 401 || refusal.status === 403) {
    askForKey(refusal);
    return;
  }
  const lost = `Connection lost. Trying again in ${seconds} s.`;
  const refused = `${refusal.message} ${refusal.remedy ?? ""} Trying again in ${seconds} s.`;
  say(byId("connection-notice"), refusal.status ? refused : lost);
  showPill("lost", []);
}

function askForKey(refusal) {
  showPill("key", []);
  say(byId("connection-notice"), "");
  byId("metrics-link").hidden = true;
  byId("key-form").hidden = false;
  byId("forget-key").hidden = !currentKey();
  if (currentKey()) {
    say(byId("key-why"), `${refusal.message} ${refusal.remedy}`);
  }
  snippets.update(chosenModel, true);
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(byId("key").value.trim());
  byId("key").value = "";
  readSoon();
});
byId("forget-key").addEventListener("click", () => {
  keepKey("");
  byId("forget-key").hidden = true;
  readSoon();
});
byId("model-name").addEventListener("change", () => {
  chosenModel = byId("model-name").value;
  readSoon();
});

const readSoon = watch(showState, showFailure);
