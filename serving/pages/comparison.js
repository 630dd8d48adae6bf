// Below the charts: what the runs wrote over time, and their flags side by side.

import { ask, element, stored, store, t } from "./common.js";

/** Samples of the chosen runs at some step, with a slider over the steps at which there are any. */
export class Samples {
  constructor(place) {
    this.place = place;
    this.slider = element("input", {
      type: "range",
      min: "0",
      "aria-label": t("Step of the samples", "样本的步数"),
      oninput: () => {
        this.step = this.isAtEnd() ? null : this.steps[this.slider.value];
        this.draw();
      },
    });
    this.label = element("output", {});
    this.cards = element("div", { class: "cards" });
    this.step = null; // null: always the latest
    this.steps = [];
    place.append(
      element("h2", {}, t("What the model writes", "模型写了什么")),
      element("div", { class: "slider" }, this.slider, this.label),
      this.cards,
    );
  }

  isAtEnd() {
    return Number(this.slider.value) === this.steps.length - 1;
  }

  /** runs: [{ name, color, samples: [{ step, texts }] }] */
  show(runs) {
    this.runs = runs.filter((run) => run.samples.length);
    this.place.hidden = !this.runs.length;
    const steps = new Set(this.runs.flatMap((run) => run.samples.map((sample) => sample.step)));
    this.steps = [...steps].sort((a, b) => a - b);
    this.slider.max = String(Math.max(0, this.steps.length - 1));
    this.slider.disabled = this.steps.length < 2;
    const at = this.steps.findLastIndex((step) => step <= (this.step ?? Infinity));
    this.slider.value = String(Math.max(0, at));
    this.draw();
  }

  draw() {
    const step = this.steps[this.slider.value] ?? 0;
    this.label.textContent = `${t("step", "步")} ${step.toLocaleString("en")}`;
    const shown = JSON.stringify([step, this.runs.map((run) => [run.name, run.color])]);
    if (shown === this.shown) return; // no flicker, no lost selection of text
    this.shown = shown;
    this.cards.replaceChildren(
      ...this.runs.map((run) => {
        const sample = run.samples.findLast((other) => other.step <= step);
        const texts = sample ? sample.texts.map(paragraph) : [];
        const at = sample && sample.step !== step ? ` · ${t("step", "步")} ${sample.step}` : "";
        const head = element("h3", { class: `run-${run.color}` }, run.name + at);
        return element("article", {}, head, ...texts);
      }),
    );
  }
}

/** Prompt ⟶ what the model made of it. */
function paragraph(text) {
  const at = text.indexOf("⟶");
  if (at < 0) return element("p", {}, text);
  const prompt = element("span", { class: "muted" }, text.slice(0, at + 1));
  return element("p", {}, prompt, text.slice(at + 1));
}

/** The flags of the chosen runs, a column each: those that differ, or all. */
export class Flags {
  constructor(place) {
    this.place = place;
    this.all = element("input", {
      type: "checkbox",
      onchange: () => {
        store("runs.allFlags", this.all.checked ? "yes" : "no");
        this.draw();
      },
    });
    this.all.checked = stored("runs.allFlags") === "yes";
    this.table = element("div", { class: "scrolled", tabindex: "0" });
    this.table.setAttribute("aria-label", t("Flags", "参数"));
    this.answer = null;
    const words = t("all, not only what differs", "全部（不只是不同的）");
    this.switch = element("label", {}, this.all, words);
    place.append(element("h2", {}, t("Flags", "参数")), this.switch, this.table);
  }

  /** runs: [{ name, color, started }]; asks the server only when they are others than before. */
  async show(runs) {
    const wanted = JSON.stringify(runs.map((run) => [run.name, run.color, run.started]));
    this.place.hidden = !runs.length;
    if (wanted === this.wanted || !runs.length) return;
    this.wanted = wanted;
    const query = new URLSearchParams(runs.map((run) => ["run", run.name]));
    try {
      const answer = await ask(`/runs/flags?${query}`);
      if (wanted !== this.wanted) return; // asked again meanwhile
      this.colors = new Map(runs.map((run) => [run.name, run.color]));
      this.answer = answer;
      this.draw();
    } catch {
      this.wanted = null; // the next look tries again
    }
  }

  draw() {
    if (!this.answer) return;
    const { runs, flags } = this.answer;
    this.switch.hidden = runs.length < 2;
    const isAll = this.all.checked || runs.length < 2;
    const shown = isAll ? flags : flags.filter((flag) => flag.differs);
    if (!shown.length) {
      const none = element("p", { class: "muted" }, t("No differences.", "没有不同。"));
      this.table.replaceChildren(none);
      return;
    }
    const heads = runs.map((name) =>
      element("th", { scope: "col", class: `run-${this.colors.get(name)}` }, name),
    );
    const rows = shown.map((flag) =>
      element(
        "tr",
        { class: flag.differs ? "differs" : null },
        element("th", { scope: "row" }, flag.name),
        ...flag.values.map(cell),
      ),
    );
    this.table.replaceChildren(
      element(
        "table",
        {},
        element("thead", {}, element("tr", {}, element("td", {}), ...heads)),
        element("tbody", {}, ...rows),
      ),
    );
  }
}

/** A flag's value; of a long hash its beginning, the rest where the mouse rests on it. */
function cell(value) {
  if (value === null) return element("td", { class: "muted" }, "–");
  const text = String(value);
  const isHash = /^[0-9a-f]{40,}$/.test(text);
  return element("td", { title: isHash ? text : null }, isHash ? `${text.slice(0, 12)}…` : text);
}
