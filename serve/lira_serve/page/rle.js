// COCO's compressed run-length encoding: runs of background and object in turn, column after column.

// counts: 5 bits a character, offset 48; bit 32 means that more follows, bit 16 the sign; from the fourth run
// on, the difference to the run before last. Returns the ends of the runs, Uint32Array [R].
export function runEnds({ size: [height, width], counts }) {
  const runs = [];
  let value = 0;
  let unit = 1; // not a shift: a run may have more than 31 bits' worth of digits
  for (let at = 0; at < counts.length; at++) {
    const bits = counts.charCodeAt(at) - 48;
    if (!(bits >= 0 && bits < 64)) throw new Error(`unexpected character in a mask's counts at ${at}`);
    value += (bits & 31) * unit;
    unit *= 32;
    if (bits & 32) continue;
    if (bits & 16) value -= unit;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
    value = 0;
    unit = 1;
  }
  const ends = new Uint32Array(runs.length);
  let end = 0;
  for (let i = 0; i < runs.length; i++) ends[i] = end += runs[i];
  if (end !== height * width) {
    throw new Error(`a mask's counts cover ${end} pixels, expected ${height} x ${width}`);
  }
  return ends;
}

export class BinaryMask {
  constructor(rle) {
    [this.height, this.width] = rle.size;
    this.ends = runEnds(rle);
    this.area = 0; // pixels
    for (let i = 1; i < this.ends.length; i += 2) this.area += this.ends[i] - this.ends[i - 1];
  }

  // Whether pixel (x, y) belongs to the mask; outside the picture none does.
  has(x, y) {
    if (x < 0 || y < 0 || x >= this.width || y >= this.height) return false;
    const place = x * this.height + y;
    let low = 0;
    let high = this.ends.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] > place) high = middle;
      else low = middle + 1;
    }
    return low % 2 === 1;
  }

  // Uint8Array [H * W] of 0 and 1, row after row.
  rows() {
    const { width, height, ends } = this;
    const pixels = new Uint8Array(width * height);
    for (let i = 1; i < ends.length; i += 2) {
      let x = Math.floor(ends[i - 1] / height);
      let y = ends[i - 1] - x * height;
      for (let place = ends[i - 1]; place < ends[i]; place++) {
        pixels[y * width + x] = 1;
        if (++y === height) {
          y = 0;
          x++;
        }
      }
    }
    return pixels;
  }
}
