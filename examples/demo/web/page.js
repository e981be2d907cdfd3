// Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
// The page: one picture, the tasks that are switched on, and their answers from one pass.

import { Engine, load } from "./engine.js";
import { draw, occlusion } from "./occlusion.js";
import { decode, frame, show, startCamera, stopCamera } from "./picture.js";
import { prepare } from "./prepare.js";
import { Card } from "./card.js";

const TOP = 3; // classes of a task
const element = (id) => document.getElementById(id);
const video = element("video");
const cards = new Map(); // name of a task -> Card, in the order of the page

let engine;
let picture; // { image: ImageData, name, pixels }
let waiting = false; // an answer is being computed, or is about to be
let again = false; // something changed meanwhile

const strength = () => Number(element("strength").value) / 100;

function say(text, isError = false) {
  element("message").textContent = text;
  element("message").classList.toggle("error", isError);
}

/** Runs what a visitor asked for. What fails becomes a sentence. */
async function attempt(action) {
  try {
    await action();
  } catch (error) {
    say(error.message, true);
  }
}

/** Shows a picture, and what the tasks say about it. */
function use(image, name) {
  picture = { image, name, pixels: prepare(image, engine.about.preparation) };
  show(element("seen"), image, engine.about.preparation);
  return answer();
}

/** Answers for the picture. Changes that come meanwhile are answered next, in one pass. */
async function answer() {
  if (!picture) return;
  again = true;
  if (waiting) return;
  waiting = true;
  try {
    while (again) {
      again = false;
      await answerOnce();
    }
  } finally {
    waiting = false;
  }
}

async function answerOnce() {
  const { name, pixels } = picture;
  hideHeat();
  const names = [...cards].filter(([, card]) => card.isOn).map(([task]) => task);
  if (!names.length) return say("Switch on at least one task.");
  const rows = names.map((task) => ({ pixels, name: task, strength: engine.canScale ? strength() : 1 }));
  const begin = performance.now();
  const scores = await engine.scores(rows);
  const took = performance.now() - begin;
  names.forEach((task, index) => cards.get(task).fill(engine.answer(task, scores[index]).slice(0, TOP), scores[index]));
  const side = engine.about.preparation.crop;
  const many = names.length === 1 ? "1 task" : `${names.length} tasks`;
  say(`${name}, read as ${side} x ${side} pixels by ${many} in one pass of ${took.toFixed(0)} ms.`);
  countAnswer();
}

/** Notes the answer for tests, and in `firstAnswer` the milliseconds from opening the page to the first one. */
function countAnswer() {
  const { dataset } = document.documentElement;
  window.firstAnswer ??= performance.now();
  dataset.answered = String(Number(dataset.answered ?? 0) + 1);
}

function hideHeat() {
  element("heat").hidden = true;
  for (const card of cards.values()) card.isExplained = false;
}

/** Shows where the picture decides the answer of a task, or hides it. */
async function explain(task) {
  endCamera();
  const card = cards.get(task);
  const wasShown = card.isExplained;
  hideHeat();
  if (wasShown) return;
  const asked = picture;
  card.isExplained = true;
  const losses = await occlusion(engine, asked.pixels, task, engine.canScale ? strength() : 1);
  if (asked !== picture || !card.isExplained) return; // something else was asked for meanwhile
  draw(element("heat"), losses);
  element("heat").hidden = false;
  say(`Bright parts decide the answer of ${task}: without them, its best class loses most of its lead.`);
}

function addTask(name, buffer, measured) {
  engine.add(name, buffer);
  cards.get(name)?.remove();
  const card = new Card(name, engine.tasks.get(name).names, measured, engine.hasPrompts(name));
  card.onSwitch = () => attempt(answer);
  card.onExplain = () => attempt(() => explain(name));
  cards.set(name, card);
  element("tasks").append(card.element);
}

/** Takes a file that was opened, dropped or pasted: a picture, or a task. */
async function take(file) {
  endCamera();
  if (!file.name.endsWith(".safetensors")) return use(await decode(file, file.name || "The picture"), file.name || "pasted picture");
  const name = file.name.replace(/\.safetensors$/, "");
  try {
    addTask(name, await file.arrayBuffer());
  } catch (error) {
    throw new Error(`${file.name} was not added: ${error.message}.`);
  }
  say(`The task ${name} was added.`);
  return answer();
}

async function toggleCamera() {
  if (!video.hidden) return endCamera();
  await startCamera(video);
  video.hidden = false;
  element("camera").setAttribute("aria-pressed", "true");
  const look = async () => {
    if (video.hidden) return;
    await use(frame(video), "camera");
    requestAnimationFrame(() => attempt(look));
  };
  return look();
}

function endCamera() {
  stopCamera(video);
  video.hidden = true;
  element("camera").setAttribute("aria-pressed", "false");
}

function addExample({ file, label }) {
  const button = document.createElement("button");
  const image = document.createElement("img");
  Object.assign(button, { type: "button", title: label });
  Object.assign(image, { src: file, alt: label, width: 48, height: 48 });
  button.append(image);
  button.addEventListener("click", () => attempt(() => useExample(file)));
  element("examples").append(button);
}

async function useExample(file) {
  endCamera();
  const blob = await (await load(file)).blob();
  const name = file.split("/").pop();
  return use(await decode(blob, name), name);
}

function listen() {
  element("open").addEventListener("click", () => element("file").click());
  element("file").addEventListener("change", ({ target }) => {
    const [file] = target.files;
    target.value = ""; // the same file may be chosen again
    if (file) attempt(() => take(file));
  });
  element("camera").addEventListener("click", () => attempt(toggleCamera));
  element("strength").addEventListener("input", () => {
    element("strength-value").textContent = `${element("strength").value} %`;
    attempt(answer);
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    for (const file of event.dataTransfer.files) attempt(() => take(file));
  });
  document.addEventListener("paste", (event) => {
    for (const file of event.clipboardData.files) attempt(() => take(file));
  });
}

async function start() {
  const content = await (await load("content.json")).json();
  const files = content.tasks.map(async (task) => ({ ...task, buffer: await (await load(task.file)).arrayBuffer() }));
  content.examples.forEach(addExample);
  engine = await Engine.open("engine");
  for (const { name, buffer, measured } of await Promise.all(files)) addTask(name, buffer, measured);
  element("strength-row").hidden = !engine.canScale;
  element("about").textContent = `Backbone: ${engine.about.backbone}. Computed by onnxruntime-web (MIT licence) in your browser.`;
  listen();
  await useExample(content.examples[0].file);
}

attempt(start);
