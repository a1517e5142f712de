// Joins the parts: a picture, a question, its answer as it comes, and what people do with them.
import { ask } from "./api.js";
import { Answer } from "./answer.js";
import { AnswerView } from "./answer_view.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import * as downloads from "./downloads.js";
import { drawEarlier } from "./earlier.js";
import { clearProblems, tell, tellBusy } from "./problems.js";
import { openPicture, READABLE, Stage } from "./stage.js";

const MOST_RETRIES = 5; // by itself, while the server is busy
const find = (id) => document.getElementById(id);

let model = null; // what GET /v1/models says of the served one
let picture = null;
let answers = []; // about this picture, oldest first
let current = null; // the answer on show
let stopRunning = null; // AbortController of the running question
let pinned = null; // the mask that stays lit
let lost = null; // the question that the server was gone for

const stage = new Stage(find("frame"), { onPoint: point, onPick: pick });
const view = new AnswerView({ onPoint: point, onPick: pick });
const composer = new Composer({ onAsk: (asked) => question(asked), onStop: stop });
const connection = new Connection({ onModel: connected, onLost: () => composer.setReady(false) });

function connected(served) {
  const changed = model?.id !== served.id;
  model = served;
  const { target, precision } = served.lira ?? {};
  find("model").textContent = [served.id, target, precision].filter(Boolean).join(" · ");
  if (changed) composer.offer(served.lira ?? {});
  composer.setReady(true);
  if (lost) {
    const asked = lost;
    lost = null;
    tell("ask-problem", "The server is back.", ["Ask again", () => question(asked)]);
  }
}

// --- errors -----------------------------------------------------------------------------------------------

function failed(error, answer, retries) {
  const { asked } = answer;
  const again = ["Ask again", () => question(asked)];
  lost = error.status === 0 ? asked : null;
  if (lost) {
    composer.setReady(false);
    connection.connect();
  }
  if (answer.tokens.length) {
    answer.state = "failed";
    tell("answer-problem", error.message, ...(lost ? [] : [again]));
    return;
  }
  answers = answers.filter((one) => one !== answer);
  if (current === answer) show(answers[answers.length - 1] ?? null);
  if (error.status === 401) connection.askForKey();
  else if (error.status === 503 && retries < MOST_RETRIES) {
    tellBusy(error.message, error.retryAfter || 2, () => question(asked, retries + 1));
  } else if (error.status === 413 || /image|picture/.test(`${error.param} ${error.code}`)) {
    tell("picture-problem", error.message);
  } else tell("ask-problem", error.message, ...(lost ? [] : [again]));
}

// --- a question -----------------------------------------------------------------------------------------

function question(asked, retries = 0) {
  if (stopRunning) return;
  clearProblems();
  if (!model) return;
  if (!picture) {
    tell("ask-problem", "Choose a picture first.");
    find("choose").focus();
    return;
  }
  if (asked.needsText && !asked.text) {
    tell("ask-problem", asked.task === "refseg" ? "Write what to segment." : "Write a question.");
    composer.focus();
    return;
  }
  const answer = new Answer(asked, conversation(asked));
  answers.push(answer);
  show(answer);
  run(answer, retries);
}

// The messages up to this question: those of the answer on show, if this one follows up on it.
function conversation(asked) {
  if (asked.followUp && current?.state === "done") {
    const said = { role: "assistant", content: current.text, lira: { turn: current.finish.turn } };
    return [...current.messages, said, { role: "user", content: asked.text }];
  }
  const parts = [{ type: "image_url", image_url: { url: picture.uri } }];
  if (asked.text) parts.push({ type: "text", text: asked.text });
  return [{ role: "user", content: parts }];
}

async function requestBody(answer) {
  const { asked } = answer;
  const uri = await picture.uri;
  const messages = answer.messages.map((message) =>
    typeof message.content === "string"
      ? message
      : { ...message, content: message.content.map((part) => (part.image_url ? { ...part, image_url: { url: uri } } : part)) },
  );
  const lira = { ilvc: asked.ilvc };
  if (asked.task) lira.task = asked.task;
  if (asked.maxTiles) lira.max_tiles = asked.maxTiles;
  if (asked.attributes.length) lira.attributes = asked.attributes;
  return { model: model.id, messages, lira };
}

async function run(answer, retries) {
  const stopper = (stopRunning = new AbortController());
  composer.setRunning(true);
  find("frame").classList.add("looking");
  let error = null;
  try {
    for await (const chunk of ask(await requestBody(answer), stopper.signal)) {
      const change = answer.take(chunk);
      find("frame").classList.toggle("looking", answer.running && answer.first === null);
      if (answer !== current) continue;
      view.update(change);
      if (["mask", "phrase", "region", "finish"].includes(change)) {
        stage.update(answer);
        describePicture();
      }
    }
    if (answer.running) answer.state = "done";
  } catch (caught) {
    if (caught.name === "AbortError") answer.state = "stopped";
    else error = caught;
  }
  stopRunning = null;
  composer.setRunning(false);
  find("frame").classList.remove("looking");
  if (error) failed(error, answer, retries);
  if (answer === current) {
    stage.update(answer);
    view.end();
    offerActions();
  }
  drawEarlier(answers, current, show);
}

