// Shows one answer: its text with phrases, its masks as a list, attribute words, rates and the timeline.
import { color } from "./palette.js";
import { element, percent, rate, seconds } from "./element.js";
import { drawTimeline, timelineText } from "./timeline.js";

export class AnswerView {
  // onPoint(mask id or null), onPick(mask id): a phrase, a row or a span of the timeline is pointed at, or pressed.
  constructor({ onPoint, onPick }) {
    const find = (id) => document.getElementById(id);
    this.section = find("answer");
    this.question = find("asked");
    this.text = find("answer-text");
    this.stage = find("progress");
    this.masks = find("masks-section");
    this.list = find("mask-list");
    this.attributes = find("attributes");
    this.rates = find("rates");
    this.timeline = find("timeline");
    this.timelineWords = find("timeline-words");
    this.status = find("status");
    this.onPoint = onPoint;
    this.onPick = onPick;
    this.answer = null;
    this._tail = null; // the text node that grows
    this._done = 0; // characters before it
    this._phrases = []; // those that have their elements
    this._ticker = 0;
  }

  show(answer) {
    this.answer = answer;
    this.section.hidden = answer === null;
    clearInterval(this._ticker);
    if (!answer) return;
    this.question.replaceChildren(element("span", { class: "task", text: answer.asked.label }));
    if (answer.messages.length > 1) this.question.append(element("span", { class: "turn", text: " ↳", title: "follows up" }));
    if (answer.asked.text) this.question.append(" ", answer.asked.text);
    this._rebuild();
    this.list.replaceChildren();
    this._drawMasks();
    this._drawAttributes();
    this._drawProgress();
    if (answer.running) {
      this.status.textContent = "Asking.";
      this._ticker = setInterval(() => this._drawProgress(), 100);
    }
  }

  // `change`: what Answer.take returned.
  update(change) {
    if (change === "text") this._grow();
    else if (change === "phrase" || change === "finish") this._placePhrases();
    else if (change === "mask") this._markPhrases();
    if (["mask", "phrase", "finish"].includes(change)) this._drawMasks();
    if (change === "finish") this._drawAttributes(true);
    if (change === "wait") this.status.textContent = "Waiting for its turn.";
    if (change === "look" && this.answer.first === null) this.status.textContent = "Reading the question.";
  }

  // The answer has ended, in whatever way.
  end() {
    clearInterval(this._ticker);
    this._drawProgress();
    const { answer } = this;
    const masks = answer.shown.length;
    const count = masks === 0 ? "no masks" : masks === 1 ? "1 mask" : `${masks} masks`;
    const cut = answer.finish?.finish_reason === "length" ? "is cut off" : "is complete";
    if (answer.state === "done") this.status.textContent = `The answer ${cut}, with ${count}.`;
    else if (answer.state === "stopped") this.status.textContent = "Stopped.";
  }

  light(id) {
    for (const lit of this.section.querySelectorAll("[data-mask]")) {
      lit.classList.toggle("lit", id !== null && lit.dataset.mask === String(id));
    }
    this.section.classList.toggle("spotlight", id !== null);
  }

  press(id) {
    for (const button of this.section.querySelectorAll("[aria-pressed][data-mask]")) {
      button.setAttribute("aria-pressed", String(button.dataset.mask === String(id)));
    }
  }

  // --- the text ---------------------------------------------------------------------------------------

  _grow() {
    this._tail.data = this.answer.characters.slice(this._done).join("");
  }

  _rebuild() {
    this._done = 0;
    this._phrases = [];
    this._tail = document.createTextNode("");
    this.text.replaceChildren(this._tail);
    this._grow();
    this._placePhrases();
  }

  // New phrases become elements. Those that have one keep it, and with it the focus.
  _placePhrases() {
    const wanted = this.answer.phrases.filter((phrase) => phrase.end > phrase.start);
    const same = this._phrases.every(
      (phrase, i) => wanted[i] && ["start", "end", "mask"].every((name) => phrase[name] === wanted[i][name]),
    );
    if (!same) {
      this._phrases = [];
      this._done = 0;
      this._tail = document.createTextNode("");
      this.text.replaceChildren(this._tail);
    }
    const { characters } = this.answer;
    for (const phrase of wanted.slice(this._phrases.length)) {
      const start = Math.max(phrase.start, this._done); // where two overlap, the earlier one stays whole
      this._phrases.push(phrase);
      if (phrase.end <= start) continue;
      const made = this._phraseElement(characters.slice(start, phrase.end).join(""), phrase);
      this._tail.data = characters.slice(this._done, start).join("");
      this._tail = document.createTextNode("");
      this.text.append(made, this._tail);
      this._done = phrase.end;
    }
    this._grow();
    this._markPhrases();
  }

  // Colours and numbers; there are no numbers while there is one mask.
  _markPhrases() {
    const numbered = this.answer.shown.length > 1;
    for (const made of this.text.querySelectorAll(".phrase")) {
      const mask = this.answer.masks.get(Number(made.dataset.mask));
      if (!mask || mask.slot === null) continue;
      made.style.setProperty("--mask", color(mask.slot));
      made.dataset.number = numbered ? mask.slot + 1 : "";
    }
  }

  _phraseElement(text, phrase) {
    const made = element("span", { class: "phrase", role: "button", text });
    made.tabIndex = 0;
    made.setAttribute("aria-pressed", "false");
    this._links(made, phrase.mask);
    return made;
  }

