// Conversations as files: JSON out and in again, Markdown out.
import { download, newId } from "./dom.js";
import { blobFromDataUrl, dataUrlOf } from "./pictures.js";
import { saveConversation, savePicture } from "./store.js";
import { pathOf, picturesOf, titleOf } from "./tree.js";
import { words } from "./words.js";

const FORMAT = "kimi-vl-conversations";

const fileName = (title) => (title || words.untitled).replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "conversation";

export async function exportJson(conversations) {
  const out = [];
  for (const conversation of conversations) {
    const pictures = [];
    for (const { id } of picturesOf(conversation)) pictures.push({ id, data: await dataUrlOf(id).catch(() => null) });
    out.push({ ...conversation, pictures });
  }
  const name = conversations.length === 1 ? fileName(titleOf(conversations[0])) : "kimi-vl-conversations";
  download(`${name}.json`, "application/json", JSON.stringify({ format: FORMAT, version: 1, conversations: out }));
}

export function exportMarkdown(conversation) {
  const parts = [`# ${titleOf(conversation) || words.untitled}`];
  for (const node of pathOf(conversation)) {
    const pictures = node.pictures.map((picture) => `*[${picture.name}, ${words.pictureSize(picture.width, picture.height)}]*`);
    parts.push([`## ${node.role === "user" ? words.you : words.answer}`, ...pictures, node.text].join("\n\n"));
  }
  download(`${fileName(titleOf(conversation))}.md`, "text/markdown", `${parts.join("\n\n")}\n`);
}

const isText = (value) => typeof value === "string";

// Only what this page wrote goes in: anything may be in a file.
function checkedConversation(given) {
  const nodes = Object.values(given.nodes);
  const good = nodes.every((node) => isText(node.id) && isText(node.text) && ["user", "assistant"].includes(node.role) &&
    (node.parent === null || isText(node.parent)) && Array.isArray(node.pictures));
  if (!good || !Array.isArray(given.pictures)) throw new Error("shape");
  const id = newId();
  const fresh = new Map(given.pictures.map((picture) => [picture.id, newId()]));
  const conversation = { id, title: isText(given.title) ? given.title : "", named: Boolean(given.named), created: Number(given.created) || Date.now(),
    updated: Number(given.updated) || Date.now(), chosen: { ...given.chosen }, nodes: {} };
  for (const node of nodes) {
    const pictures = node.pictures.filter((picture) => fresh.has(picture.id)).map((picture) => ({
      id: fresh.get(picture.id), name: String(picture.name), type: String(picture.type), width: Number(picture.width) || 0,
      height: Number(picture.height) || 0, bytes: Number(picture.bytes) || 0, scaled: Boolean(picture.scaled) }));
    conversation.nodes[node.id] = { id: node.id, parent: node.parent, order: Number(node.order) || 0, at: Number(node.at) || 0,
      role: node.role, text: node.text, thought: isText(node.thought) ? node.thought : "", state: isText(node.state) ? node.state : "done",
      thoughtMs: Number(node.thoughtMs) || 0, stats: node.stats && typeof node.stats === "object" ? node.stats : null, pictures };
  }
  return { conversation, pictures: given.pictures.map((picture) => ({ id: fresh.get(picture.id), data: picture.data })) };
}

// Adds the conversations of a file and returns how many. Raises an Error with a sentence to show.
export async function importJson(file) {
  let content;
  try {
    content = JSON.parse(await file.text());
  } catch {
    throw new Error(words.importNotJson(file.name));
  }
  let checked;
  try {
    if (content.format !== FORMAT) throw new Error("format");
    checked = content.conversations.map(checkedConversation);
  } catch {
    throw new Error(words.importWrong(file.name));
  }
  for (const { conversation, pictures } of checked) {
    for (const { id, data } of pictures)
      if (isText(data)) await savePicture({ id, blob: await blobFromDataUrl(data) });
    await saveConversation(conversation);
  }
  return checked.length;
}
