// How a message looks: what the user said, and an answer with its thinking, its tool calls, what it
// cost and what can be done with it. What people and models wrote gets in as text nodes only.

import { tokensPerSecond } from "./answer.js";
import { element, language, t } from "./common.js";
import { MarkdownView } from "./markdown.js";

/** A button with a text of its own, or a sign and a name for it. */
function action(label, onclick, sign = label) {
  const named = sign === label ? {} : { "aria-label": label, title: label };
  return element("button", { type: "button", class: "quiet", onclick, ...named }, sign);
}

/** Copy a text; `button` says that it was done. */
export async function copyText(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyTheOldWay(text); // no clipboard where the page comes by plain HTTP from another machine
  }
  button.textContent = t("Copied", "已复制");
  setTimeout(() => (button.textContent = label), 1500);
}

function copyTheOldWay(text) {
  const focused = document.activeElement;
  const box = element("textarea", { class: "unseen" });
  box.value = text;
  document.body.append(box);
  box.select();
  document.execCommand("copy");
  box.remove();
  focused?.focus();
}

/** ‹ 2/3 › where there are several versions of what stands from a message on. */
function versionSwitch(versions, show) {
  if (!versions) return "";
  const { at, tails } = versions;
  const go = (to, label, sign) => {
    const button = action(label, () => show(to), sign);
    button.disabled = to < 0 || to >= tails.length;
    return button;
  };
  return element(
    "span",
    { class: "versions" },
    go(at - 1, t("Version before", "上一版本"), "‹"),
    `${at + 1}/${tails.length}`,
    go(at + 1, t("Next version", "下一版本"), "›"),
  );
}

/** What the user said; `actions`: edit(text), showVersion(at). */
export class UserView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.node = element("article", { class: "message user" });
    this.update();
  }

  update() {
    const { content, versions } = this.message;
    const copy = action(t("Copy", "复制"), () => copyText(content, copy));
    this.node.setAttribute("aria-label", t("You said", "你说"));
    this.node.replaceChildren(
      element("div", { class: "said" }, content),
      element(
        "footer",
        {},
        versionSwitch(versions, this.actions.showVersion),
        copy,
        action(t("Edit", "编辑"), () => this.edit()),
      ),
    );
  }

  /** Put a box in the message's place: Enter sends what it holds, Esc leaves all as it was. */
  edit() {
    const box = element("textarea", { "aria-label": t("Edit the message", "编辑消息") });
    const stop = () => {
      this.update();
      this.actions.editEnded();
    };
    const send = () => {
      if (box.value.trim()) this.actions.edit(box.value);
    };
    box.value = this.message.content;
    box.addEventListener("input", () => fitHeight(box));
    box.addEventListener("keydown", (event) => {
      if (isSendKey(event)) {
        event.preventDefault();
        send();
      } else if (event.key === "Escape" && !event.isComposing) {
        event.stopPropagation();
        stop();
      }
    });
    this.node.replaceChildren(
      box,
      element(
        "footer",
        { class: "editing" },
        element("button", { type: "button", onclick: stop }, t("Cancel", "取消")),
        element("button", { type: "button", class: "primary", onclick: send }, t("Send", "发送")),
      ),
    );
    fitHeight(box);
    box.focus();
    box.setSelectionRange(box.value.length, box.value.length);
  }
}

/** Enter alone, and not the Enter that ends the writing of a Chinese word (229: Safari's). */
export function isSendKey(event) {
  const composing = event.isComposing || event.keyCode === 229;
  return event.key === "Enter" && !event.shiftKey && !composing;
}

