// Puts the page together: the conversation that is shown, the answers under way, the server's state, the keyboard.
import { health, listModels, onContact, onKeyNeeded } from "./api.js";
import { Composer, touch } from "./composer.js";
import { announce, h, iconButton, newId, toast } from "./dom.js";
import { pictureFrom } from "./pictures.js";
import { Run } from "./run.js";
import { askKey, openSettings, openShortcuts, settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { onStorageTrouble, saveConversation, sweepPictures } from "./store.js";
import { addNode, choose, newConversation, pathOf, titleOf } from "./tree.js";
import { copyWith } from "./turns.js";
import { View, welcomeView } from "./view.js";
import { words } from "./words.js";

const runs = new Map(); // node id -> Run
const loaded = new Map(); // conversation id -> the conversation that answers are written to
let model = { id: "kimi-vl", context: 0 };

const context = {
  conversation: newConversation(),
  runOf: (node) => runs.get(node.id) || null,
  isLast: (node) => pathOf(context.conversation).at(-1) === node,
  touch,
  choose(node) {
    choose(context.conversation, node);
    saveConversation(context.conversation);
    show();
    view.turnOf(node)?.element.querySelector(".versions button:not(:disabled)")?.focus();
  },
  askAgain: (node, text, pictures) => answer(addNode(context.conversation, node.parent, { role: "user", text, pictures })),
  regenerate(node) {
    if (node.parent) answer(context.conversation.nodes[node.parent]);
  },
  goOn: (node) => start(node, true),
  retry: (node) => (node.text || node.thought ? context.regenerate(node) : start(node, false)),
};

// The frame.
const banner = h("div", { class: "banner", role: "status", hidden: true });
const title = h("h1", {});
const modelName = h("span", { class: "model" });
const meter = h("span", { class: "context", hidden: true, tabindex: "0" });
const composer = new Composer({ ask, stop: () => running()?.stop(), model: () => model.id });
const view = new View(context, welcomeView({ tryExample, suggest: (text) => ((composer.area.value = text), composer.refresh(), composer.focus()) }));
const sidebar = new Sidebar({ open: (id) => (location.hash = id), fresh: startFresh, current: () => context.conversation.id, close: closeSidebar });
const menuButton = iconButton("menu", words.openSidebar, toggleSidebar, { "aria-controls": "sidebar", "aria-expanded": "false" });
const scrim = h("div", { class: "scrim", onclick: closeSidebar });
document.body.append(
  h("a", { class: "skip", href: "#prompt", onclick: (event) => (event.preventDefault(), composer.focus()) }, words.skip),
  sidebar.element, scrim,
  h("main", {},
    h("header", { class: "top" }, menuButton, h("div", { class: "heading" }, title, modelName), meter,
      iconButton("plus", words.newChat, startFresh, { class: "icon-button only-narrow" }),
      iconButton("sliders", words.settings, openSettings, { class: "icon-button" })),
    banner, view.element, h("div", { class: "dock" }, view.toEnd, composer.element)));

// Conversations.
function running() {
  return runs.get(pathOf(context.conversation).at(-1)?.id) || null;
}

function show() {
  view.show();
  const name = titleOf(context.conversation);
  title.textContent = name || words.untitled;
  document.title = name ? `${name} – ${words.app}` : words.app;
  composer.setRunning(Boolean(running()));
  showContext();
}

function showContext() {
  const used = pathOf(context.conversation).map((node) => node.stats?.total).filter(Boolean).at(-1);
  meter.hidden = !used || !model.context;
  if (meter.hidden) return;
  const percent = Math.min(100, Math.round((100 * used) / model.context));
  meter.replaceChildren(words.share(percent), h("span", { class: "only-wide" }, words.contextShort));
  meter.title = words.context(used, model.context);
  meter.setAttribute("aria-label", meter.title);
  meter.classList.toggle("full", percent >= 85);
}

async function openConversation(id) {
  if (id === context.conversation.id) return;
  if (!sidebar.find(id)) await sidebar.load();
  const kept = loaded.get(id) || sidebar.find(id);
  if (!kept) return startFresh();
  for (const node of Object.values(kept.nodes)) if (node.state === "running" && !runs.has(node.id)) node.state = "stopped"; // the page was closed
  loaded.set(id, kept);
  context.conversation = kept;
  closeSidebar();
  view.element.classList.add("opening");
  show();
  await view.ready();
  view.element.classList.remove("opening");
  view.follow();
  sidebar.show();
}

function startFresh() {
  if (pathOf(context.conversation).length) context.conversation = newConversation();
  history.pushState(null, "", location.pathname);
  closeSidebar();
  show();
  sidebar.show();
  if (!touch()) composer.focus();
}

function ask(text, pictures) {
  const parent = pathOf(context.conversation).at(-1)?.id ?? null;
  answer(addNode(context.conversation, parent, { role: "user", text, pictures }));
}

function answer(question) {
  start(addNode(context.conversation, question.id, { role: "assistant", thought: "" }), false);
}

async function start(node, goOn) {
  const { conversation } = context;
  const run = new Run(conversation, node, { model: model.id, goOn });
  runs.set(node.id, run);
  loaded.set(conversation.id, conversation);
  run.addEventListener("end", () => ended(run));
  const started = run.start();
  show();
  view.turnOf(node).follow(run);
  view.follow();
  if (!touch()) composer.focus();
  announce(words.answering);
  if (location.hash.slice(1) !== conversation.id) history.replaceState(null, "", `#${conversation.id}`);
  await run.kept;
  await sidebar.load();
  await started;
}

async function ended(run) {
  runs.delete(run.node.id);
  if (run.conversation === context.conversation) {
    composer.setRunning(Boolean(running()));
    showContext();
    if (run.node.state !== "failed" && run.node.text) announce(words.finished(run.node.text.slice(0, 400)));
  }
  await sidebar.load();
  tabs?.postMessage(me);
}

async function tryExample() {
  const blob = await (await fetch("ui/example.png")).blob();
  ask(words.exampleQuestion, [await pictureFrom(new File([blob], "receipt.png", { type: "image/png" }))]);
}

sidebar.onrename = (kept) => {
  const live = loaded.get(kept.id);
  if (live && live !== kept) Object.assign(live, { title: kept.title, named: kept.named });
  if (kept.id === context.conversation.id) show();
};
sidebar.onremove = (conversation) => {
  for (const run of runs.values()) if (run.conversation.id === conversation.id) run.stop();
  loaded.delete(conversation.id);
};

function toggleSidebar() {
  const narrow = matchMedia("(max-width: 899px)").matches;
  const open = document.body.classList.toggle(narrow ? "side-open" : "side-closed") === narrow;
  menuButton.setAttribute("aria-expanded", String(open));
  if (narrow && open) sidebar.search.focus();
}

function closeSidebar() {
  if (!document.body.classList.contains("side-open")) return;
  document.body.classList.remove("side-open");
  menuButton.setAttribute("aria-expanded", "false");
  menuButton.focus();
}

// The server: gone, loading, back.
let state = "ready";
let timer = 0;

function setBanner(text, kind) {
  banner.hidden = !text;
  banner.className = `banner ${kind}`;
  if (banner.textContent !== text) banner.textContent = text;
}

async function check() {
  clearTimeout(timer);
  const found = await health();
  const before = state;
  state = found.state;
  if (state === "offline") setBanner(words.offline, "bad");
  else if (state === "loading") setBanner(words.loading, "calm");
  else setBanner("", "");
  if (state === "ready" && (before !== "ready" || !model.known)) {
    if (before === "offline") announce(words.back);
    await loadModel();
  }
  timer = setTimeout(check, state === "ready" ? 30000 : 2000);
}

async function loadModel() {
  const [first] = (await listModels().catch(() => ({ data: [] }))).data;
  if (!first) return;
  model = { id: first.id, context: first.max_model_len || first.meta?.n_ctx_train || 0, known: true };
  modelName.textContent = model.id;
  showContext();
}

onContact((reached) => {
  if (!reached && state === "ready") check();
});
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : check()));
onKeyNeeded(askKey);
onStorageTrouble((kind) => toast(kind === "full" ? words.storageFull : words.noStorage));

