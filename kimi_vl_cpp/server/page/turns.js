// One turn on the screen: a question with its pictures, or an answer with its progress, thought, figures and actions.
import { copyText, h, icon, iconButton, textButton, toast } from "./dom.js";
import { marksFigure, showLarge } from "./marks.js";
import { pictureImage } from "./pictures.js";
import { Markdown } from "./render.js";
import { picturesBefore, siblingsOf } from "./tree.js";
import { words } from "./words.js";

export async function copyWith(button, text) {
  if (!(await copyText(text))) return toast(words.copyFailed);
  button.classList.add("copied");
  button.querySelector("svg")?.replaceWith(icon("check"));
  const label = button.querySelector("svg") ? null : button.textContent;
  if (label !== null) button.textContent = words.copied;
  setTimeout(() => {
    button.classList.remove("copied");
    button.querySelector("svg")?.replaceWith(icon("copy"));
    if (label !== null) button.textContent = words.copy;
  }, 1600);
}

function copyButton(text) {
  const button = iconButton("copy", words.copy, () => copyWith(button, text()), { "data-action": "copy" });
  return button;
}

// ‹ 2 / 3 ›, or nothing when there is one version only.
function versions(node, context) {
  const { all, index } = siblingsOf(context.conversation, node);
  if (all.length < 2) return null;
  const go = (step) => context.choose(all[index + step]);
  return h("span", { class: "versions", role: "group", "aria-label": words.version(index + 1, all.length) },
    iconButton("left", words.earlierVersion, () => go(-1), { disabled: index === 0, "data-action": "earlier" }),
    h("span", { "aria-hidden": "true" }, words.versionCount(index + 1, all.length)),
    iconButton("right", words.laterVersion, () => go(1), { disabled: index === all.length - 1, "data-action": "later" }));
}

export function pictureThumb(picture) {
  const label = words.showLarge(picture.name);
  return h("button", { type: "button", class: "thumb", "aria-label": label, title: picture.name, onclick: () => showLarge(picture) },
    picture.width ? pictureImage(picture, "") : h("span", { class: "no-preview" }, picture.name));
}

export class UserTurn {
  constructor(node, context) {
    this.node = node;
    this.context = context;
    this.body = h("div", { class: "body" });
    this.footer = h("footer", {});
    this.element = h("article", { class: "turn user", "data-node": node.id }, h("h2", { class: "unseen" }, words.you), this.body, this.footer);
    this.show();
  }

  show() {
    const { node } = this;
    this.body.replaceChildren(
      ...(node.pictures.length ? [h("div", { class: "thumbs" }, node.pictures.map(pictureThumb))] : []),
      ...(node.text ? [h("div", { class: "bubble" }, node.text)] : []));
    this.refreshActions();
  }

  refreshActions() {
    if (!this.body.querySelector(".editor"))
      this.footer.replaceChildren(h("span", { class: "actions" }, versions(this.node, this.context) || "",
      iconButton("edit", words.edit, () => this.edit(), { "data-action": "edit" }), copyButton(() => this.node.text)));
  }

  edit() {
    let pictures = [...this.node.pictures];
    const area = h("textarea", { "aria-label": words.editLabel, value: this.node.text, rows: 1 });
    const strip = h("div", { class: "thumbs" });
    const fill = () => strip.replaceChildren(...pictures.map((picture) => h("span", { class: "removable" }, pictureThumb(picture),
      iconButton("close", words.removePicture(picture.name), () => {
        pictures = pictures.filter((other) => other !== picture);
        fill();
        area.focus();
      }))));
    const end = () => {
      this.show();
      this.footer.querySelector("[data-action=edit]").focus();
    };
    const submit = () => {
      if (area.value.trim() || pictures.length) this.context.askAgain(this.node, area.value.trim(), pictures);
    };
    const form = h("form", { class: "editor", onsubmit: (event) => (event.preventDefault(), submit()) }, strip, area,
      h("div", { class: "buttons" }, h("button", { type: "button", class: "plain-button", onclick: end }, words.cancel),
        h("button", { type: "submit", class: "main-button" }, words.editSend)));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") end();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !this.context.touch()) submit();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const fit = () => {
      area.style.height = "auto";
      area.style.height = `${area.scrollHeight}px`;
    };
    area.addEventListener("input", fit);
    fill();
    this.body.replaceChildren(form);
    this.footer.replaceChildren();
    fit();
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  end() {}
}

