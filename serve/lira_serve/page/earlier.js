// The questions that were asked about the picture; pressing one shows its answer again.
import { color } from "./palette.js";
import { element, seconds } from "./element.js";

export function drawEarlier(answers, current, onChoose) {
  const list = document.getElementById("earlier-list");
  document.getElementById("earlier").hidden = answers.length < 2;
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.number : null;
  const rows = answers.map((answer, number) => {
    const discs = answer.shown.slice(0, 8).map((mask) => {
      const disc = element("span", { class: "disc tiny" });
      disc.style.setProperty("--mask", color(mask.slot));
      return disc;
    });
    const turn = answer.messages.length > 1 ? element("span", { class: "turn", text: "↳", title: "follows up" }) : "";
    const total = answer.timings ? seconds(answer.whole) : answer.running ? "…" : answer.state;
    const button = element(
      "button", { type: "button", class: "earlier-row" },
      element("span", { class: "task", text: answer.asked.label }),
      element("span", { class: "earlier-text" }, turn, answer.asked.text || answer.text || (answer.running ? "…" : "no word yet when it was stopped")),
      element("span", { class: "discs", "aria-hidden": "true" }, ...discs),
      element("span", { class: "number", text: total }),
    );
    button.dataset.number = number;
    if (answer === current) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => onChoose(answer));
    return element("li", {}, button);
  });
  list.replaceChildren(...rows.reverse());
  if (focused !== null) list.querySelector(`[data-number="${Number(focused)}"]`)?.focus();
}
