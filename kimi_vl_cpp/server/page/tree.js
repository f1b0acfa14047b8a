// A conversation as a tree of turns: every edit and every regeneration is a sibling, and nothing is lost. Pure.
import { newId } from "./dom.js";

export function newConversation() {
  const now = Date.now();
  return { id: newId(), title: "", named: false, created: now, updated: now, nodes: {}, chosen: {} };
}

const TOP = "";

export function childrenOf(conversation, id) {
  return Object.values(conversation.nodes)
    .filter((node) => (node.parent ?? TOP) === (id ?? TOP))
    .sort((a, b) => a.order - b.order);
}

// Adds a turn below `parent` (null: at the top) and chooses it.
export function addNode(conversation, parent, fields) {
  const node = { id: newId(), parent, order: Object.keys(conversation.nodes).length, at: Date.now(), pictures: [], text: "", ...fields };
  conversation.nodes[node.id] = node;
  conversation.chosen[parent ?? TOP] = node.id;
  conversation.updated = Date.now();
  return node;
}

// The turns that are shown, from the first to the last.
export function pathOf(conversation) {
  const path = [];
  for (let id = null; ; id = path.at(-1).id) {
    const children = childrenOf(conversation, id);
    if (!children.length) return path;
    path.push(children.find((child) => child.id === conversation.chosen[id ?? TOP]) || children.at(-1));
  }
}

// The turns from the first to `node`.
export function pathTo(conversation, node) {
  const path = [];
  for (let at = node; at; at = conversation.nodes[at.parent]) path.unshift(at);
  return path;
}

export function siblingsOf(conversation, node) {
  const all = childrenOf(conversation, node.parent);
  return { all, index: all.findIndex((other) => other.id === node.id) };
}

export function choose(conversation, node) {
  conversation.chosen[node.parent ?? TOP] = node.id;
}

export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = childrenOf(conversation, null)[0];
  const text = (first?.text || first?.pictures[0]?.name || "").replace(/\s+/g, " ").trim();
  return text.length > 60 ? `${text.slice(0, 59)}…` : text;
}

export function picturesOf(conversation) {
  const found = new Map();
  for (const node of Object.values(conversation.nodes)) for (const picture of node.pictures) found.set(picture.id, picture);
  return [...found.values()];
}

// The pictures that the model saw last before `node`: those of the nearest turn that has any.
export function picturesBefore(conversation, node) {
  return pathTo(conversation, node).slice(0, -1).reverse().find((turn) => turn.pictures.length)?.pictures || [];
}

export function textOf(conversation) {
  return [titleOf(conversation), ...Object.values(conversation.nodes).map((node) => node.text)].join("\n").toLowerCase();
}
