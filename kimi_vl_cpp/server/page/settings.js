// What the user can set: kept in localStorage (the key apart, see api.js), shown in a dialog, turned into request fields.
import { currentKey, keyIsKept, setKey } from "./api.js";
import { dialog, h } from "./dom.js";
import { words } from "./words.js";

const PLACE = "kimi-vl.settings";
const DEFAULTS = {
  theme: "system", system: "", thinking: "default", budget: "1024", temperature: "", topP: "", maxTokens: "", seed: "", schema: "", keyboard: true,
};

function load() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(PLACE) || "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}

export const settings = load();

function keep() {
  try {
    localStorage.setItem(PLACE, JSON.stringify(settings));
  } catch {
    // Storage is forbidden or full: the settings hold while the page is open.
  }
  const root = document.documentElement;
  if (settings.theme === "system") delete root.dataset.theme;
  else root.dataset.theme = settings.theme;
}

// The fields of a chat request that follow from the settings.
export function requestFields() {
  const fields = {};
  for (const [name, field] of [["temperature", "temperature"], ["topP", "top_p"], ["maxTokens", "max_tokens"], ["seed", "seed"]])
    if (settings[name] !== "") fields[field] = Number(settings[name]);
  if (settings.thinking === "on" || settings.thinking === "off") fields.enable_thinking = settings.thinking === "on";
  if (settings.thinking === "budget") fields.thinking_token_budget = Number(settings.budget);
  if (settings.schema) fields.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(settings.schema) } };
  return fields;
}

const NUMBERS = {
  temperature: [0, 10, false],
  topP: [0, 1, false],
  maxTokens: [1, 1000000, true],
  seed: [0, Number.MAX_SAFE_INTEGER, true],
  budget: [0, 1000000, true],
};

// A sentence when the value cannot be used, else "".
function problemOf(name, value) {
  const text = value.trim();
  if (name === "schema" && text) {
    try {
      const schema = JSON.parse(text);
      return schema && typeof schema === "object" && !Array.isArray(schema) ? "" : words.setting.badSchema("no object");
    } catch (error) {
      return words.setting.badSchema(error.message);
    }
  }
  if (!(name in NUMBERS) || !text) return "";
  const [low, high, whole] = NUMBERS[name];
  const number = Number(text);
  const good = number >= low && number <= high && (!whole || Number.isInteger(number));
  return good ? "" : words.setting[whole ? "whole" : "between"](words.setting[name], low, high);
}

// A labelled control with its hint and its error text.
function field(name, control, hint = "") {
  const id = `setting-${name}`;
  control.id = id;
  const problem = h("p", { class: "problem", id: `${id}-problem`, role: "alert" });
  if (hint) control.setAttribute("aria-describedby", `${id}-hint ${id}-problem`);
  else control.setAttribute("aria-describedby", `${id}-problem`);
  const change = () => {
    const wrong = problemOf(name, control.value);
    problem.textContent = wrong;
    control.setAttribute("aria-invalid", wrong ? "true" : "false");
    if (wrong) return;
    settings[name] = control.value.trim();
    keep();
  };
  control.addEventListener("change", change);
  return h("div", { class: "field", "data-field": name }, h("label", { for: id }, words.setting[name]), control,
    hint && h("p", { class: "hint", id: `${id}-hint` }, hint), problem);
}

const number = (name, placeholder, hint) =>
  field(name, h("input", { type: "text", inputmode: "decimal", autocomplete: "off", placeholder, value: settings[name] }), hint);

function select(name, options) {
  const control = h("select", {}, Object.entries(options).map(([value, text]) => h("option", { value }, text)));
  control.value = settings[name];
  return field(name, control);
}

function checkbox(label, checked, onchange, hint) {
  const id = `check-${label.replace(/\W+/g, "-")}`;
  const box = h("input", { type: "checkbox", id, "aria-describedby": hint ? `${id}-hint` : null, onchange: () => onchange(box.checked) });
  box.checked = checked;
  return h("div", { class: "check" }, box, h("label", { for: id }, label), hint && h("p", { class: "hint", id: `${id}-hint` }, hint));
}

export function openSettings() {
  const text = words.setting;
  const budget = number("budget", "1024");
  const thinking = select("thinking", text.thinkingModes);
  const showBudget = () => (budget.hidden = settings.thinking !== "budget");
  thinking.addEventListener("change", showBudget);
  showBudget();
  const key = h("input", { type: "password", id: "setting-key", autocomplete: "off", value: currentKey() });
  const keepKey = checkbox(words.keyRemember, keyIsKept(), (kept) => setKey(key.value, kept), words.keyRememberHint);
  key.addEventListener("change", () => setKey(key.value, keepKey.querySelector("input").checked));
  const group = (title, ...fields) => h("fieldset", {}, h("legend", {}, title), fields);
  const form = h("form", { class: "settings", onsubmit: (event) => event.preventDefault() },
    group(text.appearance, select("theme", text.themes),
      checkbox(text.keyboard, settings.keyboard, (on) => ((settings.keyboard = on), keep()))),
    group(text.conversation,
      field("system", h("textarea", { rows: 3, value: settings.system }), text.systemHint), thinking, budget),
    group(text.sampling,
      h("div", { class: "pair" }, number("temperature", text.server, text.temperatureHint), number("topP", text.server)),
      h("div", { class: "pair" }, number("seed", text.drawn, text.seedHint), number("maxTokens", text.server, text.maxTokensHint)),
      field("schema", h("textarea", { rows: 4, class: "mono", spellcheck: "false", value: settings.schema }), text.schemaHint)),
    group(text.access, h("div", { class: "field" }, h("label", { for: "setting-key" }, words.keyLabel), key), keepKey),
    h("button", { type: "button", class: "plain-button", onclick: () => (reset(), box.close(), openSettings()) }, text.reset));
  const box = dialog(words.settings, form, { class: "drawer" });
}

function reset() {
  Object.assign(settings, DEFAULTS);
  keep();
}

// Asks for the key. Resolves to true when one was given.
export function askKey(wasWrong) {
  return new Promise((resolve) => {
    let given = false;
    const input = h("input", { type: "password", id: "ask-key", autocomplete: "off", required: true, "aria-describedby": "ask-key-text" });
    const remember = checkbox(words.keyRemember, keyIsKept(), () => {}, words.keyRememberHint);
    const form = h("form", { class: "ask", onsubmit: (event) => {
        event.preventDefault();
        given = true;
        setKey(input.value, remember.querySelector("input").checked);
        box.close();
      } },
      h("p", { id: "ask-key-text", class: wasWrong ? "problem" : "" }, wasWrong ? words.keyWrong : words.keyText),
      h("div", { class: "field" }, h("label", { for: "ask-key" }, words.keyLabel), input), remember,
      h("div", { class: "buttons" }, h("button", { type: "button", class: "plain-button", onclick: () => box.close() }, words.cancel),
        h("button", { type: "submit", class: "main-button" }, words.keyUse)));
    const box = dialog(words.keyTitle, form);
    box.addEventListener("close", () => resolve(given));
    input.focus();
  });
}

export function openShortcuts() {
  const rows = words.keys.map(([keys, what]) =>
    h("div", {}, h("dt", {}, keys.split(" ").map((key) => h("kbd", {}, key))), h("dd", {}, what)));
  dialog(words.shortcuts, h("div", {}, h("dl", { class: "shortcuts" }, rows), h("p", { class: "hint" }, words.keysHint)));
}
