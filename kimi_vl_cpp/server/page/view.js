// The turns of the branch that is shown, and a scroll position that follows the answer until the reader takes over.
import { h, icon, textButton } from "./dom.js";
import { AnswerTurn, UserTurn } from "./turns.js";
import { pathOf } from "./tree.js";
import { words } from "./words.js";

const NEAR = 48; // px from the end that count as the end

export class View {
  constructor(context, welcome) {
    this.context = context;
    this.turns = [];
    this.welcome = welcome;
    this.column = h("div", { class: "column" });
    this.element = h("div", { class: "log", role: "region", "aria-label": words.conversation, tabindex: "0" }, this.column);
    this.toEnd = h("button", { type: "button", class: "to-end", "aria-label": words.toEnd, title: words.toEnd, hidden: true,
      onclick: () => this.follow() }, icon("down"));
    this.following = true;
    this.top = this.height = 0;
    this.element.addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.grown()).observe(this.column);
    new ResizeObserver(() => this.grown()).observe(this.element);
  }

  get atEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.element;
    return scrollHeight - scrollTop - clientHeight < NEAR;
  }

  // Scrolling up lets go, scrolling back to the end takes hold again.
  scrolled() {
    const { scrollTop, scrollHeight } = this.element;
    if (this.atEnd) this.following = true;
    else if (scrollTop < this.top - 1 && scrollHeight >= this.height) this.following = false; // and nothing has become shorter
    this.top = scrollTop;
    this.height = scrollHeight;
    this.toEnd.hidden = this.following || this.atEnd;
  }

  grown() {
    if (this.following) this.element.scrollTop = this.element.scrollHeight;
    this.height = this.element.scrollHeight;
    this.toEnd.hidden = this.following || this.atEnd;
  }

  follow() {
    this.following = true;
    this.grown();
  }

  // Shows the chosen branch: turns that stay are kept as they are.
  show() {
    const path = pathOf(this.context.conversation);
    let same = 0;
    while (same < path.length && this.turns[same]?.node === path[same]) same++;
    for (const turn of this.turns.splice(same)) {
      turn.end();
      turn.element.remove();
    }
    for (const turn of this.turns) if (!turn.running) turn.refreshActions();
    for (const node of path.slice(same)) {
      const turn = new (node.role === "user" ? UserTurn : AnswerTurn)(node, this.context);
      this.turns.push(turn);
      this.column.append(turn.element);
    }
    if (path.length) this.welcome.remove();
    else this.column.replaceChildren(this.welcome);
  }

  async ready() {
    await Promise.race([Promise.all(this.turns.map((turn) => turn.ready)), new Promise((resolve) => setTimeout(resolve, 400))]);
  }

  turnOf(node) {
    return this.turns.find((turn) => turn.node === node);
  }

  last(role) {
    return this.turns.filter((turn) => turn.node.role === role).at(-1);
  }
}

// What an empty conversation shows.
export function welcomeView({ tryExample, suggest }) {
  return h("div", { class: "welcome" },
    h("h2", {}, words.welcome),
    h("p", {}, words.welcomeHint),
    h("button", { type: "button", class: "example", onclick: tryExample },
      h("img", { src: "ui/example.png", alt: "", width: 104, height: 91 }),
      h("span", {}, h("strong", {}, words.tryExample), h("span", {}, `“${words.exampleQuestion}”`))),
    h("div", { class: "suggestions" }, words.suggestions.map((text) => textButton(null, text, () => suggest(text)))));
}
