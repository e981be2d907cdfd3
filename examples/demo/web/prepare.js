// Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
// From pixels of any size to what the backbone reads, as run.py does it with Pillow: the short side is resized
// bilinearly, the centre is cropped, and the values are normalised. The results are equal bit for bit.

const BITS = 22; // of the fraction of Pillow's fixed-point weights, for images of 8 bits

/** Float32Array (3, crop, crop) of an ImageData. `preparation` is engine.json's: resize, crop, mean and std. */
export function prepare({ data, width, height }, { resize, crop, mean, std }) {
  const short = Math.min(width, height);
  const wide = Math.floor((resize * width) / short);
  const high = Math.floor((resize * height) / short);
  const resized = resample(data, width, height, wide, high);
  const left = halfEven((wide - crop) / 2);
  const top = halfEven((high - crop) / 2);
  const pixels = new Float32Array(3 * crop * crop);
  for (let channel = 0; channel < 3; channel++) {
    const [center, scale] = [Math.fround(mean[channel]), Math.fround(std[channel])];
    for (let y = 0; y < crop; y++) {
      for (let x = 0; x < crop; x++) {
        const grey = Math.fround(resized[((top + y) * wide + left + x) * 4 + channel] / 255);
        pixels[(channel * crop + y) * crop + x] = Math.fround(grey - center) / scale;
      }
    }
  }
  return pixels;
}

/** RGBA bytes (high, wide, 4) of RGBA bytes (height, width, 4): first along x, then along y, bytes in between. */
export function resample(data, width, height, wide, high) {
  const rows = width === wide ? data : along(data, weights(width, wide), height, 4 * width, 4);
  return height === high ? rows : along(rows, weights(height, high), wide, 4, 4 * wide);
}

/** For each output pixel, the first input pixel it reads and the weights of the input pixels from there on. */
function weights(from, to) {
  const scale = from / to;
  const reach = Math.max(scale, 1); // a triangle that averages when the image shrinks
  return Array.from({ length: to }, (_, index) => {
    const center = (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const last = Math.min(from, Math.trunc(center + reach + 0.5));
    const triangle = Array.from({ length: last - first }, (_, step) =>
      Math.max(0, 1 - Math.abs((step + first - center + 0.5) * (1 / reach))),
    );
    const total = triangle.reduce((sum, value) => sum + value, 0);
    return { first, parts: triangle.map((value) => Math.trunc(0.5 + (value / total) * 2 ** BITS)) };
  });
}

/** Weighted sums along one axis. `lines`: along the other axis. `step`: bytes from one input pixel to the next. */
function along(data, table, lines, lineStep, step) {
  const horizontal = step === 4;
  const outStep = horizontal ? 4 : 4 * lines;
  const outLine = horizontal ? 4 * table.length : 4;
  const found = new Uint8ClampedArray(4 * lines * table.length);
  for (let line = 0; line < lines; line++) {
    table.forEach(({ first, parts }, index) => {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 2 ** (BITS - 1); // rounds to the nearest
        let place = line * lineStep + first * step + channel;
        for (const part of parts) {
          sum += part * data[place];
          place += step;
        }
        found[line * outLine + index * outStep + channel] = sum >> BITS;
      }
    });
  }
  return found;
}

/** Rounds halves to the even neighbour, as Python does. */
function halfEven(value) {
  const near = Math.round(value);
  return Math.abs(value % 1) === 0.5 && near % 2 !== 0 ? near - 1 : near;
}