  _links(made, id) {
    made.dataset.mask = id;
    made.addEventListener("pointerenter", () => this.onPoint(id));
    made.addEventListener("pointerleave", () => this.onPoint(null));
    made.addEventListener("focus", () => made.matches(":focus-visible") && this.onPoint(id));
    made.addEventListener("blur", () => this.onPoint(null));
    made.addEventListener("click", () => this.onPick(id));
    if (made.tagName !== "BUTTON") {
      made.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        event.stopPropagation();
        this.onPick(id);
      });
    }
  }

  // --- masks and words --------------------------------------------------------------------------------

  _drawMasks() {
    const { answer } = this;
    const shown = answer.shown;
    this.masks.hidden = shown.length === 0;
    const rows = shown.map((mask) => {
      const label = answer.labelOf(mask);
      const share = mask.binary.area / (mask.binary.width * mask.binary.height);
      const present = this.list.querySelector(`[data-mask="${Number(mask.id)}"]`);
      const row = present && present.dataset.label === label ? present : element("button", { type: "button", class: "mask-row" });
      if (row !== present) {
        row.dataset.label = label;
        row.append(
          element("span", { class: "disc" }),
          element("span", { class: "mask-name", text: label }),
          element("span", { class: "number", text: percent(share), title: "share of the picture" }),
          element("span", { class: "number score", text: mask.score.toFixed(2), title: "score: the mean probability of its pixels" }),
        );
        row.setAttribute("aria-pressed", "false");
        row.classList.toggle("new", answer.running);
        this._links(row, mask.id);
      }
      row.style.setProperty("--mask", color(mask.slot));
      row.querySelector(".disc").textContent = shown.length > 1 ? mask.slot + 1 : "";
      row.setAttribute("aria-label", describe(label, mask, share));
      return row.parentElement ?? element("li", {}, row);
    });
    const items = [...this.list.children];
    if (items.length !== rows.length || rows.some((row, i) => row !== items[i])) this.list.replaceChildren(...rows);
  }

  _drawAttributes(grow = false) {
    const { answer } = this;
    const ranked = answer.attributes.filter((one) => answer.masks.get(one.mask)?.slot != null);
    this.attributes.hidden = ranked.length === 0;
    const groups = ranked.map(({ mask: id, words }) => {
      const mask = answer.masks.get(id);
      const bars = words.map(({ word, probability }) => {
        const fill = element("span", { class: grow ? "bar-fill new" : "bar-fill" });
        fill.style.width = `${100 * probability}%`;
        return element(
          "li", {},
          element("span", { class: "word", text: word }),
          element("span", { class: "bar", "aria-hidden": "true" }, fill),
          element("span", { class: "number", text: percent(probability) }),
        );
      });
      const name = element("p", { class: "group-name" }, element("span", { class: "disc small" }), answer.labelOf(mask));
      const group = element("div", { class: "group" }, name, element("ul", { class: "bars" }, ...bars));
      group.dataset.mask = id;
      group.style.setProperty("--mask", color(mask.slot));
      return group;
    });
    this.attributes.querySelector(".groups").replaceChildren(...groups);
  }

  // --- time -------------------------------------------------------------------------------------------

  _drawProgress() {
    const { answer } = this;
    this.section.classList.toggle("running", answer.running);
    this.text.setAttribute("aria-busy", String(answer.running));
    this.text.classList.toggle("none", answer.characters.length === 0);
    this.stage.textContent = answer.running && answer.first === null ? `${doing(answer)} · ${answer.elapsed.toFixed(1)} s` : ending(answer);
    this.stage.hidden = this.stage.textContent === "";
    drawTimeline(this.timeline, answer, this.onPoint);
    this.timelineWords.textContent = answer.running ? "" : timelineText(answer);
    this.rates.replaceChildren(...figures(answer).map(([value, unit, name]) =>
      element("div", {}, element("dt", { text: name }), element("dd", { text: value }, element("small", { text: unit }))),
    ));
  }
}

function doing(answer) {
  if (answer.queue === null) return "Waiting for its turn";
  return answer.look ? "Reading the question" : "Looking at the picture";
}

function ending(answer) {
  if (answer.state === "stopped") return "Stopped here.";
  if (answer.finish?.finish_reason === "length") return "Cut off: the answer reached its greatest length.";
  if (answer.state === "done" && !answer.characters.length && !answer.shown.length) return "The answer is empty.";
  return "";
}

// [value, unit, name] of the figures beside the timeline.
function figures(answer) {
  const { timings, first, tokens } = answer;
  if (first === null) return [];
  const split = (value) => seconds(value).split(" ");
  const last = tokens[tokens.length - 1].t;
  const speed = timings ? timings.decode_tokens_per_second : (tokens.length - 1) / Math.max(last - first, 1e-6);
  const rows = [[...split(first), "first token"]];
  if (speed > 0 && tokens.length > 1) rows.push([rate(speed), "tok/s", "decoding"]);
  if (timings) rows.push([rate(timings.end_to_end_tokens_per_second), "tok/s", "end to end"]);
  rows.push([String(timings?.new_tokens ?? tokens.length), "", "tokens"]);
  if (timings) rows.push([...split(answer.whole), "total"]);
  return rows;
}

function describe(label, mask, share) {
  const [height, width] = mask.rle.size;
  if (!mask.box) return `${label}: an empty mask`;
  const x = (mask.box[0] + mask.box[2]) / 2 / width;
  const y = (mask.box[1] + mask.box[3]) / 2 / height;
  const across = x < 1 / 3 ? "left" : x < 2 / 3 ? "centre" : "right";
  const down = y < 1 / 3 ? "top" : y < 2 / 3 ? "middle" : "bottom";
  return `Mask ${mask.slot + 1}, ${label}: ${percent(share)} of the picture, ${down} ${across}, score ${mask.score.toFixed(2)}`;
}