// The keyboard.
const act = (turn, action) => turn?.element.querySelector(`[data-action=${action}]:not(:disabled)`)?.click();
const KEYS = {
  "/": () => composer.focus(),
  n: startFresh,
  s: () => {
    document.body.classList.remove("side-closed");
    if (matchMedia("(max-width: 899px)").matches) document.body.classList.add("side-open");
    sidebar.search.focus();
  },
  r: () => act(view.last("assistant"), "regenerate"),
  e: () => act(view.last("user"), "edit"),
  c: () => {
    const turn = view.last("assistant");
    const button = turn?.element.querySelector("[data-action=copy]");
    if (button) copyWith(button, turn.node.text);
  },
  "[": () => act(view.last("assistant"), "earlier"),
  "]": () => act(view.last("assistant"), "later"),
  t: () => {
    const turn = view.last("assistant");
    if (turn) turn.details.open = !turn.details.open;
  },
  a: () => composer.choose(),
  ",": openSettings,
  "?": openShortcuts,
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (document.body.classList.contains("side-open")) closeSidebar();
    else if (running()) running().stop();
    else document.activeElement?.blur();
    return;
  }
  const typing = event.target.closest("input, textarea, select");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !settings.keyboard || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button.copy");
  if (button) copyWith(button, button.closest(".code").querySelector("code").textContent);
});

addEventListener("hashchange", () => openConversation(location.hash.slice(1)));
addEventListener("popstate", () => !location.hash && pathOf(context.conversation).length && startFresh());

// Two tabs of this page see each other's conversations.
const tabs = "BroadcastChannel" in window ? new BroadcastChannel("kimi-vl") : null;
const me = newId();
tabs?.addEventListener("message", (event) => event.data !== me && sidebar.load());

show();
check();
await sidebar.load();
if (location.hash.length > 1) await openConversation(location.hash.slice(1));
else if (!touch()) composer.focus();
sweepPictures(sidebar.all);
