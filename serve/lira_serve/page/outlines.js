// The outlines of a binary mask, and the place of its number.

// Closed curves along the pixels' edges, one point per pixel side: [[x0, y0, x1, y1, ...], ...] in pixels. Outer
// curves run clockwise and holes the other way, so that both fill rules leave holes open.
export function edges(mask) {
  const { width, height } = mask;
  const pixels = mask.rows();
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && pixels[y * width + x] === 1;
  const seen = new Uint8Array(width * height); // pixels whose upper side has been walked
  const curves = [];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = y * width + x;
      if (pixels[at] && !seen[at] && !inside(x, y - 1)) curves.push(walk(x, y, inside, seen, width));
    }
  }
  return curves;
}

const STEP = [[1, 0], [0, 1], [-1, 0], [0, -1]]; // right, down, left, up
// The two pixels ahead of a corner, on the right and on the left hand, for each direction.
const AHEAD_RIGHT = [[0, 0], [-1, 0], [-1, -1], [0, -1]];
const AHEAD_LEFT = [[0, -1], [0, 0], [-1, 0], [-1, -1]];

function walk(startX, startY, inside, seen, width) {
  const points = [];
  let [x, y, direction] = [startX, startY, 0];
  do {
    points.push(x, y);
    if (direction === 0) seen[y * width + x] = 1;
    x += STEP[direction][0];
    y += STEP[direction][1];
    const right = inside(x + AHEAD_RIGHT[direction][0], y + AHEAD_RIGHT[direction][1]);
    const left = inside(x + AHEAD_LEFT[direction][0], y + AHEAD_LEFT[direction][1]);
    if (!right) direction = (direction + 1) % 4; // pixels that touch at a corner only are not one object
    else if (left) direction = (direction + 3) % 4;
  } while (x !== startX || y !== startY || direction !== 0);
  return points;
}

// The same curves without the points on straight lines: exact polygons.
export function corners(curve) {
  const kept = [];
  const count = curve.length / 2;
  for (let i = 0; i < count; i++) {
    const before = (i + count - 1) % count;
    const after = (i + 1) % count;
    const straight =
      (curve[2 * before] === curve[2 * i] && curve[2 * i] === curve[2 * after]) ||
      (curve[2 * before + 1] === curve[2 * i + 1] && curve[2 * i + 1] === curve[2 * after + 1]);
    if (!straight) kept.push(curve[2 * i], curve[2 * i + 1]);
  }
  return kept;
}

// Curves as a Path2D without the stairs of pixels: each point moves to the mean of its neighbours along the curve.
export function smoothPath(curves) {
  const path = new Path2D();
  for (const curve of curves) {
    const count = curve.length / 2;
    const reach = count > 48 ? 4 : count > 16 ? 2 : 0; // small masks keep their shape
    const points = mean(mean(curve, reach), reach);
    const stride = count > 4000 ? 2 : 1;
    path.moveTo(points[0], points[1]);
    for (let i = stride; i < count; i += stride) path.lineTo(points[2 * i], points[2 * i + 1]);
    path.closePath();
  }
  return path;
}

function mean(curve, reach) {
  if (!reach) return curve;
  const count = curve.length / 2;
  const result = new Float32Array(curve.length);
  for (let axis = 0; axis < 2; axis++) {
    let sum = 0;
    for (let i = -reach; i <= reach; i++) sum += curve[2 * ((i + count) % count) + axis];
    for (let i = 0; i < count; i++) {
      result[2 * i + axis] = sum / (2 * reach + 1);
      sum += curve[2 * ((i + reach + 1) % count) + axis] - curve[2 * ((i - reach + count) % count) + axis];
    }
  }
  return result;
}

// The innermost point of a mask and its distance to the border, {x, y, depth} in pixels, on a grid of at most
// 96 x 96 samples; null for an empty mask.
export function innermost(mask, box) {
  if (!box) return null;
  const [left, top, right, bottom] = box;
  const step = Math.max(1, Math.max(right - left, bottom - top) / 96);
  const columns = Math.ceil((right - left) / step) + 2;
  const rows = Math.ceil((bottom - top) / step) + 2;
  const depth = new Float32Array(columns * rows); // a border of zeros around
  const x = (column) => left + (column - 0.5) * step;
  const y = (row) => top + (row - 0.5) * step;
  for (let row = 1; row < rows - 1; row++) {
    for (let column = 1; column < columns - 1; column++) {
      if (!mask.has(Math.floor(x(column)), Math.floor(y(row)))) continue;
      const at = row * columns + column;
      depth[at] = Math.min(depth[at - 1] + 1, depth[at - columns] + 1, depth[at - columns - 1] + 1.4, depth[at - columns + 1] + 1.4);
    }
  }
  let best = null;
  for (let row = rows - 2; row > 0; row--) {
    for (let column = columns - 2; column > 0; column--) {
      const at = row * columns + column;
      depth[at] = Math.min(depth[at], depth[at + 1] + 1, depth[at + columns] + 1, depth[at + columns + 1] + 1.4, depth[at + columns - 1] + 1.4);
      if (depth[at] > 0 && (!best || depth[at] * step > best.depth)) {
        best = { x: x(column), y: y(row), depth: depth[at] * step };
      }
    }
  }
  return best;
}
