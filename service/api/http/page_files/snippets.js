// How a program asks this service: the same request with curl, Python and JavaScript.

import { byId } from "./dom.js";

const KEY_NOTE = "Put your key into the variable TOPFIVE_KEY. The page never shows it.";

const TEXTS = {
  curl: ({ url, keys }) => [
    "curl --data-binary @photo.jpg \\",
    "  -H 'Content-Type: image/jpeg' \\",
    ...(keys ? ['  -H "Authorization: Bearer $TOPFIVE_KEY" \\'] : []),
    `  '${url}'`,
  ],
  python: ({ url, keys }) => [
    ...(keys ? ["import os", ""] : []),
    "import httpx",
    "",
    'with open("photo.jpg", "rb") as photo:',
    "    answer = httpx.post(",
    `        "${url}",`,
    "        content=photo.read(),",
    '        headers={',
    '            "Content-Type": "image/jpeg",',
    ...(keys ? ['            "Authorization": f"Bearer {os.environ[\'TOPFIVE_KEY\']}",'] : []),
    "        },",
    "    )",
    "answer.raise_for_status()",
    'for each in answer.json()["results"][0]["predictions"]:',
    "    print(f\"{each['score']:.4f}  {each['label']}\")",
  ],
  javascript: ({ url, keys }) => [
    'import { readFile } from "node:fs/promises";',
    "",
    `const answer = await fetch("${url}", {`,
    '  method: "POST",',
    "  headers: {",
    '    "Content-Type": "image/jpeg",',
    ...(keys ? ["    Authorization: `Bearer ${process.env.TOPFIVE_KEY}`,"] : []),
    "  },",
    '  body: await readFile("photo.jpg"),',
    "});",
    "if (!answer.ok) throw new Error(await answer.text());",
    "const { results } = await answer.json();",
    "for (const { label, score } of results[0].predictions) {",
    "  console.log(score.toFixed(4), label);",
    "}",
  ],
};
const NOTES = {
  curl: "",
  python: "Install httpx with pip.",
  javascript: "For Node 18 or newer, as a file that ends in .mjs. A page sends a File as the body.",
};

/** The tabs of the snippets. */
export class Snippets {
  constructor() {
    this.tabs = [...byId("tabs").children];
    this.facts = { model: "", keys: false };
    for (const tab of this.tabs) {
      tab.addEventListener("click", () => this.select(tab));
      tab.addEventListener("keydown", (event) => this.move(event));
    }
    byId("copy").addEventListener("click", () => this.copy());
    this.select(this.tabs[0]);
  }

  /** Show the snippets for `model`, which is empty if the service has one, and with a key or not. */
  update(model, keys) {
    if (model !== this.facts.model || keys !== this.facts.keys) {
      this.facts = { model, keys };
      this.show();
    }
  }

  select(tab) {
    for (const each of this.tabs) {
      each.setAttribute("aria-selected", String(each === tab));
      each.tabIndex = each === tab ? 0 : -1;
    }
    this.tab = tab;
    byId("snippet").setAttribute("aria-labelledby", tab.id);
    this.show();
  }

  move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) {
      const at = (this.tabs.indexOf(this.tab) + step + this.tabs.length) % this.tabs.length;
      this.select(this.tabs[at]);
      this.tab.focus();
      event.preventDefault();
    }
  }

  show() {
    const name = this.tab.dataset.snippet;
    const url = new URL("classify", location.origin + location.pathname);
    if (this.facts.model) {
      url.searchParams.set("model", this.facts.model);
    }
    byId("snippet-text").textContent = TEXTS[name]({ url: url.href, keys: this.facts.keys }).join("\n");
    byId("snippet-note").textContent = [NOTES[name], this.facts.keys ? KEY_NOTE : ""].join(" ").trim();
    byId("copied").textContent = "";
  }

  async copy() {
    const text = byId("snippet-text").textContent;
    let copied = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Without TLS a browser has no clipboard for a page of another machine.
      getSelection().selectAllChildren(byId("snippet-text"));
      copied = document.execCommand("copy");
    }
    byId("copied").textContent = copied ? "Copied." : "It is selected: copy it with your keyboard.";
  }
}
