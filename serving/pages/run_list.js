// The list of runs: what each is and does, and which of them the charts show.

import { element, t } from "./common.js";
import { duration, measured } from "./ticks.js";

const STATES = {
  running: () => t("running", "运行中"),
  finished: () => t("finished", "已完成"),
  stopped: () => t("stopped", "已停止"),
  failed: () => t("failed", "失败"),
};
const TO_FILTER = 8; // so many runs are searched by eye

/** Words for units of time. */
export function timeWords() {
  return { s: t("s", "秒"), min: t("min", "分钟"), h: t("h", "小时"), d: t("d", "天") };
}

/**
 * Draws into `place`. chosen: a Map from name to colour number; told: { toggle(name), only(name) }.
 * The entries stay the same elements while they are updated: focus and clicks are not lost.
 */
export class RunList {
  constructor(place, told) {
    this.told = told;
    this.entries = new Map();
    this.title = element("summary", {}, t("Runs", "训练"));
    this.filter = element("input", {
      type: "search",
      placeholder: t("Find a run", "查找"),
      "aria-label": t("Find a run", "查找"),
      oninput: () => this.hideOthers(),
    });
    this.items = element("ul", {});
    this.empty = element("div", { class: "empty" });
    place.append(this.title, this.filter, this.empty, this.items);
    if (matchMedia("(max-width: 900px)").matches) place.open = false;
  }

  show(runs, chosen, folder, now) {
    const running = runs.filter((run) => run.state === "running").length;
    const count = t(`Runs (${runs.length})`, `训练（${runs.length}）`);
    const more = running ? t(`, ${running} running`, `，${running} 个运行中`) : "";
    this.title.textContent = count + more;
    this.filter.hidden = runs.length < TO_FILTER;
    this.writeEmpty(runs, folder);
    const names = new Set(runs.map((run) => run.name));
    for (const [name, entry] of this.entries) {
      if (names.has(name)) continue;
      entry.item.remove();
      this.entries.delete(name);
    }
    runs.forEach((run, place) => {
      const entry = this.entries.get(run.name) ?? this.makeEntry(run.name);
      this.update(entry, run, chosen.get(run.name), now);
      if (this.items.children[place] !== entry.item) {
        this.items.insertBefore(entry.item, this.items.children[place] ?? null);
      }
    });
    this.hideOthers();
  }

  writeEmpty(runs, folder) {
    this.empty.hidden = runs.length > 0;
    if (runs.length) return;
    this.empty.replaceChildren(
      element("p", {}, t(`No runs in ${folder} yet. This makes one:`, `${folder} 中还没有训练。运行：`)),
      element("pre", {}, "python train_pretrain.py"),
      element("p", { class: "muted" }, t("It will appear here.", "之后会出现在这里。")),
    );
  }

  makeEntry(name) {
    const box = element("input", { type: "checkbox", onchange: () => this.told.toggle(name) });
    const badge = element("span", { class: "badge" });
    const label = element("span", { class: "name" }, name);
    const bar = element("progress", { max: "1" });
    const facts = element("div", { class: "facts muted" });
    const why = element("div", { class: "why" });
    const item = element(
      "li",
      {},
      element("label", {}, box, label, badge),
      bar,
      facts,
      why,
    );
    label.title = name;
    label.addEventListener("dblclick", () => this.told.only(name));
    const entry = { item, box, badge, bar, facts, why, name };
    this.entries.set(name, entry);
    return entry;
  }

  update(entry, run, color, now) {
    const { item, box, badge, bar, facts, why } = entry;
    box.checked = color !== undefined;
    item.className = color === undefined ? "" : `chosen run-${color}`;
    badge.className = `badge ${run.state}`;
    badge.textContent = STATES[run.state]();
    bar.hidden = !run.total_steps || run.state === "finished";
    if (run.total_steps) bar.value = Math.min(1, (run.step ?? 0) / run.total_steps);
    bar.setAttribute("aria-label", t("Steps done", "已完成的步数"));
    facts.replaceChildren(...factsOf(run, now).map((fact) => element("span", {}, fact)));
    why.textContent = reasonOf(run);
    why.hidden = !why.textContent;
  }

  hideOthers() {
    const wanted = this.filter.hidden ? "" : this.filter.value.trim().toLowerCase();
    for (const { item, name } of this.entries.values()) {
      item.hidden = !name.toLowerCase().includes(wanted);
    }
  }
}

function factsOf(run, now) {
  const facts = [];
  const { loss, val_loss: heldOut } = run.figures;
  const stage = run.script?.replace(/^train_|\.py$/g, "");
  if (stage && stage !== run.name) facts.push(stage);
  if (run.step !== null) facts.push(stepsOf(run));
  if (run.minutes_left !== null) {
    const left = duration(60 * run.minutes_left, timeWords());
    facts.push(t(`${left} left`, `剩余 ${left}`));
  }
  if (loss !== undefined) facts.push(`${t("loss", "损失")} ${measured(loss)}`);
  if (heldOut !== undefined) facts.push(`${t("held out", "留出")} ${measured(heldOut)}`);
  const seen = run.updated ?? run.started;
  if (seen) {
    const ago = duration(Math.max(0, now - seen), timeWords());
    facts.push(t(`${ago} ago`, `${ago}前`));
  }
  return facts;
}

function stepsOf(run) {
  const step = run.step.toLocaleString("en");
  const all = run.total_steps ? ` / ${run.total_steps.toLocaleString("en")}` : "";
  return `${t("step", "步")} ${step}${all}`;
}

/** What there is to say of a state, if anything. */
function reasonOf(run) {
  if (run.state === "stopped") {
    const by = run.why ? t(` by ${run.why}`, `（${run.why}）`) : "";
    return t(`Stopped${by}: the same command goes on from there.`, `已停止${by}：用同一命令可继续。`);
  }
  if (run.state !== "failed") return "";
  if (run.why) return run.why;
  return t(
    "Ended without a last line: it was killed, or the machine went down. The same command goes on.",
    "没有结束记录：进程被杀死或机器断电。用同一命令可继续。",
  );
}
