// The conversations that this browser keeps, each under a name of its own, so that two tabs do not
// overwrite each other's.
//
// A conversation: {id, title, renamed, created, updated, settings, messages}. A message:
//
//     {role: "user", content}
//     {role: "assistant", content, reasoning_content, tool_calls, model, continues, finish, error,
//      usage, seconds, seconds_to_first}
//         continues: what a base model wrote, which goes on where the text before it ends
//         finish: as the server says it, or "stopped", "error"; null while it arrives, and where
//         the page was left before its end
//     {role: "tool", tool_call_id, name, content, failed}
//
// Where a message was edited or an answer asked for again, the first new message has
// `versions`: {tails, at}: what stood there before, and the place of what stands there now.

const PREFIX = "minimind.conversation.";
const TITLE_LENGTH = 48;

const all = new Map();

/** Read what this browser has kept. */
export function loadConversations() {
  all.clear();
  for (const name of storedNames()) readConversation(name);
}

/** Read one of them again (another tab has written it); what is no conversation is left alone. */
export function readConversation(name) {
  if (!name?.startsWith(PREFIX)) return null;
  const id = name.slice(PREFIX.length);
  let read = null;
  try {
    read = JSON.parse(localStorage.getItem(name));
  } catch {
    // not ours to delete
  }
  if (!Array.isArray(read?.messages)) {
    all.delete(id);
    return null;
  }
  const conversation = { title: "", settings: {}, updated: 0, ...read, id };
  all.set(id, conversation);
  return conversation;
}

function storedNames() {
  try {
    return Object.keys(localStorage).filter((name) => name.startsWith(PREFIX));
  } catch {
    return [];
  }
}

/** All conversations, the newest first. */
export function conversations() {
  return [...all.values()].sort((one, other) => other.updated - one.updated);
}

/** The conversation of an id, or undefined. */
export function conversationOf(id) {
  return all.get(id);
}

/** A new one, which is kept when it is saved first. */
export function newConversation(settings) {
  // no randomUUID: it is missing where the page comes by plain HTTP from another machine
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
  const now = Date.now();
  return { id, title: "", renamed: false, created: now, updated: now, settings, messages: [] };
}

/** Keep it in this browser; false where the browser has no room for it. */
export function saveConversation(conversation) {
  all.set(conversation.id, conversation);
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    return true;
  } catch {
    return false;
  }
}

/** Forget it. */
export function deleteConversation(id) {
  all.delete(id);
  try {
    localStorage.removeItem(PREFIX + id);
  } catch {
    // nothing was kept
  }
}

/** Add what the user says; the first of it is the title, unless there is one. */
export function addUserMessage(conversation, content, versions) {
  conversation.messages.push({ role: "user", content, ...(versions && { versions }) });
  conversation.updated = Date.now();
  if (conversation.renamed) return;
  const first = conversation.messages.find((message) => message.role === "user").content;
  const line = first.trim().replace(/\s+/g, " ");
  const cut = [...line].slice(0, TITLE_LENGTH).join("");
  conversation.title = cut.length < line.length ? `${cut}…` : cut;
}

/** What the tools answered to the calls of an assistant's message. */
export function toolResults(conversation, message) {
  const results = [];
  const first = conversation.messages.indexOf(message) + 1;
  for (let at = first; conversation.messages[at]?.role === "tool"; at++) {
    results.push(conversation.messages[at]);
  }
  return results;
}

/** Where the turn of an answer begins: behind the user's last words. */
export function startOfTurn({ messages }, answer) {
  let start = messages.indexOf(answer);
  if (answer.continues) return start;
  while (start > 0 && messages[start - 1].role !== "user") start--;
  return start;
}

/** Take away what stands from `index` on and keep it as a version; for the new message there. */
export function cutVersion(conversation, index) {
  const tail = conversation.messages.splice(index);
  if (!tail.length) return null;
  const versions = tail[0].versions ?? { tails: [null], at: 0 };
  delete tail[0].versions;
  versions.tails[versions.at] = tail;
  versions.at = versions.tails.length;
  versions.tails.push(null);
  return versions;
}

/** Show another version of what stands from `index` on. */
export function showVersion(conversation, index, at) {
  const tail = conversation.messages.splice(index);
  const { versions } = tail[0];
  delete tail[0].versions;
  versions.tails[versions.at] = tail;
  const shown = versions.tails[at];
  versions.tails[at] = null;
  versions.at = at;
  shown[0].versions = versions;
  conversation.messages.push(...shown);
}

/** The messages as OpenAI's API and our training data have them: without what the page adds. */
export function plainMessages({ settings, messages }) {
  const system = settings.system?.trim();
  const plain = system ? [{ role: "system", content: settings.system }] : [];
  for (const [index, message] of messages.entries()) {
    if (message.role === "tool") continue; // comes with its call
    if (message.role === "user") plain.push({ role: "user", content: message.content });
    else plain.push(...plainAnswer(messages, index));
  }
  return plain;
}

// An answer that failed before it said anything is left out; a call that was never run is said to
// be so, since a call without an answer is no valid conversation.
function plainAnswer(messages, index) {
  const { content, reasoning_content: reasoning, tool_calls: calls } = messages[index];
  if (!content && !reasoning && !calls?.length) return [];
  const answer = { role: "assistant", content };
  if (reasoning) answer.reasoning_content = reasoning;
  if (!calls?.length) return [answer];
  answer.tool_calls = calls;
  const results = [];
  for (let at = index + 1; messages[at]?.role === "tool"; at++) results.push(messages[at]);
  const answers = calls.map(({ id }) => ({
    role: "tool",
    tool_call_id: id,
    content: results.find((result) => result.tool_call_id === id)?.content ?? "(not run)",
  }));
  return [answer, ...answers];
}

/** A conversation as a JSON list of one record, which train_full_sft.py can learn from, too. */
export function exported(conversation) {
  const { title, created, updated, settings } = conversation;
  const record = { title, created, updated, settings, messages: plainMessages(conversation) };
  return JSON.stringify([record], null, 2);
}
