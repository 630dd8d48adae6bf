// Where the user writes: the box, the button that sends or stops, and two switches.

import { element, t } from "./common.js";
import { fitHeight, isSendKey } from "./message_view.js";

const DRAFT = "minimind.draft"; // what stands in the box, while the tab is open

export class Composer {
  /** `actions`: send(text) → whether it was taken, stop(), editLast(), toggle(name). */
  constructor(form, actions) {
    this.actions = actions;
    this.running = false;
    this.box = element("textarea", { id: "box", rows: 1, autocomplete: "off" });
    this.button = element("button", { class: "primary" });
    this.think = toggle(t("Think", "思考"), () => actions.toggle("think"));
    this.tools = toggle(t("Tools", "工具"), () => actions.toggle("tools"));
    this.note = element("p", { class: "note muted", hidden: true });
    form.append(
      this.note,
      element("div", { class: "boxed" }, this.box, this.button),
      element("div", { class: "switches" }, this.think, this.tools, hint()),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) actions.stop();
      else this.#send();
    });
    this.box.addEventListener("input", () => this.#changed());
    this.box.addEventListener("keydown", (event) => this.#key(event));
    this.box.value = draft() ?? "";
    fitHeight(this.box);
  }

  #changed() {
    fitHeight(this.box);
    draft(this.box.value);
  }

  #key(event) {
    if (isSendKey(event)) {
      event.preventDefault();
      if (!this.running) this.#send();
    } else if (event.key === "ArrowUp" && !this.box.value && !event.isComposing) {
      if (!this.running && this.actions.editLast()) event.preventDefault();
    }
  }

  #send() {
    if (!this.actions.send(this.box.value)) return;
    this.box.value = "";
    this.#changed();
  }

  /** Write a text into the box as if the user had. */
  fill(text) {
    this.box.value = text;
    this.#changed();
    this.box.focus();
  }

  /** Go back to the box; not on a phone, where that brings up the keyboard. */
  focus() {
    if (matchMedia("(hover: hover)").matches) this.box.focus();
  }

  /** Draw what the model and the settings allow. */
  draw({ running, base, canThink, hasTools, settings }) {
    this.running = running;
    this.button.textContent = running ? "■" : "↑";
    const does = running ? t("Stop", "停止") : base ? t("Continue", "续写") : t("Send", "发送");
    this.button.setAttribute("aria-label", does);
    this.button.title = does;
    const placeholder = base
      ? t("Text to go on from", "要续写的文字")
      : t("Say something", "说点什么");
    this.box.placeholder = placeholder;
    this.box.setAttribute("aria-label", placeholder);
    this.note.hidden = !base;
    this.note.textContent = t(
      "A base model: it goes on with your text and does not answer questions.",
      "这是基座模型：它会续写您的文字，不会回答问题。",
    );
    this.think.hidden = base || !canThink;
    this.tools.hidden = base || !hasTools;
    this.think.setAttribute("aria-pressed", String(Boolean(settings.think)));
    this.tools.setAttribute("aria-pressed", String(Boolean(settings.tools)));
  }
}

/** What was in the box, or keep what is. */
function draft(text) {
  try {
    if (text === undefined) return sessionStorage.getItem(DRAFT);
    sessionStorage.setItem(DRAFT, text);
  } catch {
    // a browser that keeps nothing
  }
  return null;
}

function toggle(label, onclick) {
  return element("button", { type: "button", class: "switch", onclick }, label);
}

function hint() {
  return element(
    "span",
    { class: "hint muted" },
    t("Enter sends, Shift+Enter makes a new line", "Enter 发送，Shift+Enter 换行"),
  );
}