function stop() {
  tell("ask-problem", "");
  stopRunning?.abort();
}

// --- what is on show ------------------------------------------------------------------------------------

function show(answer) {
  if (answer !== current) tell("answer-problem", "");
  current = answer;
  pinned = null;
  stage.clear();
  view.show(answer);
  if (answer) stage.update(answer, true);
  if (answer && !answer.running) view.end();
  point(null);
  describePicture();
  offerActions();
  drawEarlier(answers, current, show);
}

function offerActions() {
  composer.setFollowable(current?.state === "done");
  for (const button of find("downloads").querySelectorAll("button")) button.disabled = !current || current.running;
}

// Lights a mask up wherever it is shown; null goes back to the pinned one.
function point(id) {
  const lit = id ?? pinned;
  stage.light(lit);
  view.light(lit);
  const tip = find("tip");
  const mask = lit === null ? null : current?.masks.get(lit);
  tip.hidden = !mask;
  if (mask) tip.textContent = current.labelOf(mask);
}

function pick(id) {
  pinned = pinned === id ? null : id;
  view.press(pinned);
  point(pinned);
}

function describePicture() {
  const masks = current?.shown ?? [];
  const names = masks.map((mask) => current.labelOf(mask)).join(", ");
  const size = picture ? `${picture.name}, ${picture.width} by ${picture.height} pixels` : "No picture yet";
  find("masks").setAttribute("aria-label", names ? `${size}, with masks: ${names}` : size);
}

// --- pictures -------------------------------------------------------------------------------------------

async function take(file) {
  let opened;
  try {
    opened = await openPicture(file);
  } catch (error) {
    tell("picture-problem", error.message);
    return;
  }
  stop();
  clearProblems();
  opened.uri = dataUri(file);
  picture = opened;
  answers = [];
  find("empty").hidden = true;
  find("frame").classList.add("filled");
  find("stage-bar").hidden = false;
  for (const id of ["picture", "masks"]) find(id).hidden = false;
  find("picture-name").textContent = `${picture.name} · ${picture.width} × ${picture.height}`;
  stage.show(picture);
  show(null);
  composer.focus();
}

// The file as it is: the server reads its EXIF orientation itself.
function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function sample() {
  try {
    const response = await fetch("page/sample.webp");
    take(new File([await response.blob()], "sample.webp", { type: "image/webp" }));
  } catch {
    tell("picture-problem", "The sample has not come: the server does not answer.");
  }
}

function takeFrom(transfer) {
  const file = [...(transfer?.files ?? [])].find((one) => READABLE.includes(one.type)) ?? transfer?.files?.[0];
  if (file) take(file);
  return Boolean(file);
}

// --- events ---------------------------------------------------------------------------------------------

for (const id of ["choose", "another"]) find(id).addEventListener("click", () => find("file").click());
find("sample").addEventListener("click", sample);
find("file").addEventListener("change", (event) => {
  takeFrom(event.target);
  event.target.value = ""; // the same file may be chosen again
});
addEventListener("paste", (event) => {
  if (takeFrom(event.clipboardData)) event.preventDefault();
});
let depth = 0; // dragenter and dragleave come once per element
addEventListener("dragenter", () => document.body.classList.toggle("dropping", ++depth > 0));
addEventListener("dragleave", () => document.body.classList.toggle("dropping", --depth > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("dropping");
  if (!takeFrom(event.dataTransfer)) tell("picture-problem", "That is no file. Save the picture first, or copy and paste it.");
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    if (stopRunning || find("ask-problem").firstChild) stop(); // a countdown too
    else if (pinned !== null) pick(pinned);
  }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !stopRunning) {
    event.preventDefault();
    find("composer").requestSubmit(find("ask"));
  }
});
find("frame").addEventListener("pointermove", (event) => {
  const area = find("frame").getBoundingClientRect();
  find("tip").style.transform = `translate(${event.clientX - area.left + 14}px, ${event.clientY - area.top + 16}px)`;
});
const saves = {
  "save-png": [downloads.png, ".png"],
  "save-svg": [downloads.svg, ".svg"],
  "save-json": [async (_, answer) => downloads.json(model.id, answer), ".json"],
};
for (const [id, [make, ending]] of Object.entries(saves)) {
  find(id).addEventListener("click", async () => {
    downloads.save(await make(picture, current), `${downloads.stem(picture)}-lira${ending}`);
  });
}
addEventListener("online", () => connection.connect());
connection.connect();
