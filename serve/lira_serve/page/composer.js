// The form: task, text, options, and whether the question follows up on the answer before it.
import { element } from "./element.js";

const FREE = "free";
// name of the task in a bundle -> what people call it, what it does, and an example of its text
const WORDS = {
  refseg: ["Segment", "Name a thing. Its mask appears.", "the orange star"],
  gcg: ["Describe", "A description, with a mask for each phrase.", ""],
  vqa: ["Question", "A question with a short answer.", "Is there a fish in the image? Please answer yes or no."],
  caption: ["Caption", "One sentence about the picture.", ""],
  [FREE]: ["Free", "Anything, in your own words. The model decides whether to segment.", "What is left of the house?"],
};
const MOST_TILES = 12; // of the runtime

export class Composer {
  // onAsk(asked), onStop(): the form was sent, or its button pressed while an answer runs.
  constructor({ onAsk, onStop }) {
    const find = (id) => document.getElementById(id);
    this.form = find("composer");
    this.tasks = find("tasks");
    this.hint = find("task-hint");
    this.field = find("question");
    this.button = find("ask");
    this.buttonLabel = find("ask-label");
    this.ilvc = find("ilvc");
    this.tiles = find("tiles");
    this.words = find("words");
    this.follow = find("follow-up");
    this.followRow = find("follow-up-row");
    this.running = false;
    this.known = {};
    this.drafts = {}; // each task keeps its text
    this.task = null;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) onStop();
      else onAsk(this.asked());
    });
    this.field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      if (!this.running) onAsk(this.asked());
    });
    this.field.addEventListener("input", () => this._grow());
  }

  // Takes what GET /v1/models says in `lira`.
  offer({ tasks = {}, max_tiles: usual }) {
    this.known = tasks;
    const rest = Object.keys(tasks).filter((name) => !(name in WORDS));
    const names = [...["gcg", "refseg", "vqa", "caption"].filter((name) => name in tasks), ...rest, FREE];
    this.tasks.replaceChildren(
      ...names.map((name) => {
        const input = element("input", { type: "radio", name: "task", value: name });
        input.addEventListener("change", () => this.choose(name));
        return element("label", {}, input, element("span", { text: WORDS[name]?.[0] ?? name }));
      }),
    );
    const most = element("option", { value: "", text: usual ? `auto (${usual})` : "auto" });
    const counts = Array.from({ length: MOST_TILES }, (_, i) => element("option", { value: String(i + 1), text: String(i + 1) }));
    this.tiles.replaceChildren(most, ...counts);
    this.choose(names.includes(this.task) ? this.task : names[0]);
  }

  choose(name) {
    if (this.task) this.drafts[this.task] = this.field.value;
    this.task = name;
    for (const input of this.tasks.querySelectorAll("input")) input.checked = input.value === name;
    const [, hint, example] = WORDS[name] ?? ["", "", ""];
    this.hint.textContent = hint || this.known[name]?.question || "";
    this.field.hidden = !this.needsText;
    this.field.placeholder = example;
    this.field.value = this.drafts[name] ?? "";
    this._grow();
  }

  get needsText() {
    return this.task === FREE || (this.known[this.task]?.needs_text ?? true);
  }

  asked() {
    return {
      task: this.task === FREE ? null : this.task,
      label: WORDS[this.task]?.[0] ?? this.task,
      text: this.needsText ? this.field.value.trim() : "",
      needsText: this.needsText,
      ilvc: this.ilvc.checked ? "auto" : "off",
      maxTiles: this.tiles.value ? Number(this.tiles.value) : null,
      attributes: this.words.value.split(",").map((word) => word.trim()).filter(Boolean),
      followUp: !this.followRow.hidden && this.follow.checked,
    };
  }

  focus() {
    const chosen = this.tasks.querySelector("input:checked");
    (this.field.hidden ? chosen : this.field)?.focus();
  }

  setReady(ready) {
    this.button.disabled = !ready;
  }

  setRunning(running) {
    if (running && document.activeElement === this.field) this.field.select(); // the next question replaces this one
    this.running = running;
    this.button.classList.toggle("stop", running);
    this.buttonLabel.textContent = running ? "Stop" : "Ask";
    this.button.setAttribute("aria-keyshortcuts", running ? "Escape" : "Control+Enter");
  }

  // Whether there is a complete answer to follow up on.
  setFollowable(possible) {
    this.followRow.hidden = !possible;
  }

  _grow() {
    this.field.style.height = "auto";
    if (this.field.scrollHeight) this.field.style.height = `${Math.min(this.field.scrollHeight + 2, 180)}px`;
  }
}
