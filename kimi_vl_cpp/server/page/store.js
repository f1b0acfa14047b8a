// What the browser keeps: conversations and their pictures in IndexedDB. Without it everything lives in memory, and the
// page is told once.
import { picturesOf } from "./tree.js";

const NAME = "kimi-vl";
let database = null; // a promise
let memory = null; // {conversations: Map, pictures: Map} when nothing can be kept
let tell = () => {};

// listener("none" | "full"): nothing can be kept; the storage is full.
export function onStorageTrouble(listener) {
  tell = listener;
}

const promised = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

function open() {
  database ||= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("pictures", { keyPath: "id" }).createIndex("at", "at");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("blocked"));
  });
  return database;
}

async function inStores(names, mode, work) {
  if (memory) return work(null);
  let transaction;
  try {
    transaction = (await open()).transaction(names, mode);
  } catch {
    memory = { conversations: new Map(), pictures: new Map() };
    tell("none");
    return work(null);
  }
  const finished = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
  const result = await work(transaction);
  await finished;
  return result;
}

// Keeps a record; when the storage is full, in memory for as long as the page is open.
const unsaved = { conversations: new Map(), pictures: new Map() };

async function put(name, record) {
  try {
    await inStores([name], "readwrite", (transaction) =>
      transaction ? promised(transaction.objectStore(name).put(record)) : void memory[name].set(record.id, record));
    unsaved[name].delete(record.id);
  } catch {
    unsaved[name].set(record.id, record);
    tell("full");
  }
}

export const saveConversation = (conversation) => put("conversations", structuredClone(conversation));
export const savePicture = (picture) => put("pictures", { at: Date.now(), ...picture });

// Pictures that were added to no conversation in the end. Those of the last day may be in the tray of another tab.
export async function sweepPictures(conversations) {
  const used = new Set(conversations.flatMap(picturesOf).map((picture) => picture.id));
  await inStores(["pictures"], "readwrite", async (transaction) => {
    if (!transaction) return;
    const pictures = transaction.objectStore("pictures");
    const old = await promised(pictures.index("at").getAllKeys(IDBKeyRange.upperBound(Date.now() - 86400000)));
    for (const id of old) if (!used.has(id)) pictures.delete(id);
  });
}

export async function allConversations() {
  const kept = await inStores(["conversations"], "readonly", (transaction) =>
    transaction ? promised(transaction.objectStore("conversations").getAll()) : [...memory.conversations.values()]);
  const all = new Map(kept.map((conversation) => [conversation.id, conversation]));
  for (const [id, conversation] of unsaved.conversations) all.set(id, conversation);
  return [...all.values()].sort((a, b) => b.updated - a.updated);
}

export async function loadPicture(id) {
  if (unsaved.pictures.has(id)) return unsaved.pictures.get(id);
  return inStores(["pictures"], "readonly", (transaction) =>
    transaction ? promised(transaction.objectStore("pictures").get(id)) : memory.pictures.get(id));
}

// Deletes a conversation and its pictures; the result brings them back.
export async function deleteConversation(conversation) {
  const pictures = (await Promise.all(picturesOf(conversation).map(({ id }) => loadPicture(id)))).filter(Boolean);
  await inStores(["conversations", "pictures"], "readwrite", (transaction) => {
    for (const [name, ids] of [["conversations", [conversation.id]], ["pictures", pictures.map((picture) => picture.id)]])
      for (const id of ids) {
        if (transaction) transaction.objectStore(name).delete(id);
        else memory[name].delete(id);
        unsaved[name].delete(id);
      }
  });
  return async () => {
    for (const picture of pictures) await savePicture(picture);
    await saveConversation(conversation);
  };
}
