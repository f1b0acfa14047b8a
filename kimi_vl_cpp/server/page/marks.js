// The places of an answer drawn on the picture, with the reading of their numbers to see and to change.
import { dialog, h, svg } from "./dom.js";
import { likelyReading, placed, placesIn } from "./grounding.js";
import { pictureImage } from "./pictures.js";
import { words } from "./words.js";

// A <figure>, or null when the answer names no place or there is no picture.
export function marksFigure(answer, pictures) {
  const places = pictures.length && answer.length ? placesIn(answer) : [];
  const shown = pictures.filter((picture) => picture.width);
  if (!places.length || !shown.length) return null;
  let picture = shown.at(-1);
  let reading = likelyReading(places, picture);
  const stage = h("button", { type: "button", class: "stage", onclick: () => showLarge(picture, layer(places, reading, picture)) });
  const note = h("p", { class: "hint" });
  const draw = () => {
    const at = places.map((place) => placed(place, reading, picture));
    const outside = at.filter((place) => place.outside).length;
    stage.setAttribute("aria-label", `${words.marksOn(picture.name)}. ${words.showLarge(picture.name)}`);
    stage.replaceChildren(pictureImage(picture, ""), layer(places, reading, picture));
    note.textContent = outside ? words.outside(outside) : "";
  };
  const choice = (label, options, value, change) => {
    const control = h("select", { onchange: () => (change(control.value), draw()) }, options.map(([key, text]) => h("option", { value: key }, text)));
    control.value = value;
    return h("label", { class: "choice" }, h("span", {}, label), control);
  };
  draw();
  return h("figure", { class: "marks", "aria-label": words.marks }, stage,
    h("figcaption", {},
      choice(words.readAs, Object.entries(words.readings), reading, (value) => (reading = value)),
      shown.length > 1 && choice(words.drawOn, shown.map((each) => [each.id, each.name]), picture.id,
        (id) => (picture = shown.find((each) => each.id === id))),
      note));
}

// Lines of constant width over a light and a dark ground: each is drawn twice.
function layer(places, reading, picture) {
  const { width, height } = picture;
  const unit = Math.max(width, height) / 100;
  const size = Math.max(13, 2.6 * unit); // of labels; small pictures are shown in their own size
  const ring = Math.max(8, 1.8 * unit);
  const shapes = places.map((place) => placed(place, reading, picture)).filter((place) => !place.outside).flatMap((place, index) => {
    const d = "x" in place ? crossed(place.x, place.y, ring) : `M${place.x0} ${place.y0}H${place.x1}V${place.y1}H${place.x0}Z`;
    const [x, y] = "x" in place ? [place.x + 1.2 * ring, place.y - 0.8 * ring] : [place.x0, place.y0 - 0.35 * size];
    const text = place.label || (places.length > 1 ? String(index + 1) : "");
    const anchor = x > width * 0.8 ? "end" : "start";
    const at = anchor === "end" && "x" in place ? x - 2.4 * ring : x;
    return [svg("path", { d, class: "casing" }), svg("path", { d, class: "mark" }), ...(text ? tag(text, at, y, size, anchor, width) : [])];
  });
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "layer", "aria-hidden": "true" }, ...shapes);
}

const ink = document.createElement("canvas").getContext("2d");

// A label on a ground of its own, inside the picture: readable over whatever the picture shows.
function tag(text, x, y, size, anchor, width) {
  ink.font = `600 ${size}px ${getComputedStyle(document.body).fontFamily}`;
  const wide = ink.measureText(text).width + 0.7 * size;
  const left = Math.max(0, Math.min(anchor === "end" ? x - wide : x, width - wide));
  const base = Math.max(y, 1.05 * size);
  const label = svg("text", { x: left + 0.35 * size, y: base, "font-size": size });
  label.textContent = text;
  return [svg("rect", { x: left, y: base - 1.05 * size, width: wide, height: 1.4 * size, rx: 0.25 * size }), label];
}

// A ring and four strokes around the point; the point itself stays visible.
function crossed(x, y, r) {
  const far = 1.7 * r;
  return `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0M${x - far} ${y}h${far - r}M${x + r} ${y}h${far - r}` +
    `M${x} ${y - far}v${far - r}M${x} ${y + r}v${far - r}`;
}

// The picture as large as the window.
export function showLarge(picture, marks = null) {
  const size = picture.width ? words.pictureSize(picture.width, picture.height) : "";
  dialog(picture.name, h("figure", { class: "large" }, h("div", { class: "stage" }, pictureImage(picture), marks),
    h("figcaption", {}, size)), { class: "wide" });
}
