// The settings of a conversation: how tokens are drawn, and the system prompt.

import { element, t } from "./common.js";

/** What is set before anybody has chosen: as in eval_model.py. */
export const DEFAULTS = { temperature: 0.7, top_p: 0.9 };

const NUMBERS = [
  {
    name: "temperature",
    label: () => t("Temperature", "温度"),
    hint: () => t("0: always the likeliest token", "0：总是选最可能的词元"),
    min: 0,
    max: 2,
    step: 0.1,
  },
  {
    name: "top_p",
    label: () => "Top p",
    hint: () => t("of the likeliest that sum to it", "累计概率达到它的词元"),
    min: 0,
    max: 1,
    step: 0.05,
  },
  {
    name: "top_k",
    label: () => "Top k",
    hint: () => t("of the k likeliest tokens", "最可能的 k 个词元"),
    min: 0,
    step: 1,
  },
  {
    name: "min_p",
    label: () => "Min p",
    hint: () => t("at least this share of the likeliest", "不低于最可能词元的这一比例"),
    min: 0,
    max: 1,
    step: 0.01,
  },
  {
    name: "repetition_penalty",
    label: () => t("Repetition penalty", "重复惩罚"),
    hint: () => t("1: none", "1：无"),
    min: 0.1,
    max: 10,
    step: 0.05,
  },
  {
    name: "max_tokens",
    label: () => t("Longest answer", "最长回答"),
    hint: () => t("in tokens", "以词元计"),
    min: 1,
    step: 1,
  },
  {
    name: "seed",
    label: () => t("Seed", "随机种子"),
    hint: () => t("the same seed, the same answer", "种子相同，回答相同"),
    min: 0,
    step: 1,
  },
];

const KEYS = [
  ["Enter", () => t("send", "发送")],
  ["Shift+Enter", () => t("new line", "换行")],
  ["Esc", () => t("stop", "停止")],
  ["↑", () => t("edit what you said last", "编辑上一条消息")],
  [shortcut("K"), () => t("new conversation", "新对话")],
];

/** How the keys of a shortcut are written on this machine. */
export function shortcut(letter) {
  return isMac() ? `⌘${letter}` : `Ctrl+${letter}`;
}

/** Whether ⌘ takes Ctrl's place; Ctrl+K deletes to the line's end there. */
export function isMac() {
  return /Mac|iPhone|iPad/.test(navigator.platform);
}

/** The number a field holds: undefined where it is empty, null where it is none or out of range. */
function numberOf(input) {
  if (input.validity.badInput) return null;
  if (input.value === "") return undefined;
  const number = Number(input.value);
  if (input.validity.rangeUnderflow || input.validity.rangeOverflow) return null;
  return input.step === "1" && !Number.isInteger(number) ? null : number;
}

/** The dialog of the settings; `changed(settings)` after each change. */
export class SettingsDialog {
  constructor(dialog, changed) {
    this.dialog = dialog;
    this.changed = changed;
    this.settings = {};
    this.inputs = new Map();
    this.system = element("textarea", {
      id: "system",
      rows: 4,
      oninput: () => this.#set("system", this.system.value || undefined),
    });
    dialog.setAttribute("aria-labelledby", "settings_title");
    dialog.append(
      element(
        "form",
        { method: "dialog" },
        element(
          "header",
          {},
          element("h2", { id: "settings_title" }, t("Settings", "设置")),
          element("button", { class: "quiet", "aria-label": t("Close", "关闭") }, "✕"),
        ),
        element("label", { for: "system" }, t("System prompt", "系统提示词")),
        this.system,
        element("div", { class: "numbers" }, ...NUMBERS.map((field) => this.#numberField(field))),
        element(
          "p",
          { class: "muted" },
          t("What is empty is the server's to choose.", "留空的由服务器决定。"),
        ),
        element(
          "button",
          { type: "button", onclick: () => this.#reset() },
          t("Back to defaults", "恢复默认"),
        ),
        element("h3", {}, t("Keys", "快捷键")),
        element(
          "dl",
          { class: "keys" },
          ...KEYS.flatMap(([key, does]) => [
            element("dt", {}, element("kbd", {}, key)),
            element("dd", {}, does()),
          ]),
        ),
      ),
    );
    // a click beside the dialog closes it
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
  }

  open(settings) {
    this.settings = settings;
    this.#fill();
    this.dialog.showModal();
  }

  #numberField({ name, label, hint, ...limits }) {
    const input = element("input", {
      id: `setting_${name}`,
      type: "number",
      inputmode: limits.step === 1 ? "numeric" : "decimal",
      placeholder: t("default", "默认"),
      "aria-describedby": `hint_${name}`,
      ...limits,
      oninput: () => {
        const number = numberOf(input);
        input.setAttribute("aria-invalid", String(number === null));
        if (number !== null) this.#set(name, number);
      },
    });
    this.inputs.set(name, input);
    return element(
      "div",
      { class: "number" },
      element("label", { for: input.id }, label()),
      input,
      element("span", { id: `hint_${name}`, class: "muted" }, hint()),
    );
  }

  #set(name, value) {
    if (value === undefined) delete this.settings[name];
    else this.settings[name] = value;
    this.changed(this.settings);
  }

  #fill() {
    this.system.value = this.settings.system ?? "";
    for (const [name, input] of this.inputs) {
      input.value = this.settings[name] ?? "";
      input.setAttribute("aria-invalid", "false");
    }
  }

  #reset() {
    for (const name of ["system", ...this.inputs.keys()]) delete this.settings[name];
    Object.assign(this.settings, DEFAULTS);
    this.#fill();
    this.changed(this.settings);
  }
}
