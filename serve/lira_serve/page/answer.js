// One question and its answer, as it grows event by event. No drawing here.
import { BinaryMask } from "./rle.js";

// Seconds of all stages of a look; null is a look that was not needed.
export function total(stages) {
  return Object.values(stages ?? {}).reduce((sum, part) => sum + part, 0);
}

export class Answer {
  // asked: {task, text, label, ilvc, maxTiles, attributes}. messages: the conversation up to its question.
  constructor(asked, messages) {
    this.asked = asked;
    this.messages = messages;
    this.began = performance.now();
    this.state = "asking"; // then "answering", "done", "stopped" or "failed"
    this.characters = []; // of the clean text; the server counts characters, not UTF-16 units
    this.phrases = []; // with a mask, in their order: {text, start, end, mask}
    this.masks = new Map(); // id -> {id, box, score, rle, binary, t, slot}; slot null: not shown
    this.regions = []; // {mask, box, t}
    this.tokens = []; // {t, step, tag}
    this.attributes = [];
    this.started = false; // whether its turn has come
    this.look = null; // {scene: "new" or "kept", timings} once the server has looked at the picture
    this.timings = null;
    this.usage = null;
    this.finish = null; // the last event
    this.first = null; // seconds until the first token
    this.whole = null; // until the answer was complete
    this._named = false; // whether a phrase has just closed whose mask a region took
    this._repeats = new Set(); // steps of the [SEG]s behind such phrases: their masks repeat the region's
  }

  get text() {
    return this.characters.join("");
  }

  get running() {
    return this.state === "asking" || this.state === "answering";
  }

  // Seconds that it waited for its turn; null while it does.
  get queue() {
    if (this.timings?.queue !== undefined) return this.timings.queue;
    if (this.look) return Math.max(0, this.look.t - total(this.look.timings));
    return this.started ? 0 : null;
  }

  get elapsed() {
    return (performance.now() - this.began) / 1000;
  }

  get shown() {
    return [...this.masks.values()].filter((mask) => mask.slot !== null).sort((a, b) => a.slot - b.slot);
  }

  // The words for a mask: its phrase, or what was asked for.
  labelOf(mask) {
    const phrase = this.phrases.find((one) => one.mask === mask.id);
    return phrase?.text || (this.asked.task === "refseg" && this.asked.text) || `mask ${mask.slot + 1}`;
  }

  // Takes one chunk of the stream; returns what changed: "wait", "text", "mask", "region", "phrase", ...
  take(chunk) {
    if (chunk.waiting) return "wait";
    if (chunk.usage) this.usage = chunk.usage;
    const delta = chunk.choices?.[0]?.delta;
    if (delta?.role) this.started = true;
    const added = delta?.content;
    if (added) this._add(added);
    const event = chunk.lira;
    if (!event) return added ? "text" : null;
    if (event.type === "text" && event.step !== null) {
      this.state = "answering";
      if (this.first === null) this.first = event.t;
      this.tokens.push({ t: event.t, step: event.step, tag: event.tag ?? null });
      if (event.tag === "[SEG]" && this._named) {
        this._repeats.add(event.step);
        this._named = false;
      }
    } else if (event.type === "mask") this._addMask(event);
    else if (event.type === "region") this.regions.push(event);
    else if (event.type === "phrase") this._addPhrase(event);
    else if (event.type === "look") this.look = event;
    else if (event.type === "timings") {
      this.timings = event;
      this.whole = event.t;
    }
    else if (event.type === "finish") this._finish(event);
    return event.type;
  }

  _add(text) {
    this.characters.push(...text);
    if (text.trim()) this._named = false;
  }

  _addMask(event) {
    const binary = new BinaryMask(event.rle);
    const slot = this._repeats.has(event.step) ? null : this.shown.length;
    this.masks.set(event.id, { ...event, binary, slot });
  }

  _addPhrase(event) {
    const { text, start, end, mask } = event;
    this.phrases.push({ text, start, end, mask });
    this._named = this.regions.some((region) => region.mask === mask);
  }

  // The last event has the final phrases: their order gives the colours, and masks that none names are not shown.
  _finish(event) {
    this.finish = event;
    this.state = "done";
    this.timings = event.timings ?? this.timings;
    this.attributes = event.attributes ?? [];
    const named = (event.phrases ?? []).filter((phrase) => phrase.mask !== null && this.masks.has(phrase.mask));
    this.phrases = named;
    for (const mask of this.masks.values()) mask.slot = null;
    named.forEach((phrase, slot) => {
      const mask = this.masks.get(phrase.mask);
      mask.slot ??= slot;
    });
  }

  // Everything about it, for a file.
  asJson(model) {
    const masks = [...this.masks.values()].map(({ id, box, score, rle }) => ({ id, box, score, rle }));
    const events = [
      ...this.tokens.map((token) => ({ type: "text", ...token })),
      ...[...this.masks.values()].map(({ id, t, step }) => ({ type: "mask", t, id, step })),
      ...this.regions.map(({ t, mask, box }) => ({ type: "region", t, mask, box })),
    ].sort((a, b) => a.t - b.t);
    const { type, t, masks: _without, ...final } = this.finish ?? {};
    const asked = { ...this.asked, turn: this.messages.filter((message) => message.role === "user").length };
    return { model, asked, state: this.state, content: this.text, lira: { ...final, masks }, usage: this.usage, events };
  }
}
