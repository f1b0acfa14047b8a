// Places that an answer names: points and boxes, as Kimi-VL writes them. Pure.
//
// Kimi-VL answers in shares of the picture (0 to 1, origin at the top left): click(x=0.884, y=0.144), (0.25, 0.75),
// {"bbox_2d": [0.28, 0.5, 0.52, 0.7]}. Numbers above 1 may be thousandths or pixels: that is a reading, and the page
// shows which one it took.

const NUMBER = String.raw`(-?\d{0,6}(?:\.\d{1,12})?)`;
const GAP = String.raw`\s{0,10}`;
const CALL = new RegExp(String.raw`\bx["']?${GAP}[=:]${GAP}${NUMBER}${GAP},${GAP}["']?y["']?${GAP}[=:]${GAP}${NUMBER}`, "gi");
const CLICK = new RegExp(String.raw`\b\w{0,12}(?:click|moveTo|dragTo|tap)${GAP}\(${GAP}${NUMBER}${GAP},${GAP}${NUMBER}`, "gi");
const NAMED = new RegExp(
  String.raw`["']?\b(?:bbox_2d|bbox|box_2d|box|point_2d|point|coordinates?)\b["']?${GAP}[=:]?${GAP}[[(]{1,2}${GAP}` +
    String.raw`${NUMBER}${GAP},${GAP}${NUMBER}(?:${GAP},${GAP}${NUMBER}${GAP},${GAP}${NUMBER})?`, "gi");
const BARE = new RegExp(
  String.raw`[[(]${GAP}(0?\.\d{1,12}|[01]\.\d{1,12})${GAP},${GAP}(0?\.\d{1,12}|[01]\.\d{1,12})` +
    String.raw`(?:${GAP},${GAP}([01]?\.\d{1,12}|[01])${GAP},${GAP}([01]?\.\d{1,12}|[01]))?${GAP}[\])]`, "g");
const LABEL = /["']?(?:label|name|text|description)["']?\s{0,10}:\s{0,10}["']([^"'\n]{1,80})["']/i;
const LONGEST = 20000; // characters of an answer that are searched
const MOST = 100; // places

// [{numbers: [x, y] or [x0, y0, x1, y1], label}] in the order of the answer.
export function placesIn(answer) {
  const text = answer.slice(0, LONGEST);
  const found = [];
  for (const pattern of [NAMED, CALL, CLICK, BARE]) {
    for (const match of text.matchAll(pattern)) {
      const numbers = match.slice(1).filter((part) => part !== undefined).map(Number);
      if (match.slice(1).some((part) => part === "" || part === "-") || numbers.some(Number.isNaN)) continue;
      if (numbers.some((number) => number < -0.005)) continue;
      const end = match.index + match[0].length;
      if (found.some((other) => match.index < other.end && other.at < end)) continue;
      if (found.length < MOST) found.push({ at: match.index, end, numbers, label: labelAround(text, match.index, end) });
    }
  }
  return found.sort((a, b) => a.at - b.at).map(({ numbers, label }) => ({ numbers, label }));
}

// The label of the JSON object around a place.
function labelAround(text, at, end) {
  const open = text.lastIndexOf("{", at);
  const close = text.indexOf("}", end);
  if (open < 0 || close < 0 || at - open > 300 || close - end > 300 || text.slice(open, at).includes("}")) return "";
  return LABEL.exec(text.slice(open, close))?.[1] || "";
}

// What the numbers most likely are, all of an answer together.
export function likelyReading(places, { width, height }) {
  const numbers = places.flatMap((place) => place.numbers);
  if (numbers.every((number) => number <= 1.005)) return "shares";
  const inside = places.every(({ numbers: n }) => n.every((number, index) => number <= (index % 2 ? height : width)));
  return inside || numbers.some((number) => number > 1000) ? "pixels" : "thousandths";
}

// A place in pixels of the picture: {x, y} or {x0, y0, x1, y1}, with `outside` when it is not within the picture.
export function placed(place, reading, { width, height }) {
  const scale = { shares: [width, height], thousandths: [width / 1000, height / 1000], pixels: [1, 1] }[reading];
  const values = place.numbers.map((number, index) => number * scale[index % 2]);
  const slack = [0.005 * width + 1e-6, 0.005 * height + 1e-6];
  const outside = values.some((value, index) => value < -slack[index % 2] || value > (index % 2 ? height : width) + slack[index % 2]);
  const held = values.map((value, index) => Math.min(Math.max(value, 0), index % 2 ? height : width));
  if (held.length === 2) return { x: held[0], y: held[1], label: place.label, outside };
  const [x0, y0, x1, y1] = held;
  return { x0: Math.min(x0, x1), y0: Math.min(y0, y1), x1: Math.max(x0, x1), y1: Math.max(y0, y1), label: place.label, outside };
}
