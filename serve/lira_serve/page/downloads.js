// Files of an answer: the picture with its masks as PNG and as SVG, and everything as JSON.
import { color } from "./palette.js";
import { corners, edges } from "./outlines.js";
import { maskLayer } from "./stage.js";
import { paintMasks } from "./paint.js";

const LARGEST_SIDE = 8192; // beyond it canvases fail on some machines

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export function stem(picture) {
  return picture.name.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}_-]+/gu, "-") || "picture";
}

// The picture at its own size with the masks as they are on the screen.
export async function png(picture, answer) {
  const canvas = await uprightCanvas(picture);
  const masks = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
  const context = masks.getContext("2d"); // of its own: drawing masks cuts holes
  const taken = new Map(answer.regions.map((region) => [region.mask, region.box]));
  const layers = answer.shown.map((mask) => ({ ...maskLayer(mask, taken.get(mask.id)), shown: 1 }));
  context.setTransform(canvas.width / picture.width, 0, 0, canvas.height / picture.height, 0, 0);
  const { width, height } = picture;
  paintMasks(context, layers, { width, height, unit: Math.max(width, height) / 900 });
  canvas.getContext("2d").drawImage(masks, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

// The upright picture, and over it one path per mask along the pixels' edges, with its name as title.
export async function svg(picture, answer) {
  const canvas = await uprightCanvas(picture);
  const kind = picture.file.type === "image/jpeg" ? "image/jpeg" : "image/png";
  const { width, height } = picture;
  const parts = answer.shown.map((mask) => {
    const path = edges(mask.binary).map((curve) => outline(corners(curve))).join("");
    const ink = color(mask.slot);
    return (
      `<path id="mask-${mask.slot + 1}" d="${path}" fill="${ink}" fill-opacity="0.4" fill-rule="evenodd" ` +
      `stroke="${ink}" stroke-width="${(Math.max(width, height) / 400).toFixed(2)}" stroke-linejoin="round">` +
      `<title>${escaped(answer.labelOf(mask))}</title></path>`
    );
  });
  const text = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">`,
    `<title>${escaped(answer.text || answer.asked.text || answer.asked.label)}</title>`,
    `<image width="${width}" height="${height}" preserveAspectRatio="none" href="${canvas.toDataURL(kind, 0.92)}"/>`,
    ...parts,
    "</svg>",
  ].join("\n");
  return new Blob([text], { type: "image/svg+xml" });
}

export function json(model, answer) {
  return new Blob([JSON.stringify(answer.asJson(model), null, 1)], { type: "application/json" });
}

async function uprightCanvas(picture) {
  const factor = Math.min(1, LARGEST_SIDE / Math.max(picture.width, picture.height));
  const bitmap = await createImageBitmap(picture.file, { imageOrientation: "from-image" });
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(picture.width * factor);
  canvas.height = Math.round(picture.height * factor);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

function outline(points) {
  let path = "";
  for (let i = 0; i < points.length; i += 2) path += `${i ? "L" : "M"}${points[i]} ${points[i + 1]}`;
  return `${path}Z`;
}

function escaped(text) {
  const signs = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return text.replace(/[&<>"]/g, (sign) => signs[sign]).replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f]/g, "");
}
