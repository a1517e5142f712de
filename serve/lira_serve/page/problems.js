// Errors: one line each, in the place that they concern.
import { element } from "./element.js";

const PLACES = ["picture-problem", "ask-problem", "answer-problem"];
let countdown = 0;

// actions: [label, function] pairs, which become buttons. An empty text clears the place.
export function tell(id, text, ...actions) {
  clearInterval(countdown);
  const buttons = actions.map(([label, act]) => {
    const button = element("button", { type: "button", class: "quiet", text: label });
    button.addEventListener("click", act);
    return button;
  });
  document.getElementById(id).replaceChildren(...(text ? [element("span", { text }), ...buttons] : []));
}

export function clearProblems() {
  for (const id of PLACES) tell(id, "");
}

// Tells that the server is busy, and calls `again` after as many seconds as it asked for.
export function tellBusy(message, wait, again) {
  let left = Math.max(1, Math.round(wait));
  const line = () => `${message.replace(/[.\s]*$/, "")}. Asking again in ${left} s.`;
  tell("ask-problem", line(), ["Ask now", again], ["Leave it", () => tell("ask-problem", "")]);
  countdown = setInterval(() => {
    left -= 1;
    if (left > 0) document.querySelector("#ask-problem span").textContent = line();
    else again();
  }, 1000);
}
