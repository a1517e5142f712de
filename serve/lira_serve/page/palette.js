// Colours of masks, the same and in the same order as lira_runtime/draw.py's PALETTE: under red- and
// green-blindness any two stay apart, and dark ink is readable on each. Beyond eight they repeat, and the
// numbers on the masks do not.
export const PALETTE = [
  "#4db6f5", "#f59a0c", "#19c08a", "#ff5a45", "#f6ee5a", "#9c82ff", "#c3f5dc", "#ff62b0",
];
export const INK_ON_COLOR = "#14171c";

export function color(slot) {
  return PALETTE[slot % PALETTE.length];
}
