// A growing Markdown text in an element: finished blocks are left alone, the last one is rendered by the server at most
// five times a second and patched in place, so that nothing flashes and selections hold.
import { renderText } from "./api.js";
import { h } from "./dom.js";
import { words } from "./words.js";

const PAUSE = 200; // ms between two renderings
const known = new Map(); // text -> blocks, of whole answers

function remember(text, blocks) {
  known.set(text, blocks);
  if (known.size > 300) known.delete(known.keys().next().value);
}

export class Markdown {
  constructor(element) {
    this.element = element;
    this.blocks = []; // {line, html, element}
    this.text = this.shown = "";
    this.busy = this.final = false;
    this.last = 0;
    this.timer = 0;
  }

  // Shows `text`. final: it is whole; the promise then resolves when it is drawn.
  set(text, final = false) {
    this.text = text.replace(/\r\n?/g, "\n");
    this.final = final; // an answer that goes on is not final any more
    const done = final ? new Promise((resolve) => (this.drawn = resolve)) : null;
    this.plan();
    return done;
  }

  plan() {
    if (this.busy) return;
    clearTimeout(this.timer);
    const wait = this.final ? 0 : Math.max(0, this.last + PAUSE - performance.now());
    this.timer = setTimeout(() => this.draw(), wait);
  }

  async draw() {
    this.busy = true;
    const { text, final } = this;
    const start = final && /^ {0,3}\[[^\]]+\]:/m.test(text) ? 0 : Math.max(0, this.blocks.length - 1); // links are defined anywhere
    const line = start < this.blocks.length ? this.blocks[start].line : 0;
    try {
      const whole = known.get(text);
      const blocks = whole || (await renderText(text.split("\n").slice(line).join("\n"))).blocks;
      this.patch(whole ? 0 : start, blocks.map((block) => ({ ...block, line: block.line + (whole ? 0 : line) })));
      if (final) remember(text, this.blocks.map(({ line: at, html }) => ({ line: at, html })));
    } catch {
      this.patch(0, [{ line: 0, html: "" }]); // the renderer cannot be reached: the text as it is
      this.blocks[0].element.replaceChildren(h("p", { class: "plain" }, text));
      this.blocks[0].html = null;
    }
    this.shown = text;
    this.last = performance.now();
    this.busy = false;
    if (this.text !== this.shown || this.final !== final) this.plan();
    else if (final) this.drawn?.();
  }

  patch(start, blocks) {
    blocks.forEach((block, index) => {
      const old = this.blocks[start + index];
      if (!old) {
        const element = h("div", { class: "block" });
        this.element.append(element);
        morph(element, fragmentOf(block.html));
        this.blocks.push({ ...block, element });
      } else {
        if (old.html !== block.html) morph(old.element, fragmentOf(block.html));
        Object.assign(old, block);
      }
    });
    for (const extra of this.blocks.splice(start + blocks.length)) extra.element.remove();
  }
}

// The server's HTML is safe to insert (it is built from a list of elements), and the page's policy runs nothing inline.
function fragmentOf(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  for (const button of template.content.querySelectorAll("button.copy")) {
    button.textContent = words.copy;
    button.setAttribute("aria-label", words.copyCode);
  }
  return template.content;
}

// Makes the children of `old` those of `fresh`, keeping every node that is the same.
function morph(old, fresh) {
  const next = [...fresh.childNodes];
  next.forEach((node, index) => {
    const present = old.childNodes[index];
    if (!present) old.append(node);
    else if (present.isEqualNode(node)) return;
    else if (present.nodeType === Node.TEXT_NODE && node.nodeType === Node.TEXT_NODE) present.data = node.data;
    else if (sameShell(present, node)) morph(present, node);
    else present.replaceWith(node);
  });
  while (old.childNodes.length > next.length) old.lastChild.remove();
}

function sameShell(a, b) {
  return a.nodeType === Node.ELEMENT_NODE && b.nodeType === Node.ELEMENT_NODE && a.cloneNode(false).isEqualNode(b.cloneNode(false));
}
