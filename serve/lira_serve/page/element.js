// Builds elements. Text only ever becomes text nodes, never markup.
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made && typeof value !== "string") made[name] = value;
    else if (name === "text") made.textContent = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function seconds(value) {
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  return value < 9.995 ? `${value.toFixed(2)} s` : `${value.toFixed(1)} s`;
}

export function rate(value) {
  return value < 100 ? value.toFixed(1) : Math.round(value).toString();
}

export function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}
