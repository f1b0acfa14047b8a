// One answer under way: the request that the branch makes, and what its stream does to the turn.
import { ApiError, control, serverStatus, streamChat } from "./api.js";
import { dataUrlOf, LARGEST_REQUEST } from "./pictures.js";
import { requestFields, settings } from "./settings.js";
import { saveConversation } from "./store.js";
import { pathTo } from "./tree.js";
import { words } from "./words.js";

const SAVE_EVERY = 3000; // ms
const QUEUE_AFTER = 1500; // ms of silence, then the server is asked for the place in its queue

// The think marks as Kimi-VL writes them: an answer that goes on carries its thought in its text.
const OPEN = "◁think▷";
const CLOSE = "◁/think▷";

async function messagesFor(conversation, node, goOn) {
  const messages = settings.system ? [{ role: "system", content: settings.system }] : [];
  let bytes = 0;
  for (const turn of pathTo(conversation, node).slice(0, -1)) {
    if (turn.role === "assistant") {
      messages.push({ role: "assistant", content: turn.text });
      continue;
    }
    const parts = [];
    for (const picture of turn.pictures) {
      const url = await dataUrlOf(picture.id);
      bytes += url.length;
      parts.push({ type: "image_url", image_url: { url } });
    }
    messages.push({ role: "user", content: parts.length ? [...parts, { type: "text", text: turn.text }] : turn.text });
  }
  if (bytes > LARGEST_REQUEST * 0.98) throw new ApiError(words.tooManyBytes(Math.round(bytes / 2 ** 20), LARGEST_REQUEST >> 20));
  if (goOn) {
    const thought = node.thought ? OPEN + node.thought + (node.thoughtOpen ? "" : CLOSE) : "";
    messages.push({ role: "assistant", content: thought + node.text });
  }
  return messages;
}

export class Run extends EventTarget {
  constructor(conversation, node, { model, goOn = false }) {
    super();
    Object.assign(this, { conversation, node, model, goOn });
    this.abort = new AbortController();
    this.progress = null; // {stage, done, total} or {stage: "queue", ahead}
    this.id = null; // the server's name of this answer
    this.outcome = "done"; // the turn's state once the stream has ended
    this.ended = false; // and is kept
    this.began = performance.now();
    this.saved = performance.now();
    this.thoughtBegan = 0;
  }

  changed() {
    this.dispatchEvent(new Event("change"));
  }

  get thinking() {
    return Boolean(this.thoughtBegan);
  }

  thoughtMs() {
    return (this.node.thoughtMs || 0) + (this.thoughtBegan ? performance.now() - this.thoughtBegan : 0);
  }

  async start() {
    const { node } = this;
    Object.assign(node, { state: "running", error: null });
    if (!this.goOn) Object.assign(node, { text: "", thought: "", thoughtMs: 0, stats: null });
    this.changed();
    this.kept = saveConversation(this.conversation); // the question, before anything else
    await this.kept;
    const queue = setTimeout(() => this.watchQueue(), QUEUE_AFTER);
    try {
      const body = { model: this.model, messages: await messagesFor(this.conversation, node, this.goOn), stream: true,
        stream_options: { include_usage: true }, return_progress: true, ...requestFields(),
        ...(this.goOn ? { continue_final_message: true } : {}) };
      for await (const chunk of streamChat(body, this.abort.signal)) this.take(chunk);
    } catch (error) {
      if (error.name === "AbortError") this.outcome = "stopped";
      else {
        this.outcome = "failed";
        node.error = { message: error.message, status: error.status ?? 0 };
      }
    }
    clearTimeout(queue);
    node.state = this.outcome;
    this.endThought(node.state !== "done" && !node.text);
    this.progress = null;
    node.at = Date.now();
    this.conversation.updated = Date.now();
    await saveConversation(this.conversation); // what is shown as ended outlives the page
    this.ended = true;
    this.changed();
    this.dispatchEvent(new Event("end"));
  }

  stop() {
    this.abort.abort();
  }

  async answerNow() {
    if (this.id) await control(this.id, "reasoning_end").catch(() => {}); // it may just have ended by itself
  }

  take(chunk) {
    const { node } = this;
    this.id ||= chunk.id;
    if (chunk.prompt_progress) this.progress = chunk.prompt_progress;
    const choice = chunk.choices?.[0];
    const delta = choice?.delta || {};
    const thought = delta.reasoning_content ?? delta.reasoning;
    if (thought || delta.content) {
      this.firstMs ??= performance.now() - this.began;
      this.progress = null;
    }
    if (thought) {
      this.thoughtBegan ||= performance.now();
      node.thought += thought;
    }
    if (delta.content) {
      this.endThought(false);
      node.text += delta.content;
    }
    if (choice?.finish_reason) {
      this.outcome = choice.finish_reason === "length" ? "length" : "done";
      node.stats = { ...node.stats, ...figuresOf(chunk, this.firstMs) };
    }
    if (chunk.usage) node.stats = { ...node.stats, ...usageOf(chunk.usage) };
    this.changed();
    if (performance.now() - this.saved > SAVE_EVERY) {
      this.saved = performance.now();
      saveConversation(this.conversation);
    }
  }

  endThought(open) {
    if (this.thoughtBegan) this.node.thoughtMs = this.thoughtMs();
    if (this.thoughtBegan || !open) this.node.thoughtOpen = open && Boolean(this.node.thought);
    this.thoughtBegan = 0;
  }

  // Nothing has come yet: where in the queue is it? Ends with the first sign of work.
  async watchQueue() {
    while (this.node.state === "running" && (!this.progress || this.progress.stage === "queue") && !this.firstMs) {
      const status = await serverStatus({ quiet: true, signal: this.abort.signal }).catch(() => null);
      const ahead = placeInQueue(status, this.id);
      if (ahead === null) return;
      this.progress = { stage: "queue", ahead: Math.min(ahead, this.progress?.ahead ?? ahead) }; // later ones come behind
      this.changed();
      await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }
}

// How many wait before this one; null when it does not wait (or the server does not say).
function placeInQueue(status, id) {
  const waiting = (status?.streams || []).filter((stream) => stream.state === "queued");
  const at = waiting.findIndex((stream) => stream.id === id);
  if (at >= 0) return at;
  return waiting.length && !id ? waiting.length - 1 : null;
}

function figuresOf(chunk, measuredMs) {
  const { timings = {}, kimi = {} } = chunk;
  return {
    rate: timings.predicted_per_second ?? null,
    firstMs: timings.first_token_ms ?? measuredMs ?? null,
    cached: timings.cache_n ?? null,
    seed: kimi.seed ?? null,
    notices: kimi.notices || [],
    stopReason: kimi.stop_reason ?? null,
  };
}

function usageOf(usage) {
  return {
    prompt: usage.prompt_tokens,
    tokens: usage.completion_tokens,
    total: usage.total_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? null,
    image: usage.prompt_tokens_details?.image_tokens ?? null,
  };
}
