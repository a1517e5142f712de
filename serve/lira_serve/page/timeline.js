// The timeline of an answer: one lane per stage, over seconds since the server took the question.
import { total } from "./answer.js";
import { color } from "./palette.js";
import { element, seconds } from "./element.js";

const LOOK_PARTS = [
  ["preprocess", "prepare the picture"],
  ["encode_semantic", "semantic encoder"],
  ["encode_pixel", "pixel encoder"],
  ["sefe", "SEFE"],
];

const SHORTEST = 0.005; // seconds that are worth a lane

// Answer -> {end, lanes: [{name, spans: [{start, end, kind, title, mask?}], marks: [{t, tag}]}]}. While the answer
// runs, `elapsed` is the time so far and the lane of what it waits for grows.
export function lanesOf(answer) {
  const { timings, first, tokens } = answer;
  const elapsed = answer.running ? answer.elapsed : 0;
  const queue = answer.queue ?? elapsed;
  const parts = timings?.look ?? answer.look?.timings ?? {};
  const lanes = { queue: [], look: [], prefill: [], masks: [], regions: [] };
  if (queue >= SHORTEST) lanes.queue.push({ start: 0, end: queue, kind: "queue", title: "waited for its turn" });
  let at = queue;
  for (const [name, title] of LOOK_PARTS) {
    if (!(parts[name] > 0)) continue;
    lanes.look.push({ start: at, end: at + parts[name], kind: name, title });
    at += parts[name];
  }
  if (first !== null) {
    const began = timings ? Math.max(at, first - timings.prefill) : (answer.look?.t ?? at);
    const rows = timings ? ` ${timings.prefill_tokens} rows of` : "";
    lanes.prefill.push({ start: began, end: first, kind: "prefill", title: `read${rows} the prompt` });
  } else if (answer.look) {
    lanes.prefill.push({ start: answer.look.t, end: elapsed, kind: "prefill", title: "reads the prompt" });
  } else if (answer.queue !== null) {
    lanes.look.push({ start: queue, end: elapsed, kind: "encode_semantic", title: "looks at the picture" });
  }
  const masks = [...answer.masks.values()];
  masks.forEach((mask, i) => {
    const took = timings?.masks?.[i] ?? 0;
    lanes.masks.push({ start: mask.t - took, end: mask.t, mask, title: `mask ${i + 1}` });
  });
  answer.regions.forEach((region, i) => {
    const took = timings?.regions?.[i] ?? 0;
    const mask = answer.masks.get(region.mask);
    lanes.regions.push({ start: region.t - took, end: region.t, mask, title: "looked again at the region" });
  });
  const end = Math.max(elapsed, at, ...tokens.map((token) => token.t), ...masks.map((mask) => mask.t), 0.001);
  const shown = Object.entries(lanes).map(([name, spans]) => ({ name, spans, marks: [] }));
  shown.splice(3, 0, { name: "tokens", spans: [], marks: tokens });
  return { end, lanes: shown.filter((lane) => lane.spans.length || lane.marks.length) };
}

// Draws it into `place`; onPoint(mask id or null) when the pointer is on a mask's span.
export function drawTimeline(place, answer, onPoint) {
  const { end, lanes } = lanesOf(answer);
  const left = (t) => `${Math.min(100, Math.max(0, (100 * t) / end))}%`;
  const rows = lanes.map(({ name, spans, marks }) => {
    const track = element("div", { class: "track" });
    for (const span of spans) track.append(bar(span, left, end, onPoint));
    for (const mark of marks) {
      const tick = element("i", { class: mark.tag ? "tick tag" : "tick", title: title(mark) });
      tick.style.left = left(mark.t);
      track.append(tick);
    }
    return element("div", { class: "lane" }, element("span", { class: "lane-name", text: name }), track);
  });
  const axis = element("div", { class: "axis" });
  for (const t of steps(end)) {
    const label = element("span", { text: t === 0 ? "0" : seconds(t) });
    label.style.left = left(t);
    axis.append(label);
  }
  place.replaceChildren(...rows, element("div", { class: "lane" }, element("span", { class: "lane-name" }), axis));
}

function title(mark) {
  return `${mark.tag ? `${mark.tag} ` : ""}token ${mark.step + 1} at ${seconds(mark.t)}`;
}

function bar({ start, end: stop, kind, title: what, mask }, left, end, onPoint) {
  const span = element("i", { class: `span ${kind ?? "mask"}`, title: `${what}: ${seconds(stop - start)}` });
  span.style.left = left(start);
  span.style.width = `${Math.max(0, (100 * (stop - start)) / end)}%`;
  if (mask) {
    if (mask.slot === null) span.classList.add("repeat");
    else {
      span.style.setProperty("--mask", color(mask.slot));
      span.dataset.mask = mask.id;
      span.addEventListener("pointerenter", () => onPoint(mask.id));
      span.addEventListener("pointerleave", () => onPoint(null));
    }
  }
  return span;
}

// Round times for the axis, at most five.
function steps(end) {
  const rough = end / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const times = [];
  for (let t = 0; t <= end * 0.97; t += step) times.push(t);
  return times;
}

// The same in words, for who does not see it.
export function timelineText(answer) {
  const { timings, first } = answer;
  if (!timings) return "";
  const look = total(timings.look);
  const sum = (list) => (list ?? []).reduce((total, part) => total + part, 0);
  const parts = [
    answer.queue >= SHORTEST && `waited ${seconds(answer.queue)} for its turn`,
    look > 0 && `looked at the picture for ${seconds(look)}`,
    `read ${timings.prefill_tokens} rows in ${seconds(timings.prefill)}`,
    first !== null && `first token after ${seconds(first)}`,
    `${timings.new_tokens} tokens`,
    timings.masks?.length && `${timings.masks.length} masks in ${seconds(sum(timings.masks))}`,
    timings.regions?.length && `${timings.regions.length} regions in ${seconds(sum(timings.regions))}`,
    `${seconds(answer.whole)} in all`,
  ];
  return `Timeline: ${parts.filter(Boolean).join(", ")}.`;
}
