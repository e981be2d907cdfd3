// Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
// Reads a safetensors file: 8 bytes with the length of a JSON header, the header, and the values of the tensors.

const MOST_HEADER = 1e6; // bytes. A larger header is damaged or hostile

/** { metadata, tensors: name -> { shape, data: Float32Array } } of an ArrayBuffer. Throws an Error in a sentence. */
export function readSafetensors(buffer) {
  try {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    if (length > MOST_HEADER) throw new Error(`a header of ${length} bytes`);
    const { __metadata__: metadata = {}, ...entries } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    const read = ([name, entry]) => [name, tensor(name, entry, buffer, 8 + length)];
    return { metadata, tensors: Object.fromEntries(Object.entries(entries).map(read)) };
  } catch (error) {
    throw new Error(`it is not a complete safetensors file (${error.message}); copy or export it again`);
  }
}

function tensor(name, { dtype, shape, data_offsets: [begin, end] }, buffer, start) {
  const count = shape.reduce((product, size) => product * size, 1);
  if (dtype !== "F32" || !(begin >= 0) || end - begin !== 4 * count || start + end > buffer.byteLength) {
    throw new Error(`${name} is ${dtype} [${shape}] in bytes ${begin} to ${end}`);
  }
  return { shape, data: new Float32Array(buffer.slice(start + begin, start + end)) };
}
