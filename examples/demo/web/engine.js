// Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
// One frozen backbone whose adapters are inputs: engine.onnx, engine.json and a safetensors file for each task.

import * as ort from "./onnxruntime/ort.wasm.bundle.min.mjs";
import { readSafetensors } from "./safetensors.js";

ort.env.wasm.wasmPaths = { wasm: new URL("./onnxruntime/ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send

/** Fetches a file of this site. Throws an Error in a sentence. */
export async function load(path) {
  const answer = await fetch(path).catch(() => null);
  if (!answer?.ok) throw new Error(`${path} cannot be loaded; build the page again with make web`);
  return answer;
}

export class Engine {
  /** The backbone in `folder`, without a task. */
  static async open(folder) {
    const [about, graph] = await Promise.all([
      load(`${folder}/engine.json`).then((answer) => answer.json()),
      load(`${folder}/engine.onnx`).then((answer) => answer.arrayBuffer()),
    ]);
    if (about.format !== 1) throw new Error(`engine.json is of format ${about.format}; this page reads format 1`);
    if (!("crop" in about.preparation)) {
      throw new Error("this page prepares images with resize and crop, as gated-prompt train does; the engine asks for another way");
    }
    const options = { executionProviders: ["wasm"], graphOptimizationLevel: "disabled" }; // make web has optimised it
    const session = await ort.InferenceSession.create(graph, options);
    return new Engine(about, session);
  }

  constructor(about, session) {
    this.about = about;
    this.session = session;
    this.tasks = new Map(); // name -> { names, problem, temperature, tensors }
    this.queue = Promise.resolve(); // the session takes one call at a time
  }

  /** Whether the effect of prompts can be scaled exactly: with zero start, by the gates of the attention heads. */
  get canScale() {
    return "head_gates" in this.about.shapes;
  }

  /** Whether a task has prompts that add something. A probe among zero-start prompts has gates of 0. */
  hasPrompts(name) {
    const { prompts, head_gates: gates } = this.tasks.get(name).tensors;
    return prompts !== undefined && (gates === undefined || gates.data.some((value) => value !== 0));
  }

  /** Adds a task from its file. Throws an Error in a sentence, which begins with what is wrong. */
  add(name, buffer) {
    const { metadata, tensors } = readSafetensors(buffer);
    if (!metadata.task) throw new Error("it does not say which task it is for; give a file of gated-prompt export");
    const task = JSON.parse(metadata.task);
    if (task.backbone_sha256 !== this.about.backbone_sha256) {
      throw new Error("it was exported for another backbone; export it for this engine with --add");
    }
    const classes = task.names.length;
    const wanted = { ...this.about.shapes, weight: [classes, this.about.features], bias: [classes] };
    for (const [key, shape] of Object.entries(wanted)) {
      const found = tensors[key]?.shape;
      if (String(found) !== String(shape)) throw new Error(`it has ${key} of shape [${found ?? ""}], and this engine takes [${shape}]`);
    }
    this.tasks.set(name, { ...task, tensors });
  }

  /**
   * Scores of prepared images, each by one task, from one pass.
   * rows: [{ pixels: Float32Array (3, side, side), name, strength: 0 (frozen) to 1 (prompted) }]
   * Returns a Float32Array of scores for each row.
   */
  scores(rows) {
    const call = this.queue.then(() => this.#run(rows));
    this.queue = call.catch(() => {});
    return call;
  }

  async #run(rows) {
    const inputs = [...new Map(rows.map((row) => [`${row.strength} ${row.name}`, row])).values()];
    const count = Math.max(...inputs.map(({ name }) => this.tasks.get(name).names.length));
    const side = this.about.preparation.crop;
    const pixels = new Float32Array(rows.length * 3 * side * side);
    rows.forEach((row, index) => pixels.set(row.pixels, index * 3 * side * side));
    const place = (row) => inputs.findIndex(({ name, strength }) => name === row.name && strength === row.strength);
    const feed = {
      pixel_values: new ort.Tensor("float32", pixels, [rows.length, 3, side, side]),
      rows: new ort.Tensor("int64", BigInt64Array.from(rows, (row) => BigInt(place(row))), [rows.length]),
    };
    for (const key of [...Object.keys(this.about.shapes), "weight", "bias"]) {
      const shape = { weight: [count, this.about.features], bias: [count] }[key] ?? this.about.shapes[key];
      const size = shape.reduce((product, length) => product * length, 1);
      const stacked = new Float32Array(inputs.length * size).fill(key === "bias" ? -Infinity : 0);
      inputs.forEach(({ name, strength }, index) => {
        const { data } = this.tasks.get(name).tensors[key];
        stacked.set(key === "head_gates" ? scaled(data, strength) : data, index * size);
      });
      feed[key] = new ort.Tensor("float32", stacked, [inputs.length, ...shape]);
    }
    const taken = Object.fromEntries(this.session.inputNames.map((key) => [key, feed[key]]));
    const { scores } = await this.session.run(taken);
    return rows.map(({ name }, index) => scores.data.slice(index * count, index * count + this.tasks.get(name).names.length));
  }

  /** [{ label, share }] of the scores of a task, the best first. Of a regression, its values in their order. */
  answer(name, scores) {
    const { names, problem, temperature } = this.tasks.get(name);
    if (problem === "regression") return names.map((label, index) => ({ label, value: scores[index] }));
    const divided = Array.from(scores, (score) => score / temperature);
    const best = Math.max(...divided);
    const sizes = divided.map((score) => (problem === "multi_label" ? 1 / (1 + Math.exp(-score)) : Math.exp(score - best)));
    const total = problem === "multi_label" ? 1 : sizes.reduce((sum, size) => sum + size, 0);
    return names.map((label, index) => ({ label, share: sizes[index] / total })).sort((a, b) => b.share - a.share);
  }
}

/** Gates a whose tanh(a), which multiplies what is read from the prompts, is scaled by `strength`. */
function scaled(gates, strength) {
  return strength === 1 ? gates : gates.map((gate) => Math.atanh(strength * Math.tanh(gate)));
}
