// Draws masks on a canvas whose units are pixels of the picture: for the screen and for the PNG file alike.
import { color, INK_ON_COLOR } from "./palette.js";

const TINT = 0.2; // opacity of a mask's colour over the object
const DIM = 0.34; // opacity of black outside all masks
const DIM_LIT = 0.58; // and outside the mask that is lit

// layers: [{slot, path, center, region, shown, lit, framed}]; the last three are 0..1 and move while they fade.
// unit: size of one pixel of the design in pixels of the picture. spotlight: 0..1, how far any mask is lit.
export function paintMasks(context, layers, { width, height, unit, spotlight = 0 }) {
  if (!layers.length) return;
  const most = Math.max(...layers.map((layer) => layer.shown));
  context.save();
  context.lineJoin = "round";
  context.fillStyle = `rgb(8 10 14 / ${most * (DIM + (DIM_LIT - DIM) * spotlight)})`;
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "destination-out"; // the picture shows through where the masks are
  for (const layer of layers) {
    context.fillStyle = `rgb(0 0 0 / ${layer.shown * presence(layer, spotlight, 0.75)})`;
    context.fill(layer.path, "evenodd");
  }
  context.globalCompositeOperation = "source-over";
  for (const layer of layers) {
    context.globalAlpha = layer.shown * presence(layer, spotlight, 0.8) * (TINT + 0.1 * layer.lit);
    context.fillStyle = color(layer.slot);
    context.fill(layer.path, "evenodd");
  }
  for (const layer of layers) {
    context.globalAlpha = layer.shown * presence(layer, spotlight, 0.7);
    const weight = 2.6 + 0.9 * layer.lit;
    strokes(context, layer.path, color(layer.slot), weight * unit, unit);
  }
  for (const layer of layers) {
    if (layer.region && layer.framed > 0.01) frame(context, layer, unit);
  }
  if (layers.length > 1) {
    for (const layer of layers) {
      context.globalAlpha = layer.shown * presence(layer, spotlight, 0.6);
      badge(context, layer, { width, height, unit });
    }
  }
  context.restore();
}

// Masks that are not lit step back while another one is.
function presence(layer, spotlight, away) {
  return 1 - away * spotlight * (1 - layer.lit);
}

function strokes(context, path, ink, weight, unit) {
  context.strokeStyle = INK_ON_COLOR;
  context.lineWidth = weight + 2.2 * unit;
  context.stroke(path);
  context.strokeStyle = ink;
  context.lineWidth = weight;
  context.stroke(path);
}

// The region that the model looked at again (ILVC).
function frame(context, layer, unit) {
  const [left, top, right, bottom] = layer.region;
  context.globalAlpha = layer.shown * layer.framed * 0.9;
  context.setLineDash([6 * unit, 5 * unit]);
  context.strokeStyle = color(layer.slot);
  context.lineWidth = 1.5 * unit;
  context.strokeRect(left, top, right - left, bottom - top);
  context.setLineDash([]);
}

function badge(context, layer, { width, height, unit }) {
  if (!layer.center) return;
  const radius = 11 * unit;
  if (Math.min(width, height) < 6 * radius) return; // on a thin strip the numbers would hide everything
  let { x, y } = layer.center;
  if (layer.center.depth < 1.4 * radius) y = layer.top - 1.5 * radius; // a small mask: above it
  x = Math.min(Math.max(x, 1.3 * radius), width - 1.3 * radius);
  y = Math.min(Math.max(y, 1.3 * radius), height - 1.3 * radius);
  context.fillStyle = INK_ON_COLOR;
  context.beginPath();
  context.arc(x, y, radius + 1.75 * unit, 0, 2 * Math.PI);
  context.fill();
  context.fillStyle = color(layer.slot);
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
  context.fillStyle = INK_ON_COLOR;
  context.font = `600 ${12.5 * unit}px Inter, system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(String(layer.slot + 1), x, y + 0.8 * unit);
}