export class AnswerTurn {
  constructor(node, context) {
    this.node = node;
    this.context = context;
    this.content = h("div", { class: "content said" });
    this.markdown = new Markdown(this.content);
    this.progress = h("div", { class: "progress" });
    this.thoughtText = h("div", { class: "content thought-text" });
    this.thoughtMarkdown = new Markdown(this.thoughtText);
    this.summary = h("span", { class: "thought-title" });
    this.now = textButton(null, words.answerNow, () => this.run?.answerNow(), { class: "text-button now", hidden: true });
    this.details = h("details", { ontoggle: () => this.showThought() }, h("summary", {}, icon("right"), this.summary), this.thoughtText);
    this.thought = h("div", { class: "thought", hidden: true }, this.details, this.now);
    this.trouble = h("div", { class: "trouble" });
    this.after = h("div", { class: "after" });
    this.footer = h("footer", {});
    this.element = h("article", { class: "turn answer", "data-node": node.id }, h("h2", { class: "unseen" }, words.answer),
      this.thought, this.progress, this.content, this.after, this.trouble, this.footer);
    this.update = () => this.refresh();
    this.follow(context.runOf(node));
  }

  // Shows what `run` does from now on; without one, what the turn holds.
  follow(run) {
    this.end();
    this.run = run;
    run?.addEventListener("change", this.update);
    if (run) this.clock = setInterval(() => this.refreshClock(), 250);
    this.refresh();
  }

  end() {
    this.run?.removeEventListener("change", this.update);
    clearInterval(this.clock);
    this.run = null;
  }

  get running() {
    return Boolean(this.run) && !this.run.ended;
  }

  refresh() {
    const { node, running } = this;
    this.element.classList.toggle("running", running);
    if (node.thought && !this.thought.isConnected) this.content.before(this.thought);
    this.thought.hidden = !node.thought;
    this.refreshClock();
    this.showThought();
    this.refreshProgress();
    if (node.text || this.markdown.text) this.ready = this.markdown.set(node.text, !running) || this.ready;
    if (running) {
      if (this.after.firstChild) this.after.replaceChildren();
      if (this.trouble.firstChild) this.trouble.replaceChildren();
      if (this.footer.firstChild) this.footer.replaceChildren();
      return;
    }
    clearInterval(this.clock);
    this.after.replaceChildren(marksFigure(node.text, picturesBefore(this.context.conversation, node)) || "");
    this.refreshTrouble();
    this.refreshActions();
  }

  showThought() {
    if (this.details.open && this.node.thought) this.thoughtMarkdown.set(this.node.thought, !this.run?.thinking);
  }

  refreshClock() {
    if (!this.node.thought) return;
    const { run, node } = this;
    const time = words.seconds((run ? run.thoughtMs() : node.thoughtMs || 0) / 1000);
    const thinking = Boolean(run?.thinking);
    const text = thinking ? `${words.thinkingNow} · ${time}` : node.thoughtMs >= 100 ? words.thoughtFor(time) : words.thought;
    if (this.summary.textContent !== text) this.summary.textContent = text;
    this.thought.classList.toggle("thinking", thinking);
    this.now.hidden = !thinking;
  }

  refreshProgress() {
    const { node, running, run } = this;
    const wait = running && (!node.text && !run.thinking || run.progress && run.goOn && !run.firstMs);
    this.progress.hidden = !wait;
    if (!wait) return;
    const progress = run.progress;
    const [label, detail] = progressWords(progress);
    if (!this.bar) {
      this.barLabel = h("span", { class: "label" });
      this.barDetail = h("span", { class: "detail" });
      this.bar = h("progress", { "aria-label": words.preparing, max: 1 });
      this.progress.replaceChildren(h("div", {}, this.barLabel, this.barDetail), this.bar);
    }
    this.barLabel.textContent = label;
    this.barDetail.textContent = detail;
    if (progress?.total) this.bar.value = progress.done / progress.total;
    else this.bar.removeAttribute("value");
  }

