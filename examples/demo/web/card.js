// Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
// One task on the page: its switch, its likeliest classes, and a button that shows where the picture decides.

export class Card {
  constructor(name, classes, measured, hasPrompts) {
    this.element = document.createElement("article");
    this.element.dataset.task = name;
    this.onSwitch = this.onExplain = () => {};
    this.switch = make("input", { type: "checkbox", checked: true, role: "switch" });
    const label = make("label", {}, this.switch, make("span", { textContent: name }));
    const facts = [`${classes.length} classes`, measured, hasPrompts ? null : "a probe without prompts"];
    this.list = make("ol", {});
    this.explain = make("button", { type: "button", textContent: "Show where" });
    this.explain.setAttribute("aria-label", `Show where the picture decides the answer of ${name}`);
    this.explain.setAttribute("aria-pressed", "false");
    const about = make("p", { className: "hint", textContent: facts.filter(Boolean).join(", ") });
    this.element.append(make("h2", {}, label), about, this.list, this.explain);
    this.switch.addEventListener("change", () => {
      this.element.classList.toggle("off", !this.isOn);
      this.explain.disabled = !this.isOn;
      this.onSwitch();
    });
    this.explain.addEventListener("click", () => this.onExplain());
  }

  get isOn() {
    return this.switch.checked;
  }

  get isExplained() {
    return this.explain.getAttribute("aria-pressed") === "true";
  }

  set isExplained(value) {
    this.explain.setAttribute("aria-pressed", String(value));
  }

  /** Shows [{ label, share }], or [{ label, value }] of a regression, and keeps the scores for programs to read. */
  fill(answers, scores) {
    this.element.dataset.scores = JSON.stringify(Array.from(scores));
    this.list.replaceChildren(
      ...answers.map(({ label, share, value }) => {
        const text = share === undefined ? value.toPrecision(4) : `${(100 * share).toFixed(1)} %`;
        const bar = make("meter", { min: 0, max: 1, value: share ?? 0, hidden: share === undefined });
        return make("li", {}, make("span", { textContent: label }), make("span", { textContent: text }), bar);
      }),
    );
  }

  remove() {
    this.element.remove();
  }
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