/** Make a box as high as its text; its CSS says where that ends. */
export function fitHeight(box) {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + box.offsetHeight - box.clientHeight}px`;
}

/** An answer; `actions`: again(), showVersion(at). */
export class AnswerView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.thinking = element("div", { class: "said" });
    this.thinkingSummary = element("summary");
    this.thinkingBox = element(
      "details",
      { class: "folded", hidden: true },
      this.thinkingSummary,
      this.thinking,
    );
    this.content = message.continues ? new PlainView() : new MarkdownView();
    this.calls = element("div", { class: "calls" });
    this.problem = element("div", { class: "problem", hidden: true });
    this.footer = element("footer");
    this.node = element(
      "article",
      { class: "message answer", "aria-label": t("Answer", "回答") },
      this.thinkingBox,
      this.content.root,
      this.calls,
      this.problem,
      this.footer,
    );
  }

  /**
   * Draw what has changed.
   *
   * running  whether more of it may come
   * results  the tools' messages that belong to its calls
   * last     whether it is the last message of its turn, which has the buttons
   */
  update({ running, results, last }) {
    const { message } = this;
    this.node.classList.toggle("running", running);
    this.#drawThinking(running);
    this.content.update(message.content);
    this.#drawCalls(results, running);
    this.#drawProblem(running, last);
    this.#drawFooter(running, last);
  }

  #drawThinking(running) {
    const { reasoning_content: reasoning, content, tool_calls: calls } = this.message;
    this.thinkingBox.hidden = !reasoning;
    if (!reasoning) return;
    const thinks = running && !content && !calls?.length;
    const summary = thinks ? t("Thinking…", "思考中…") : t("Thoughts", "思考过程");
    this.thinkingSummary.textContent = summary;
    growText(this.thinking, reasoning);
  }

  #drawCalls(results, running) {
    const { tool_calls: calls = [] } = this.message;
    const drawn = JSON.stringify([calls, results, running]);
    if (this.drawnCalls === drawn) return;
    this.drawnCalls = drawn;
    this.calls.replaceChildren(...calls.map((call) => callElement(call, results, running)));
  }

  #drawProblem(running, last) {
    const { error, finish } = this.message;
    const told = running ? null : problemOf(this.message);
    const state = JSON.stringify([told, last]);
    if (this.drawnProblem === state) return;
    this.drawnProblem = state;
    this.problem.hidden = !told;
    this.problem.classList.toggle("error", Boolean(error));
    const retry = told && last && (error || finish === null);
    this.problem.replaceChildren(told ?? "");
    if (retry) {
      this.problem.append(
        element("button", { type: "button", onclick: this.actions.again }, t("Retry", "重试")),
      );
    }
  }

  #drawFooter(running, last) {
    const state = JSON.stringify([running, last, this.message.versions?.at]);
    if (this.drawnFooter === state) return;
    this.drawnFooter = state;
    const copy = action(t("Copy", "复制"), () => copyText(this.message.content, copy));
    const buttons = [copy, action(t("Regenerate", "重新生成"), this.actions.again)];
    this.footer.replaceChildren(
      versionSwitch(running ? null : this.message.versions, this.actions.showVersion),
      element("span", { class: "stats muted" }, ...(running ? [] : statistics(this.message))),
      ...(last && !running ? buttons : []),
    );
  }
}

/** A text that grows, shown as it is. */
class PlainView {
  constructor() {
    this.root = element("div", { class: "said" });
  }

  get settled() {
    return 0;
  }

  update(text) {
    growText(this.root, text);
  }
}

function growText(node, text) {
  const drawn = node.firstChild?.data ?? "";
  if (drawn && text.startsWith(drawn)) node.firstChild.appendData(text.slice(drawn.length));
  else node.textContent = text;
}

/** What went wrong with an answer, or why it ended where that is worth a word; else null. */
export function problemOf(message) {
  if (message.error) return message.error;
  switch (message.finish) {
    case "length":
      return t("Cut off: the longest length was reached.", "已截断：达到最大长度。");
    case "stopped":
      return t("Stopped.", "已停止。");
    case "content_filter":
      return t("Left out by the server's filter.", "被服务器过滤。");
    case null:
      return t("Broken off: the page was left.", "已中断：页面被关闭或刷新。");
    case "tool_calls":
      return null;
    default:
      return message.content || message.reasoning_content ? null : t("(empty)", "（空）");
  }
}

/** "12 tokens · 34.5 tokens/s · …": what an answer took, as nodes. */
function statistics({ usage, seconds_to_first: toFirst, model, ...timing }) {
  const number = new Intl.NumberFormat(language());
  const parts = [];
  if (usage) {
    const count = number.format(usage.completion_tokens);
    parts.push(count === "1" ? t("1 token", "1 词元") : t(`${count} tokens`, `${count} 词元`));
    const speed = tokensPerSecond({ usage, seconds_to_first: toFirst, ...timing })?.toFixed(1);
    if (speed) parts.push(t(`${speed} tokens/s`, `${speed} 词元/秒`));
    const cached = usage.prompt_tokens_details?.cached_tokens;
    const known = cached ? t(` (${cached} cached)`, `（${cached} 来自缓存）`) : "";
    const prompt = number.format(usage.prompt_tokens);
    parts.push(t(`prompt ${prompt}${known}`, `提示 ${prompt}${known}`));
  }
  if (model) parts.push(model);
  const first = toFirst?.toFixed(2);
  const wait = first ? t(`first after ${first} s`, `首词 ${first} 秒`) : null;
  // on a phone there is no room for the last of it
  return [parts.join(" · "), wait ? element("span", { class: "wide" }, ` · ${wait}`) : ""];
}

function callElement({ id, function: called }, results, running) {
  const result = results.find((message) => message.tool_call_id === id);
  const waiting = running ? t("running…", "运行中…") : t("not run", "未运行");
  const rows = [
    [t("Tool", "工具"), called.name],
    [t("Given", "参数"), readable(called.arguments)],
    [t("Result", "结果"), result?.content ?? waiting, result?.failed ? "error" : null],
  ];
  return element(
    "dl",
    { class: "call" },
    ...rows.flatMap(([name, text, kind]) => [
      element("dt", { class: "muted" }, name),
      element("dd", { class: kind }, text),
    ]),
  );
}

/** Arguments as `name: value` lines where they are a JSON object, else as they came. */
function readable(text) {
  try {
    const given = JSON.parse(text);
    if (given === null || typeof given !== "object" || Array.isArray(given)) return text;
    return Object.entries(given)
      .map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)])
      .map((pair) => pair.join(": "))
      .join("\n");
  } catch {
    return text;
  }
}
