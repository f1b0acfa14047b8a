// Building elements, icons, announcements and small menus. Knows nothing of conversations.
import { words } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7.5 7.5h9v9h-9z",
  picture: "M4 5h16v14H4zM4 16l5-5 5 5 2-2 4 4M15.5 9h.01",
  camera: "M4 8h3.5L9 5.5h6L16.5 8H20v11H4zM15.2 13a3.2 3.2 0 1 1-6.4 0 3.2 3.2 0 0 1 6.4 0",
  copy: "M9 9h10v10H9zM5 15V5h10",
  check: "M5 12.5l4.5 4.5L19 7.5",
  edit: "M5 19l1-4L16 5l3 3L9 18z",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  menu: "M4 7h16M4 12h16M4 17h10",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  close: "M6 6l12 12M18 6L6 18",
  sliders: "M4 8h8M18 8h2M4 16h2M12 16h8M18 8a3 3 0 1 1-6 0 3 3 0 0 1 6 0M12 16a3 3 0 1 1-6 0 3 3 0 0 1 6 0",
  search: "M16 11a5 5 0 1 1-10 0 5 5 0 0 1 10 0M15 15l4.5 4.5",
  keyboard: "M3 7h18v10H3zM7 11h.01M11 11h.01M15 11h.01M8 14h8",
  save: "M12 4v11M7 10l5 5 5-5M5 19h14",
  load: "M12 15V4M7 9l5-5 5 5M5 19h14",
  play: "M9 7l8 5-8 5z",
  target: "M18 12a6 6 0 1 1-12 0 6 6 0 0 1 12 0M12 3v5M12 16v5M3 12h5M16 12h5",
};

// h("button", {class: "x", onclick: f, "aria-label": "…"}, "text", child): null and false are left out.
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function icon(name) {
  return svg("svg", { viewBox: "0 0 24 24", class: `icon icon-${name}`, "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));
}

// A button that shows an icon only; its label is its name and its tooltip.
export function iconButton(name, label, onclick, props = {}) {
  return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...props }, icon(name));
}

export function textButton(name, label, onclick, props = {}) {
  return h("button", { type: "button", class: "text-button", onclick, ...props }, name && icon(name), label);
}

const announcer = h("div", { class: "unseen", role: "status", "aria-live": "polite" });

// Says something to a screen reader, once. The region is emptied so that the same words are said again next time.
export function announce(text) {
  if (!announcer.isConnected) document.body.append(announcer);
  announcer.textContent = "";
  requestAnimationFrame(() => (announcer.textContent = text));
}

// A short message at the bottom, with one action at most. It stays long enough to be read and reached.
export function toast(text, action = null) {
  document.querySelector(".toast")?.remove();
  const box = h("div", { class: "toast", role: "status" }, h("span", {}, text));
  const end = () => box.remove();
  if (action) box.append(textButton(null, action.label, () => (end(), action.run())));
  box.append(iconButton("close", words.close, end));
  document.body.append(box);
  let timer = setTimeout(end, action ? 12000 : 6000);
  box.addEventListener("focusin", () => clearTimeout(timer));
  box.addEventListener("mouseenter", () => clearTimeout(timer));
  box.addEventListener("mouseleave", () => (timer = setTimeout(end, 4000)));
  return end;
}

// A dialog that removes itself when it is closed and gives the focus back.
export function dialog(title, content, props = {}) {
  const before = document.activeElement;
  const id = `d${Math.random().toString(36).slice(2)}`;
  const box = h("dialog", { "aria-labelledby": id, ...props, class: `dialog ${props.class || ""}` },
    h("header", {}, h("h2", { id }, title), iconButton("close", words.close, () => box.close())), content);
  box.addEventListener("close", () => {
    box.remove();
    if (before?.isConnected) before.focus();
  });
  box.addEventListener("mousedown", (event) => {
    if (event.target === box) box.close();
  });
  document.body.append(box);
  box.showModal();
  return box;
}

// A menu below `button`: [{icon, label, run, danger}]. Arrow keys, Home, End, Esc, and the focus goes back: to the button of the
// same id where `button` was drawn anew meanwhile.
export function menu(button, items) {
  const end = (focus) => {
    box.remove();
    button.setAttribute("aria-expanded", "false");
    document.removeEventListener("pointerdown", outside, true);
    if (focus) (button.isConnected ? button : document.getElementById(button.id))?.focus();
  };
  const outside = (event) => {
    if (!box.contains(event.target)) end(false);
  };
  const entries = items.map((item) =>
    h("button", { type: "button", role: "menuitem", tabindex: "-1", class: item.danger ? "danger" : "",
      onclick: () => (end(true), item.run()) }, icon(item.icon), item.label));
  const box = h("div", { class: "menu", role: "menu" }, entries);
  box.addEventListener("keydown", (event) => {
    const at = entries.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (to !== undefined) entries.at(to % entries.length).focus();
    else if (event.key === "Escape" || event.key === "Tab") end(true);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  document.body.append(box);
  const place = button.getBoundingClientRect();
  const size = box.getBoundingClientRect();
  box.style.left = `${Math.max(8, Math.min(place.left, innerWidth - size.width - 8))}px`;
  box.style.top = `${place.bottom + size.height + 8 > innerHeight ? place.top - size.height - 4 : place.bottom + 4}px`;
  button.setAttribute("aria-expanded", "true");
  document.addEventListener("pointerdown", outside, true);
  entries[0].focus();
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // No permission, or a page that came over http from another machine: the old way still works there.
    const area = h("textarea", { class: "unseen", value: text });
    const before = document.activeElement;
    (document.querySelector("dialog[open]") || document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus();
    return done;
  }
}

export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

// crypto.randomUUID exists on secure pages only.
export function newId() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
