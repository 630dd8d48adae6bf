// The chat page: puts its parts together. What the user does comes in here, and what has changed is
// drawn from here; each part knows only its own elements.

import { answer, isBase } from "./answer.js";
import { drawBar, element, language, store, stored, t } from "./common.js";
import { Composer } from "./composer.js";
import { ConversationList } from "./conversation_list.js";
import { ConversationView } from "./conversation_view.js";
import {
  addUserMessage,
  conversationOf,
  conversations,
  cutVersion,
  deleteConversation,
  loadConversations,
  newConversation,
  readConversation,
  saveConversation,
  showVersion,
} from "./conversations.js";
import { keyDialog } from "./key_dialog.js";
import { DEFAULTS, SettingsDialog, isMac, shortcut } from "./settings.js";
import { onKeyNeeded, requestJSON } from "./stream.js";

const SAVE_EVERY = 1000; // milliseconds between savings while an answer arrives
const EXAMPLES = {
  chat: {
    en: ["Who are you?", "What is 12 + 30?", "Tell me a story about a little cat."],
    zh: ["你是谁？", "12加30等于多少？", "给我讲一个小猫的故事。"],
  },
  base: {
    en: ["Once upon a time, there was a little cat.", "The capital of France is"],
    zh: ["从前有一只小猫，", "法国的首都是"],
  },
};

const part = (id) => document.getElementById(id);
const runs = new Map(); // conversation id → AbortController of the answer that arrives
let models = [];
let tools = [];
let known = false; // which models and tools the server has now
let conversation;
let leaving = false; // the page: nothing is saved any more

const isRunning = ({ id }) => runs.has(id);

// ---- what is drawn ----

drawBar();
const list = new ConversationList(
  { side: part("side"), toggle: part("toggle"), shade: part("shade") },
  { open, create, rename, remove, isRunning },
);
const view = new ConversationView(
  {
    scroller: part("scroller"),
    column: part("column"),
    toEnd: part("to_end"),
    announcer: part("announcer"),
  },
  {
    edit,
    askAgain,
    showVersion: changeVersion,
    editEnded: () => composer.focus(),
    isRunning,
  },
);
const composer = new Composer(part("composer"), {
  send,
  stop,
  editLast: () => view.editLast(),
  toggle: (name) => {
    const { settings } = conversation;
    changeSettings({ ...settings, [name]: !settings[name] });
  },
});
const settingsDialog = new SettingsDialog(part("settings"), changeSettings);

/** Draw all but the messages. */
function draw() {
  const model = modelOf(conversation);
  part("title").textContent = conversation.title || t("New conversation", "新对话");
  document.title = conversation.title ? `${conversation.title} · MiniMind` : "MiniMind";
  list.draw(conversation);
  drawModels(model);
  part("column").classList.toggle("text", isBase(model));
  composer.draw({
    running: isRunning(conversation),
    base: isBase(model),
    canThink: model.minimind?.can_think ?? true,
    hasTools: tools.length > 0,
    settings: conversation.settings,
  });
}

function drawModels(model) {
  const select = part("model");
  select.hidden = models.length === 0;
  select.replaceChildren(
    ...models.map(({ id, minimind }) => {
      const kinds = [
        minimind?.adapter ? t("adapter", "适配器") : "",
        minimind?.kind === "base" ? t("base", "基座") : "",
      ].filter(Boolean);
      return element("option", { value: id }, kinds.length ? `${id} (${kinds.join(", ")})` : id);
    }),
  );
  select.value = model.id ?? "";
}

function opening() {
  const kind = isBase(modelOf(conversation)) ? "base" : "chat";
  const title = kind === "base" ? t("Begin a text", "写一个开头") : t("Say hello", "打个招呼");
  return element(
    "div",
    { class: "opening" },
    element("h2", {}, title),
    ...EXAMPLES[kind][language()].map((text) =>
      element("button", { type: "button", onclick: () => composer.fill(text) }, text),
    ),
  );
}

/** Say something at the top of the page; with `retry`, a button for it. "" takes it away. */
function notice(text, retry = null) {
  part("notice").hidden = !text;
  part("notice").replaceChildren(text);
  if (!retry) return;
  part("notice").append(element("button", { type: "button", onclick: retry }, t("Retry", "重试")));
}

// ---- conversations ----

function open(id) {
  if (location.hash.slice(1) === id) show();
  else location.hash = id; // which shows it, and the browser's "back" works
}

function create() {
  conversation = newConversation({ ...conversation.settings });
  open(conversation.id);
  composer.focus();
}

/** Show the conversation that the address names; the newest where it names none. */
function show() {
  const id = location.hash.slice(1);
  if (conversation?.id !== id) {
    conversation = conversationOf(id) ?? conversations()[0] ?? newConversation(lastSettings());
    history.replaceState(null, "", `#${conversation.id}`);
  }
  view.show(conversation, opening());
  draw();
}

/** A new conversation begins with the settings that were chosen last. */
function lastSettings() {
  try {
    return JSON.parse(stored("chat.settings")) ?? { ...DEFAULTS };
  } catch {
    return { ...DEFAULTS };
  }
}

