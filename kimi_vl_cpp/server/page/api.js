// The server's HTTP API: requests with the key, errors as sentences, streams as events. Shows nothing.
import { words } from "./words.js";

const KEY = "kimi-vl.key";

export class ApiError extends Error {
  constructor(message, { status = 0, code = "", retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
  get offline() {
    return this.status === 0;
  }
}

const stores = () => {
  try {
    return [sessionStorage, localStorage];
  } catch {
    return []; // a browser that forbids storage
  }
};
let key = stores().map((store) => store.getItem(KEY)).find(Boolean) || "";

export const currentKey = () => key;
export const keyIsKept = () => Boolean(stores()[1]?.getItem(KEY));

export function setKey(value, keep) {
  key = value.trim();
  const [session, local] = stores();
  session?.removeItem(KEY);
  local?.removeItem(KEY);
  if (key) (keep ? local : session)?.setItem(KEY, key);
}

let askForKey = null; // (wasWrong) => Promise of "there is a new key"
let asking = null;
let seen = () => {}; // told of every answer (true) and of every failure to reach the server (false)

export function onKeyNeeded(ask) {
  askForKey = ask;
}
export function onContact(listener) {
  seen = listener;
}

// Addresses are relative, so that the page works below a prefix.
async function send(path, options = {}) {
  const used = key;
  let answer;
  try {
    answer = await fetch(path, {
      ...options,
      headers: { ...(options.body ? { "Content-Type": "application/json" } : {}), ...(used ? { Authorization: `Bearer ${used}` } : {}) },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    seen(false);
    throw new ApiError(words.offlineShort);
  }
  seen(true);
  if (answer.ok) return answer;
  if (answer.status === 401 && askForKey && !options.quiet) {
    if (used !== key) return send(path, options); // another request has asked meanwhile
    asking ||= askForKey(Boolean(used)).finally(() => (asking = null));
    if (await asking) return send(path, options);
    throw new ApiError(words.keyMissing, { status: 401, code: "invalid_api_key" });
  }
  throw await errorOf(answer);
}

async function errorOf(answer) {
  const told = await answer.json().catch(() => null);
  return new ApiError(told?.error?.message || words.unexpected(answer.status), {
    status: answer.status,
    code: told?.error?.kimi_code || told?.error?.code || "",
    retryAfter: Number(answer.headers.get("Retry-After")) || 0,
  });
}

const json = async (path, options) => (await send(path, options)).json();
const post = (path, body, options = {}) => json(path, { method: "POST", body: JSON.stringify(body), ...options });

export const listModels = () => json("v1/models");
export const serverStatus = (options) => json("v1/status", options);
export const countTokens = (body) => post("v1/chat/completions/input_tokens", body, { quiet: true });
export const control = (id, action) => post("v1/chat/completions/control", { id, action });
export const renderText = (text) => post("ui/render", { text }, { quiet: true });

// "ready", "loading" (with the server's sentence) or "offline".
export async function health() {
  try {
    const answer = await fetch("health", { cache: "no-store" });
    if (answer.ok) return { state: "ready" };
    return { state: "loading", message: (await errorOf(answer)).message };
  } catch {
    return { state: "offline" };
  }
}

// Yields the chunks of a streamed chat completion. Ends normally only after [DONE].
export async function* streamChat(body, signal) {
  const answer = await send("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      seen(false);
      throw new ApiError(words.brokenOff);
    }
    if (part.done) throw new ApiError(words.brokenOff);
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue; // blank lines, and ": ping"
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, { status: 500, code: chunk.error.kimi_code || chunk.error.code });
      yield chunk;
    }
  }
}
