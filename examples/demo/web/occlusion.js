// Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
// Where a picture decides an answer: each part is hidden in turn, and what the best class loses of its lead is noted.

export const GRID = 8; // parts along a side
const AT_ONCE = 16; // pictures in one pass, so that the page stays responsive

/** Losses (GRID * GRID,) of the best class's lead when a part of the prepared pixels has the mean colour. */
export async function occlusion(engine, pixels, name, strength) {
  const [scores] = await engine.scores([{ pixels, name, strength }]);
  const best = scores.indexOf(Math.max(...scores));
  const lead = (found) => found[best] - (found.length > 1 ? Math.max(...found.filter((_, index) => index !== best)) : 0);
  const side = engine.about.preparation.crop;
  const losses = [];
  for (let begin = 0; begin < GRID * GRID; begin += AT_ONCE) {
    const rows = Array.from({ length: AT_ONCE }, (_, index) => ({ pixels: hidden(pixels, side, begin + index), name, strength }));
    losses.push(...(await engine.scores(rows)).map((found) => lead(scores) - lead(found)));
  }
  return losses;
}

/** A copy without the part `index`. Pixels of 0 have the mean colour of the images that the backbone knows. */
function hidden(pixels, side, index) {
  const [top, left] = [Math.floor(index / GRID), index % GRID].map((place) => Math.round((place * side) / GRID));
  const [bottom, right] = [Math.floor(index / GRID), index % GRID].map((place) => Math.round(((place + 1) * side) / GRID));
  const copy = pixels.slice();
  for (let line = 0; line < 3 * side; line++) {
    const y = line % side;
    if (y >= top && y < bottom) copy.fill(0, line * side + left, line * side + right);
  }
  return copy;
}

/** Draws losses over a picture: the more a part counts for the answer, the less it is dimmed. */
export function draw(canvas, losses) {
  const context = canvas.getContext("2d");
  const most = Math.max(...losses, 1e-9);
  const part = canvas.width / GRID;
  context.clearRect(0, 0, canvas.width, canvas.height);
  losses.forEach((loss, index) => {
    context.fillStyle = `rgb(0 0 0 / ${0.78 * (1 - Math.max(0, loss) / most)})`;
    context.fillRect((index % GRID) * part, Math.floor(index / GRID) * part, part, part);
  });
}
