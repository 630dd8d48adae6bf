// The column of messages: draws what has changed, at the pace the machine can keep, stays at the
// end unless the reader has scrolled away, and reads new text to those who cannot see it.

import { element, t } from "./common.js";
import { startOfTurn, toolResults } from "./conversations.js";
import { AnswerView, UserView, copyText, problemOf } from "./message_view.js";

const AT_END = 24; // pixels from the end that still count as being there
const SHARE = 4; // drawing takes at most 1/SHARE of the time, however slow it is

export class ConversationView {
  /** `actions`: edit, askAgain, showVersion (each with an index), editEnded, isRunning. */
  constructor({ scroller, column, toEnd, announcer }, actions) {
    Object.assign(this, { scroller, column, toEnd, announcer, actions });
    this.views = new Map();
    this.system = element("div", { class: "said" });
    this.systemBox = element(
      "details",
      { class: "folded" },
      element("summary", {}, t("System prompt", "系统提示词")),
      this.system,
    );
    this.waiting = null; // the frame or timer that draws next
    this.announced = null;
    this.atEnd = true;
    scroller.addEventListener("scroll", () => this.#noticeEnd(), { passive: true });
    addEventListener("resize", () => this.atEnd && this.scrollToEnd()); // a phone's keyboard
    toEnd.addEventListener("click", () => this.scrollToEnd());
    column.addEventListener("click", ({ target }) => {
      const button = target.closest("[data-copy]");
      if (button) copyText(button.closest("figure").querySelector("code").textContent, button);
    });
  }

  /** Show a conversation from its beginning to its end; `opening` is shown where it is empty. */
  show(conversation, opening) {
    this.conversation = conversation;
    this.views.clear();
    this.column.replaceChildren(this.systemBox);
    if (!conversation.messages.length) this.column.append(opening);
    this.draw();
    this.scrollToEnd();
  }

  /** Draw soon: at the next frame, or later where drawing has become slow. */
  drawSoon() {
    this.waiting ??= requestAnimationFrame(() => {
      const start = performance.now();
      this.draw();
      const rest = (performance.now() - start) * (SHARE - 1);
      if (rest < 16) this.waiting = null;
      else this.waiting = setTimeout(() => this.#drawLate(), rest);
      this.changedMeanwhile = false;
    });
    this.changedMeanwhile = true;
  }

  #drawLate() {
    this.waiting = null;
    if (this.changedMeanwhile) this.drawSoon();
  }

  /** Draw all messages; those that are drawn already cost nothing. */
  draw() {
    const { messages, settings } = this.conversation;
    this.system.textContent = settings.system ?? "";
    this.systemBox.hidden = !settings.system?.trim();
    const shown = messages.filter(({ role }) => role !== "tool");
    this.#dropOthers(shown);
    for (const message of shown) {
      const view = this.views.get(message) ?? this.#add(message);
      if (message.role === "assistant") this.#drawAnswer(message, view);
    }
    if (this.atEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.#noticeEnd();
  }

  #dropOthers(shown) {
    const keep = new Set(shown);
    if (shown.length) for (const node of this.column.querySelectorAll(".opening")) node.remove();
    for (const [message, view] of this.views) {
      if (keep.has(message)) continue;
      view.node.remove();
      this.views.delete(message);
    }
  }

  #add(message) {
    const index = () => this.conversation.messages.indexOf(message);
    const turn = () => startOfTurn(this.conversation, message);
    const { actions } = this;
    const view =
      message.role === "user"
        ? new UserView(message, {
            edit: (text) => actions.edit(index(), text),
            editEnded: actions.editEnded,
            showVersion: (at) => actions.showVersion(index(), at),
          })
        : new AnswerView(message, {
            again: () => actions.askAgain(turn()),
            showVersion: (at) => actions.showVersion(index(), at),
          });
    this.views.set(message, view);
    this.column.append(view.node);
    return view;
  }

  #drawAnswer(message, view) {
    const { messages } = this.conversation;
    const results = toolResults(this.conversation, message);
    const next = messages[messages.indexOf(message) + 1 + results.length];
    const last = next?.role !== "assistant" || message.continues;
    const running = !next && this.actions.isRunning(this.conversation);
    view.update({ running, results, last });
    if (running) this.#announce(message, view.content.settled);
    else if (this.announced?.message === message) this.#announceEnd(message);
  }

  // What is settled of an answer is read aloud, block by block: not every token, and not all again.
  #announce(message, end) {
    if (this.announced?.message !== message) {
      this.announced = { message, end: 0 };
      this.announcer.replaceChildren(element("p", {}, t("Answering…", "回答中…")));
    }
    const text = message.content.slice(this.announced.end, end).trim();
    this.announced.end = end;
    if (text) this.announcer.append(element("p", {}, text));
  }

  #announceEnd(message) {
    this.#announce(message, message.content.length);
    const problem = problemOf(message);
    if (problem) this.announcer.append(element("p", {}, problem));
    this.announced = null;
  }

  /** Edit what the user said last; false where there is nothing. */
  editLast() {
    const message = this.conversation.messages.findLast(({ role }) => role === "user");
    this.views.get(message)?.edit();
    return Boolean(message);
  }

  scrollToEnd() {
    this.atEnd = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.toEnd.hidden = true;
  }

  #noticeEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.atEnd = scrollHeight - scrollTop - clientHeight < AT_END;
    this.toEnd.hidden = this.atEnd;
  }
}
