// The picture and the masks on it: drawing, fading, and which mask the pointer is on.
import { edges, innermost, smoothPath } from "./outlines.js";
import { paintMasks } from "./paint.js";

const LARGEST_SHOWN = 2560; // pixels of a picture's longer side on the screen; the file itself is sent
const LARGEST_SCALE = 3; // how far a small picture is enlarged
const GAP = 10; // pixels between the picture and the line below
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export const READABLE = ["image/jpeg", "image/png", "image/webp", "image/bmp"];

// A file -> {file, name, width, height, bitmap}: upright by its EXIF orientation, as the server turns it. The
// bitmap may be smaller than the picture. Throws an Error with one line for people.
export async function openPicture(file) {
  const refused = new Error(`${file.name || "This"} is no picture that can be read: JPEG, PNG, WebP and BMP can.`);
  if (!READABLE.includes(file.type)) throw refused;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw refused;
  }
  const { width, height } = bitmap;
  const factor = LARGEST_SHOWN / Math.max(width, height);
  if (factor < 1) {
    const full = bitmap;
    const size = { resizeWidth: Math.max(1, Math.round(width * factor)), resizeHeight: Math.max(1, Math.round(height * factor)) };
    bitmap = await createImageBitmap(full, { ...size, resizeQuality: "high" });
    full.close();
  }
  return { file, name: file.name || "pasted picture", width, height, bitmap };
}

// What is drawn of a mask of an answer.
export function maskLayer(mask, region = null) {
  const curves = edges(mask.binary);
  const center = innermost(mask.binary, mask.box);
  const top = mask.box ? mask.box[1] : 0;
  return { id: mask.id, mask, slot: mask.slot, path: smoothPath(curves), center, top, region, shown: 0, lit: 0, framed: 0 };
}

export class Stage {
  // onPoint(id or null, event): the pointer is on another mask. onPick(id or null): it was pressed there.
  constructor(frame, { onPoint, onPick }) {
    this.frame = frame;
    this.base = frame.querySelector("#picture");
    this.overlay = frame.querySelector("#masks");
    this.bar = frame.querySelector("#stage-bar");
    this.picture = null;
    this.layers = [];
    this.lit = null;
    this.framed = undefined;
    this.spotlight = 0;
    this._pointed = null;
    this._drawing = 0;
    new ResizeObserver(() => this._fit()).observe(frame);
    this.overlay.addEventListener("pointermove", (event) => {
      const id = this.maskAt(event.clientX, event.clientY);
      this.overlay.classList.toggle("pointing", id !== null);
      if (id !== this._pointed) onPoint((this._pointed = id));
    });
    this.overlay.addEventListener("pointerleave", () => {
      if (this._pointed !== null) onPoint((this._pointed = null));
    });
    this.overlay.addEventListener("click", (event) => onPick(this.maskAt(event.clientX, event.clientY)));
  }

  show(picture) {
    this.picture?.bitmap.close();
    this.picture = picture;
    this.clear();
    this._fit();
  }

  clear() {
    this.layers = [];
    this.lit = null;
    this.spotlight = 0;
    this._pointed = null;
    this._draw();
  }

  // Shows the masks of an answer: new ones fade in, or are there `at once`.
  update(answer, atOnce = false) {
    const present = new Map(this.layers.map((layer) => [layer.mask, layer]));
    const taken = new Map(answer.regions.map((region) => [region.mask, region.box]));
    this.layers = answer.shown.map((mask) => present.get(mask) ?? maskLayer(mask));
    const latest = answer.running ? answer.regions.at(-1)?.mask : undefined;
    this.framed = answer.phrases.some((phrase) => phrase.mask === latest) ? undefined : latest; // the model looks there
    for (const layer of this.layers) {
      layer.slot = layer.mask.slot;
      layer.region = taken.get(layer.id) ?? null;
      if (atOnce) layer.shown = 1;
    }
    this._draw();
  }

  light(id) {
    this.lit = id;
    this._draw();
  }

  // The mask at a place of the window, the smallest where several lie; null if there is none.
  maskAt(clientX, clientY) {
    const area = this.overlay.getBoundingClientRect();
    let found = null;
    for (const { id, mask } of this.layers) {
      const { binary } = mask;
      const x = Math.floor(((clientX - area.left) / area.width) * binary.width);
      const y = Math.floor(((clientY - area.top) / area.height) * binary.height);
      if (binary.has(x, y) && (!found || binary.area < found.area)) found = { id, area: binary.area };
    }
    return found && found.id;
  }

  _fit() {
    if (!this.picture) return;
    const room = { width: this.frame.clientWidth, height: this.frame.clientHeight - this.bar.offsetHeight - GAP };
    const { width, height, bitmap } = this.picture;
    const scale = Math.min(room.width / width, room.height / height, LARGEST_SCALE);
    const shown = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    this.bar.style.setProperty("--shown-width", `${shown[0]}px`); // the line below is as wide
    for (const canvas of [this.base, this.overlay]) {
      canvas.style.width = `${shown[0]}px`;
      canvas.style.height = `${shown[1]}px`;
      canvas.width = Math.round(shown[0] * devicePixelRatio);
      canvas.height = Math.round(shown[1] * devicePixelRatio);
    }
    const context = this.base.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, this.base.width, this.base.height);
    this._paint();
  }

  _draw() {
    if (!this._drawing) this._drawing = requestAnimationFrame((now) => this._step(now, now - 16));
  }

  // Moves all opacities towards where they should be, until they are there.
  _step(now, before) {
    const near = (value, goal, speed) => {
      if (calm.matches) return goal;
      const moved = value + (goal - value) * (1 - Math.exp(-(now - before) / speed));
      return Math.abs(goal - moved) < 0.005 ? goal : moved;
    };
    let still = true;
    const move = (object, name, goal, speed) => {
      object[name] = near(object[name], goal, speed);
      still &&= object[name] === goal;
    };
    const lit = this.layers.some((layer) => layer.id === this.lit);
    move(this, "spotlight", lit ? 1 : 0, 70);
    for (const layer of this.layers) {
      move(layer, "shown", 1, 130);
      move(layer, "lit", lit && layer.id === this.lit ? 1 : 0, 70);
      move(layer, "framed", layer.id === this.framed || layer.id === this.lit ? 1 : 0, 70);
    }
    this._paint();
    this._drawing = still ? 0 : requestAnimationFrame((next) => this._step(next, now));
  }

  _paint() {
    const { overlay, picture } = this;
    const context = overlay.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, overlay.width, overlay.height);
    if (!picture) return;
    const scale = overlay.width / picture.width;
    context.setTransform(scale, 0, 0, overlay.height / picture.height, 0, 0);
    const unit = devicePixelRatio / scale;
    paintMasks(context, this.layers, { width: picture.width, height: picture.height, unit, spotlight: this.spotlight });
  }
}
