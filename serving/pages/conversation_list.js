// The list of conversations at the side; on a phone a drawer over the page.

import { element, t } from "./common.js";
import { conversations, exported } from "./conversations.js";

export class ConversationList {
  /** `actions`: open(id), create(), rename(conversation, title), remove(…), isRunning(…). */
  constructor({ side, toggle, shade }, actions) {
    Object.assign(this, { side, toggle, shade, actions });
    this.list = element("ul", {});
    side.setAttribute("aria-label", t("Conversations", "对话列表"));
    side.append(
      element(
        "button",
        { type: "button", class: "new", onclick: () => this.#leave(actions.create) },
        t("New conversation", "新对话"),
      ),
      this.list,
    );
    toggle.addEventListener("click", () => this.setOpen(!this.isOpen));
    shade.addEventListener("click", () => this.setOpen(false));
    this.setOpen(false);
  }

  get isOpen() {
    return this.side.classList.contains("open");
  }

  /** Open or close the drawer; where the list is always there, this changes nothing to see. */
  setOpen(open) {
    this.side.classList.toggle("open", open);
    this.shade.hidden = !open;
    this.toggle.setAttribute("aria-expanded", String(open));
    if (open) this.side.querySelector("button").focus();
    else if (this.side.contains(document.activeElement)) this.toggle.focus();
  }

  #leave(action) {
    this.setOpen(false);
    action();
  }

  draw(current) {
    this.current = current;
    if (this.renaming) return; // drawn when that is done
    const active = document.activeElement;
    const focused = this.list.contains(active) ? active.dataset.id : null;
    this.list.replaceChildren(...conversations().map((each) => this.#item(each)));
    if (focused) this.list.querySelector(`[data-id="${focused}"]`)?.focus();
  }

  #item(conversation) {
    const isCurrent = conversation.id === this.current.id;
    const title = conversation.title || t("Without a title", "无标题");
    const open = element(
      "button",
      {
        type: "button",
        class: "title",
        "data-id": conversation.id,
        "aria-current": isCurrent ? "true" : null,
        title,
        onclick: () => this.#leave(() => this.actions.open(conversation.id)),
      },
      title,
    );
    if (this.actions.isRunning(conversation)) {
      const name = t("answering", "回答中");
      open.append(element("span", { class: "dot", role: "img", "aria-label": name }));
    }
    const item = element("li", { class: isCurrent ? "current" : null }, open);
    if (isCurrent) item.append(this.#actionsOf(conversation, item));
    return item;
  }

  #actionsOf(conversation, item) {
    const button = (label, onclick) =>
      element("button", { type: "button", class: "quiet", onclick }, label);
    return element(
      "div",
      { class: "actions" },
      button(t("Rename", "重命名"), () => this.#rename(conversation, item)),
      button(t("Export", "导出"), () => download(conversation)),
      button(t("Delete", "删除"), () => {
        const question = t("Delete this conversation?", "删除这个对话？");
        if (confirm(`${question}\n${conversation.title}`)) this.actions.remove(conversation);
      }),
    );
  }

  #rename(conversation, item) {
    const box = element("input", { "aria-label": t("Title", "标题"), maxlength: 200 });
    this.renaming = true;
    const end = (keep) => {
      if (!this.renaming) return; // taking the box away takes its focus, too
      this.renaming = false;
      if (keep && box.value.trim()) this.actions.rename(conversation, box.value.trim());
      this.draw(this.current);
      this.list.querySelector(`[data-id="${conversation.id}"]`)?.focus();
    };
    box.value = conversation.title;
    box.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        end(false);
      }
    });
    box.addEventListener("blur", () => end(true));
    item.replaceChildren(box);
    box.select();
    box.focus();
  }
}

/** Give the browser a JSON file of the conversation to save. */
function download(conversation) {
  const address = URL.createObjectURL(
    new Blob([exported(conversation)], { type: "application/json" }),
  );
  const name = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "_").slice(0, 40) || "conversation";
  element("a", { href: address, download: `${name}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