function rename(renamed, title) {
  Object.assign(renamed, { title, renamed: true });
  save(renamed);
  draw();
}

function remove(removed) {
  runs.get(removed.id)?.abort();
  deleteConversation(removed.id);
  conversation = conversations()[0] ?? newConversation(lastSettings());
  open(conversation.id);
}

function save(changed) {
  if (leaving || saveConversation(changed)) return;
  notice(
    t(
      "This browser has no room left: what is new will be gone when the page is left. " +
        "Export or delete conversations.",
      "浏览器存储空间已满：离开页面后新内容会丢失。请导出或删除一些对话。",
    ),
  );
}

function changeSettings(settings) {
  conversation.settings = settings;
  store("chat.settings", JSON.stringify(settings));
  if (conversation.messages.length) save(conversation);
  view.draw();
  draw();
}

function changeVersion(index, at) {
  if (isRunning(conversation)) return;
  showVersion(conversation, index, at);
  save(conversation);
  view.draw();
}

// ---- asking ----

/** The model that a conversation is with: the one chosen, or else the server's first. */
function modelOf({ settings }) {
  const chosen = models.find(({ id }) => id === settings.model);
  return chosen ?? models[0] ?? { id: settings.model ?? "" };
}

/** Send what the user wrote; false where it cannot be sent now. */
function send(text) {
  const goesOn = isBase(modelOf(conversation)) && conversation.messages.length > 0;
  if (isRunning(conversation) || (!text.trim() && !goesOn)) return false;
  if (text) addUserMessage(conversation, text);
  run(null);
  return true;
}

/** Send another text in place of the message at `index`, which stays as a version. */
function edit(index, text) {
  if (isRunning(conversation)) return;
  addUserMessage(conversation, text, cutVersion(conversation, index));
  run(null);
  composer.focus();
}

/** Ask for the turn at `index` again; an answer that said nothing is not kept as a version. */
function askAgain(index) {
  if (isRunning(conversation)) return;
  const [first, ...others] = conversation.messages.slice(index);
  const empty = !others.length && !first.content && !first.reasoning_content && !first.versions;
  const versions = empty ? null : cutVersion(conversation, index);
  if (empty) conversation.messages.splice(index);
  run(versions);
  composer.focus();
}

function stop() {
  runs.get(conversation.id)?.abort();
}

async function run(versions) {
  const asked = conversation;
  const controller = new AbortController();
  runs.set(asked.id, controller);
  save(asked);
  view.scrollToEnd();
  draw();
  const saving = setInterval(() => save(asked), SAVE_EVERY);
  try {
    if (!known) await loadServer();
    await answer({
      conversation: asked,
      model: modelOf(asked),
      tools: asked.settings.tools ? tools : [],
      versions,
      signal: controller.signal,
      changed: () => asked === conversation && view.drawSoon(),
    });
  } finally {
    clearInterval(saving);
    runs.delete(asked.id);
    known &&= !asked.messages.at(-1).error; // after an error it may be another server
    if (conversationOf(asked.id) === asked) save(asked);
    if (asked === conversation) view.draw();
    draw();
  }
}

// ---- the server ----

/** Which models and tools there are; says so where the server does not answer. */
async function loadServer() {
  try {
    models = (await requestJSON("/v1/models")).data;
    known = true;
    notice("");
  } catch (error) {
    notice(error.message, loadServer);
    return;
  }
  try {
    tools = (await requestJSON("/tools")).tools;
  } catch {
    tools = []; // a server without tools
  }
  if (!conversation.messages.length) view.show(conversation, opening());
  draw();
}

// ---- keys and events ----

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) {
    if (document.querySelector("dialog[open]")) return; // the browser closes it
    if (list.isOpen) list.setOpen(false);
    else stop();
  }
  const command = isMac() ? event.metaKey : event.ctrlKey;
  if (command && event.key.toLowerCase() === "k") {
    event.preventDefault();
    create();
  }
});
part("toggle").setAttribute("aria-label", t("Conversations", "对话列表"));
part("open_settings").textContent = t("Settings", "设置");
part("open_settings").addEventListener("click", () => settingsDialog.open(conversation.settings));
part("to_end").setAttribute("aria-label", t("To the end", "到末尾"));
part("model").setAttribute("aria-label", t("Model", "模型"));
part("model").addEventListener("change", ({ target }) => {
  changeSettings({ ...conversation.settings, model: target.value });
  if (!conversation.messages.length) view.show(conversation, opening());
});
list.side.querySelector(".new").title = shortcut("K");
addEventListener("hashchange", show);
// The connection breaks when the page is left. That is no error of the answer: saved is what stood.
addEventListener("pagehide", () => {
  for (const id of runs.keys()) save(conversationOf(id));
  leaving = true;
});
addEventListener("pageshow", () => (leaving = false));
// Another tab has changed a conversation. What is being answered here is ours to keep.
addEventListener("storage", ({ key }) => {
  if ([...runs.keys()].some((id) => key?.endsWith(id))) return;
  const changed = readConversation(key);
  if (changed?.id === conversation.id) {
    conversation = changed;
    show();
  } else draw();
});
onKeyNeeded(keyDialog(part("key")));

loadConversations();
show();
composer.focus();
loadServer();
