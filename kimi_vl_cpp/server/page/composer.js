// The question being written: its text, its pictures, and the button that sends or stops.
import { countTokens } from "./api.js";
import { announce, h, icon, iconButton, toast } from "./dom.js";
import { filesOf, dataUrlOf, pictureFrom, takePicture } from "./pictures.js";
import { pictureThumb } from "./turns.js";
import { words } from "./words.js";

// A phone's Enter key makes lines; everywhere else it sends.
export const touch = () => matchMedia("(pointer: coarse)").matches;

export class Composer {
  constructor({ ask, stop, model }) {
    Object.assign(this, { ask, stop, model, pictures: [], running: false, counts: new Map() });
    this.reading = []; // names of the files on their way into the tray
    this.read = null; // a promise: has each of them become a picture?

    this.area = h("textarea", { id: "prompt", rows: 1, placeholder: words.promptHint, "aria-label": words.prompt, autocomplete: "off",
      oninput: () => this.refresh(), onkeydown: (event) => this.key(event) });
    this.input = h("input", { type: "file", accept: "image/*,.tif,.tiff,.bmp,.ppm", multiple: true, class: "unseen", tabindex: "-1",
      "aria-hidden": "true", onchange: () => (this.add([...this.input.files]), (this.input.value = "")) });
    this.tray = h("ul", { class: "tray", "aria-label": words.pictures, hidden: true });
    this.send = h("button", { type: "submit", class: "send" });
    this.element = h("form", { class: "composer", onsubmit: (event) => (event.preventDefault(), this.submit()) },
      this.tray,
      h("div", { class: "line" }, this.input,
        iconButton("picture", words.addPictures, () => this.choose(), { "data-action": "add" }),
        iconButton("camera", words.takePicture, () => takePicture((blob) => this.add([blob], words.captured))),
        this.area, this.send));
    this.refresh();
    this.listen();
  }

  choose() {
    this.input.click();
  }

  listen() {
    const veil = h("div", { class: "drop", "aria-hidden": "true" }, h("div", {}, icon("picture"), words.dropHere));
    let depth = 0;
    const holdsFiles = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
    const leave = () => ((depth = 0), veil.remove());
    addEventListener("dragenter", (event) => holdsFiles(event) && depth++ === 0 && document.body.append(veil));
    addEventListener("dragleave", (event) => holdsFiles(event) && --depth <= 0 && leave());
    addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
    addEventListener("drop", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      leave();
      this.add([...event.dataTransfer.files]);
    });
    addEventListener("paste", (event) => {
      const files = filesOf(event.clipboardData);
      if (!files.length || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      this.add(files, files.length === 1 && /^image\.\w+$/.test(files[0].name) ? words.pasted : null);
    });
  }

  // One lot of files after the other, so that the tray has the order in which they came.
  add(files, name = null) {
    const before = this.reading.length ? this.read : Promise.resolve(true);
    this.reading.push(...files.map((file) => name || file.name));
    this.showTray();
    this.read = before.then(async (all) => (await this.readAll(files, name)) && all);
  }

  async readAll(files, name) {
    let added = 0;
    for (const file of files) {
      try {
        this.pictures.push(await pictureFrom(file, name || file.name));
        added++;
      } catch (error) {
        toast(error.message);
      }
      this.reading.shift();
      this.showTray();
    }
    if (added) announce(words.added(added));
    if (!touch()) this.area.focus();
    for (const picture of this.pictures) this.count(picture);
    return added === files.length;
  }

  // What a picture costs in tokens, from the server; unknown while it does not say.
  async count(picture) {
    if (this.counts.has(picture.id)) return;
    this.counts.set(picture.id, null);
    const part = { type: "image_url", image_url: { url: await dataUrlOf(picture.id) } };
    const counted = await countTokens({ model: this.model(), messages: [{ role: "user", content: [part] }] }).catch(() => null);
    if (!counted?.image_tokens) return;
    this.counts.set(picture.id, counted.image_tokens);
    const caption = this.tray.querySelector(`[data-picture="${picture.id}"] .cost`);
    if (caption) caption.textContent = words.positions(counted.image_tokens);
  }

  showTray() {
    this.tray.hidden = !this.pictures.length && !this.reading.length;
    this.tray.setAttribute("aria-busy", String(this.reading.length > 0));
    this.tray.replaceChildren(...this.pictures.map((picture, index) => {
      const move = (step) => {
        this.pictures.splice(index + step, 0, this.pictures.splice(index, 1)[0]);
        this.showTray();
        this.tray.querySelector(`[data-picture="${picture.id}"] [data-step="${step}"]:not(:disabled), [data-picture="${picture.id}"] .thumb`)?.focus();
      };
      const remove = () => {
        this.pictures.splice(index, 1);
        this.showTray();
        this.area.focus();
        announce(words.removedPicture(picture.name));
      };
      const several = this.pictures.length > 1;
      return h("li", { "data-picture": picture.id, "aria-label": words.pictureNumber(index + 1, picture.name) }, pictureThumb(picture),
        h("div", { class: "caption" },
          h("span", { class: "name", title: picture.name }, picture.name),
          h("span", { title: picture.scaled ? words.scaledHint : null }, !picture.width ? "" : picture.scaled
            ? words.scaled(picture.width, picture.height) : words.pictureSize(picture.width, picture.height)),
          h("span", { class: "cost" }, this.counts.get(picture.id) ? words.positions(this.counts.get(picture.id)) : "")),
        h("div", { class: "tools" },
          several && iconButton("left", words.moveEarlier(picture.name), () => move(-1), { disabled: index === 0, "data-step": "-1" }),
          several && iconButton("right", words.moveLater(picture.name), () => move(1),
            { disabled: index === this.pictures.length - 1, "data-step": "1" }),
          iconButton("close", words.removePicture(picture.name), remove)));
    }), ...this.reading.map((name) => h("li", { class: "reading" }, h("span", { class: "name", title: name }, words.reading(name)))));
    this.refresh();
  }

  key(event) {
    const sends = event.key === "Enter" && !event.isComposing && (event.ctrlKey || event.metaKey || (!event.shiftKey && !touch()));
    if (sends) {
      event.preventDefault();
      this.submit();
    }
  }

  async submit() {
    if (this.running) return void (document.activeElement === this.send && this.stop());
    if (this.reading.length) {
      if (this.waiting) return;
      this.waiting = true; // what was sent goes with the pictures that were added before
      const all = await this.read;
      this.waiting = false;
      if (!all || this.running) return;
    }
    const text = this.area.value.trim();
    if (!text && !this.pictures.length) return this.area.focus();
    const { pictures } = this;
    this.clear();
    this.ask(text, pictures);
  }

  clear() {
    this.area.value = "";
    this.pictures = [];
    this.showTray();
  }

  setRunning(running) {
    this.running = running;
    this.refresh();
  }

  refresh() {
    const { area, send, running } = this;
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight}px`;
    const label = running ? words.stop : words.send;
    if (send.getAttribute("aria-label") !== label) {
      send.setAttribute("aria-label", label);
      send.title = label;
      send.replaceChildren(icon(running ? "stop" : "send"));
    }
    send.classList.toggle("idle", !running && !area.value.trim() && !this.pictures.length && !this.reading.length);
  }

  focus() {
    this.area.focus();
  }
}
