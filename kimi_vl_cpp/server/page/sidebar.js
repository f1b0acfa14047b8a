// The list of conversations: search, rename, delete with undo, export and import.
import { dialog, h, icon, iconButton, menu, textButton, toast } from "./dom.js";
import { exportJson, exportMarkdown, importJson } from "./files.js";
import { openSettings, openShortcuts } from "./settings.js";
import { allConversations, deleteConversation, saveConversation } from "./store.js";
import { textOf, titleOf } from "./tree.js";
import { words } from "./words.js";

const DAY = 86400000;

export class Sidebar {
  // open(id), fresh(): show a conversation, a new one. current(): the one shown. close(): the drawer of a phone.
  constructor({ open, fresh, current, close }) {
    Object.assign(this, { open, fresh, current, close, all: [] });
    this.search = h("input", { type: "search", id: "search", placeholder: words.search, "aria-label": words.search, oninput: () => this.show() });
    this.list = h("nav", { "aria-label": words.conversations });
    this.file = h("input", { type: "file", accept: ".json,application/json", class: "unseen", tabindex: "-1", "aria-hidden": "true",
      onchange: () => this.import() });
    this.element = h("aside", { id: "sidebar", "aria-label": words.conversations },
      h("div", { class: "side-head" },
        h("span", { class: "brand" }, h("img", { src: "ui/icon.svg", alt: "", width: 26, height: 26 }), words.app),
        iconButton("close", words.closeSidebar, close, { class: "icon-button only-narrow" })),
      h("button", { type: "button", class: "fresh", onclick: fresh }, icon("plus"), words.newChat),
      h("div", { class: "search" }, icon("search"), this.search),
      this.list,
      h("div", { class: "side-foot" }, this.file,
        textButton("sliders", words.settings, openSettings),
        textButton("keyboard", words.shortcutsShort, openShortcuts, { class: "text-button only-wide" }),
        textButton("load", words.importJson, () => this.file.click()),
        textButton("save", words.exportAll, () => (this.all.length ? exportJson(this.all) : toast(words.nothingToExport)))));
  }

  async load() {
    this.all = await allConversations();
    this.show();
  }

  show() {
    const asked = this.search.value.trim().toLowerCase();
    const shown = asked ? this.all.filter((conversation) => textOf(conversation).includes(asked)) : this.all;
    const groups = new Map();
    const midnight = new Date().setHours(0, 0, 0, 0);
    for (const conversation of shown) {
      const { updated } = conversation;
      const when = updated >= midnight ? words.today : updated >= midnight - DAY ? words.yesterday
        : updated >= midnight - 6 * DAY ? words.thisWeek : words.older;
      groups.set(when, [...(groups.get(when) || []), conversation]);
    }
    const focused = this.list.contains(document.activeElement) ? document.activeElement.id : "";
    this.list.replaceChildren(...[...groups].map(([when, members]) =>
      h("section", {}, h("h2", {}, when), h("ul", {}, members.map((conversation) => this.row(conversation))))));
    if (!shown.length) this.list.append(h("p", { class: "hint" }, asked ? words.noMatch : words.noConversations));
    if (focused) document.getElementById(focused)?.focus();
  }

  row(conversation) {
    const title = titleOf(conversation) || words.untitled;
    const more = iconButton("more", words.more(title), () => menu(more, [
      { icon: "edit", label: words.rename, run: () => this.rename(conversation) },
      { icon: "save", label: words.exportJson, run: () => exportJson([conversation]) },
      { icon: "save", label: words.exportMarkdown, run: () => exportMarkdown(conversation) },
      { icon: "close", label: words.remove, danger: true, run: () => this.remove(conversation) },
    ]), { id: `more-${conversation.id}`, "aria-haspopup": "menu", "aria-expanded": "false" });
    const current = conversation.id === this.current();
    return h("li", { "data-id": conversation.id, class: current ? "current" : "" },
      h("button", { type: "button", id: `title-${conversation.id}`, class: "title", title, "aria-current": current ? "page" : null, onclick: () => this.open(conversation.id) }, title),
      more);
  }

  rename(conversation) {
    const input = h("input", { type: "text", id: "rename", maxlength: 200, value: titleOf(conversation), autocomplete: "off" });
    const form = h("form", { class: "ask", onsubmit: async (event) => {
        event.preventDefault();
        const kept = this.find(conversation.id) || conversation;
        Object.assign(kept, { title: input.value.trim(), named: Boolean(input.value.trim()) });
        await saveConversation(kept);
        await this.load();
        this.onrename?.(kept);
        box.close();
      } },
      h("div", { class: "field" }, h("label", { for: "rename" }, words.renameLabel), input),
      h("div", { class: "buttons" }, h("button", { type: "button", class: "plain-button", onclick: () => box.close() }, words.cancel),
        h("button", { type: "submit", class: "main-button" }, words.save)));
    const box = dialog(words.rename, form);
    input.select();
  }

  find(id) {
    return this.all.find((conversation) => conversation.id === id);
  }

  async remove(conversation) {
    const wasOpen = conversation.id === this.current();
    this.onremove?.(conversation);
    const undo = await deleteConversation(conversation);
    if (wasOpen) this.fresh();
    await this.load();
    toast(words.deleted(titleOf(conversation) || words.untitled), { label: words.undo, run: async () => {
      await undo();
      await this.load();
      if (wasOpen) this.open(conversation.id);
    } });
  }

  async import() {
    const [file] = this.file.files;
    this.file.value = "";
    if (!file) return;
    try {
      toast(words.imported(await importJson(file)));
    } catch (error) {
      toast(error.message);
    }
    await this.load();
  }
}
