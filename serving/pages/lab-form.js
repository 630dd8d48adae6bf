// What is looked at: the model, a text or a chat turn, and the link that keeps them.

import { element, t } from "./common.js";
import { exampleChat, exampleText } from "./lab-examples.js";

const LONGEST_LINK = 16000; // characters of a fragment; browsers and messengers cut longer ones
const LONGEST_TEXT = 20000; // as the server has it

export class Form {
  /** onlook(): what is in the fields shall be looked at. */
  constructor({ models, onlook }) {
    this.models = models;
    this.onlook = onlook;
    this.examples = 0;
    this.model = element(
      "select",
      { id: "model", onchange: () => this.#modelChanged() },
      ...models.map(({ name }) => element("option", { value: name }, name)),
    );
    this.text = area("text", 3, t("Paste or type a text", "粘贴或输入文本"));
    this.user = area("user", 2, t("What the user says", "用户说的话"));
    this.assistant = area("assistant", 2, t("What the model answers; may be empty", "模型的回答；可留空"));
    this.begin = element("input", { type: "checkbox", id: "begin", checked: true });
    this.kinds = ["text", "chat"].map((kind) =>
      element("input", { type: "radio", name: "kind", value: kind, onchange: () => this.#show() }),
    );
    this.look = element("button", { type: "submit", class: "primary" }, t("Look", "查看"));
    this.link = element("button", { type: "button", class: "quiet", id: "link", hidden: true });
    this.link.addEventListener("click", () => this.#copyLink());
    this.#nameLink();
    this.root = this.#layout();
    this.setKind("text");
  }

  #layout() {
    const names = [t("Text", "文本"), t("Chat turn", "一轮对话")];
    const kinds = this.kinds.map((input, i) => element("label", {}, input, names[i]));
    this.kindsField = element("div", { class: "kinds", role: "group" }, ...kinds);
    const beginText = t("a document begins here", "文档从这里开始");
    this.beginField = element("label", { class: "begin" }, this.begin, beginText);
    const example = () => this.#example();
    const form = element(
      "form",
      {
        onsubmit: (event) => {
          event.preventDefault();
          this.onlook();
        },
        onkeydown: (event) => {
          if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
        },
      },
      element(
        "div",
        { class: "fields" },
        this.kindsField,
        this.text,
        this.user,
        this.assistant,
      ),
      element(
        "div",
        { class: "choices" },
        this.look,
        element("button", { type: "button", id: "example", onclick: example }, t("Example", "示例")),
        this.link,
        element("label", {}, element("span", {}, t("Model", "模型")), this.model),
        this.beginField,
        element("span", { class: "muted hint" }, t("Ctrl + Enter looks", "Ctrl + Enter 查看")),
      ),
    );
    return form;
  }

  get kind() {
    return this.kinds[1].checked ? "chat" : "text";
  }

  setKind(kind) {
    this.kinds[kind === "chat" ? 1 : 0].checked = true;
    this.#show();
  }

  #show() {
    const { chat } = this.models[Math.max(0, this.model.selectedIndex)];
    if (!chat) this.kinds[0].checked = true;
    this.kindsField.hidden = !chat;
    this.text.hidden = this.kind === "chat";
    this.user.hidden = this.assistant.hidden = this.kind !== "chat";
    this.beginField.hidden = this.kind === "chat";
  }

  #modelChanged() {
    this.#show();
    if (!this.isEmpty()) this.onlook();
  }

  #example() {
    if (this.kind === "chat") {
      const { user, assistant } = exampleChat(this.examples);
      this.user.value = user;
      this.assistant.value = assistant;
    } else {
      this.text.value = exampleText(this.examples);
      this.begin.checked = true;
    }
    this.examples += 1;
    this.onlook();
  }

  #nameLink(text = t("Copy link", "复制链接")) {
    this.link.textContent = text;
  }

  async #copyLink() {
    try {
      await navigator.clipboard.writeText(location.href);
      this.#nameLink(t("Copied", "已复制"));
    } catch {
      // a page that is not from this machine or https may not; the address bar has it anyway
      this.#nameLink(t("It is in the address bar", "链接就在地址栏里"));
    }
    setTimeout(() => this.#nameLink(), 2000);
  }

  /** Look at an example: the first sight of the page. */
  begins() {
    this.#example();
  }

  isEmpty() {
    return this.kind === "chat" ? !this.user.value : !this.text.value;
  }

  /** The part of a request that says what is looked at. */
  request() {
    const model = this.model.value;
    if (this.kind === "chat") {
      const chat = { user: this.user.value, assistant: this.assistant.value };
      return { model, chat };
    }
    return { model, text: this.text.value, begin: this.begin.checked };
  }

  /** The fragment that brings all this back, or null if it would be too long. */
  fragment() {
    const { model, text, chat, begin } = this.request();
    const fields = new URLSearchParams(chat ?? { text });
    if (begin === false) fields.set("begin", "0");
    fields.set("model", model);
    const made = `#${fields}`;
    return made.length > LONGEST_LINK ? null : made;
  }

  /** Fill the fields from a fragment; false if there is nothing in it. */
  restore(fragment) {
    if (fragment.length > LONGEST_LINK) return false;
    const fields = new URLSearchParams(fragment.slice(1));
    const get = (name) => (fields.get(name) ?? "").slice(0, LONGEST_TEXT);
    const { models } = this;
    const known = models.findIndex(({ name }) => name === fields.get("model"));
    if (!fields.has("text") && !fields.has("user")) return false;
    const fallback = fields.has("user") ? models.findIndex(({ chat }) => chat) : 0;
    this.model.selectedIndex = Math.max(0, known >= 0 ? known : fallback);
    this.text.value = get("text");
    this.user.value = get("user");
    this.assistant.value = get("assistant");
    this.begin.checked = fields.get("begin") !== "0";
    this.setKind(fields.has("user") ? "chat" : "text");
    return true;
  }
}

function area(id, rows, name) {
  const fields = { id, rows, maxlength: LONGEST_TEXT, placeholder: name, "aria-label": name };
  return element("textarea", { ...fields, spellcheck: "false", dir: "auto" });
}