  refreshTrouble() {
    const { node, context } = this;
    const rows = [];
    if (node.state === "failed") {
      rows.push(h("div", { class: "error", role: "alert" }, h("p", {}, node.error?.message || words.brokenOff),
        textButton("again", words.again, () => context.retry(node), { "data-action": "regenerate" })));
    } else if (node.state === "stopped") rows.push(h("p", { class: "hint" }, words.stopped));
    else if (node.state === "length") {
      const reason = { repetition: words.cutRepetition, context: words.cutContext, timeout: words.cutServer, shutdown: words.cutServer };
      rows.push(h("p", { class: "hint" }, reason[node.stats?.stopReason] || words.cutOff));
    } else if (!node.text) rows.push(h("p", { class: "hint" }, words.emptyAnswer));
    if (node.stats?.notices?.length) rows.push(h("p", { class: "hint" }, node.stats.notices.map(noticeText).join(" ")));
    this.trouble.replaceChildren(...rows);
  }

  refreshActions() {
    const { node, context } = this;
    const goOn = ["stopped", "length", "failed"].includes(node.state) && (node.text || node.thought) && context.isLast(node);
    this.footer.replaceChildren(
      h("span", { class: "actions" }, versions(node, context) || "",
        node.text ? copyButton(() => node.text) : "",
        node.state === "failed" ? "" // "Try again" stands beside what went wrong
          : iconButton("again", words.regenerate, () => context.regenerate(node), { "data-action": "regenerate" }),
        goOn ? textButton("play", words.goOn, () => context.goOn(node), { "data-action": "continue" }) : ""),
      ...(node.stats ? figures(node.stats) : []));
  }
}

const noticeText = (notice) => (typeof notice === "string" ? notice : notice.message || JSON.stringify(notice));

function progressWords(progress) {
  if (!progress) return [words.waiting, ""];
  if (progress.stage === "queue") return [words.queued(progress.ahead ?? 0), ""];
  const label = { encode: words.encoding, prefill: words.prefilling }[progress.stage] || words.preparing;
  if (!progress.total) return [label, ""];
  return [label, progress.stage === "encode" ? words.share(Math.round((100 * progress.done) / progress.total)) : words.counted(progress.done, progress.total)];
}

// The figures that matter most; the button shows the rest.
function figures(stats) {
  const text = words.stats;
  const has = (value) => value !== null && value !== undefined;
  const seconds = (ms) => words.seconds(ms / 1000);
  const short = [
    stats.rate && text.rate(stats.rate),
    has(stats.firstMs) && text.first(stats.firstMs / 1000),
    stats.prompt && stats.cached ? text.cached(stats.cached, stats.prompt) : null,
  ].filter(Boolean).map((part) => part.replaceAll(" ", "\u00a0")).join("\u00a0· ");
  const rows = {
    rate: stats.rate && text.rate(stats.rate), first: has(stats.firstMs) && seconds(stats.firstMs),
    tokens: has(stats.tokens) && text.tokens(stats.tokens), prompt: has(stats.prompt) && text.tokens(stats.prompt),
    cached: has(stats.cached) && text.tokens(stats.cached), image: has(stats.image) && text.tokens(stats.image),
    seed: has(stats.seed) && String(stats.seed),
  };
  const all = h("dl", { class: "all-figures", hidden: true, "aria-label": words.statsLabel },
    Object.entries(rows).filter(([, value]) => value).map(([name, value]) => h("div", {}, h("dt", {}, text.rows[name]), h("dd", {}, value))));
  const button = h("button", { type: "button", class: "figures", "aria-expanded": "false", "aria-label": words.statsMore(short), onclick: () => {
    all.hidden = !all.hidden;
    button.setAttribute("aria-expanded", String(!all.hidden));
  } }, short || words.statsLabel);
  return [button, all];
}
