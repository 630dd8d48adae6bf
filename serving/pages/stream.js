// Asking the server: with its key where it wants one, and answers that arrive piece by piece.

import { t } from "./common.js";

const KEY = "minimind.api_key";
let key = readKey(); // kept while the tab is open, and no longer
let asking = null; // the question for the key that is on the page, if one is
let askForKey = async () => null;

/** What the server refuses, or that it does not answer: `message` is for people. */
export class ServerError extends Error {
  constructor(message, status = null) {
    super(message);
    this.status = status;
  }
}

/** `ask(refused)` → a promise of the key, or of null: how the page asks for it. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** A response of the server, to a POST where there is a body; ServerError where there is none. */
export async function request(path, { body = null, signal = null } = {}) {
  for (;;) {
    const usedKey = key;
    const headers = {};
    if (body) headers["Content-Type"] = "application/json";
    if (usedKey) headers.Authorization = `Bearer ${usedKey}`;
    let response;
    try {
      response = await fetch(path, {
        method: body ? "POST" : "GET",
        headers,
        body: body && JSON.stringify(body),
        signal,
      });
    } catch (error) {
      throw signal?.aborted ? error : gone();
    }
    if (response.ok) return response;
    if (response.status !== 401 || !(await newKey(usedKey))) throw await refusal(response);
  }
}

/** Whether there is another key than the one that was refused: one question for all who ask. */
async function newKey(refused) {
  if (key !== refused) return true;
  asking ??= askForKey(refused !== null);
  const given = await asking;
  asking = null;
  if (!given) return false;
  key = given;
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // it is known until the page is left
  }
  return true;
}

function readKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

function gone() {
  return new ServerError(
    t("The server does not answer. Is it running?", "服务器没有回应。它在运行吗？"),
  );
}

async function refusal(response) {
  let message = null;
  try {
    message = messageOf(await response.json());
  } catch {
    // no JSON: the status has to do
  }
  message ??= t("The server refused", "服务器拒绝了请求");
  return new ServerError(`${message} (${response.status})`, response.status);
}

/** The message of an error object, or null. */
function messageOf(body) {
  const error = body?.error;
  return (typeof error === "string" ? error : error?.message) ?? null;
}

/** JSON from the server. */
export async function requestJSON(path, options) {
  const response = await request(path, options);
  try {
    return await response.json();
  } catch (error) {
    throw options?.signal?.aborted ? error : notUnderstood();
  }
}

/** The chunks of a streamed answer, up to its [DONE]; ServerError where it breaks off. */
export async function* requestChunks(path, options) {
  const response = await request(path, options);
  try {
    for await (const data of serverSentEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = parsed(data);
      if (chunk.error) throw new ServerError(messageOf(chunk) ?? data);
      yield chunk;
    }
  } catch (error) {
    throw error instanceof ServerError || options?.signal?.aborted ? error : cutOff();
  }
  throw cutOff();
}

function cutOff() {
  return new ServerError(
    t("The connection ended before the answer did.", "连接在回答完成之前中断了。"),
  );
}

function notUnderstood() {
  return new ServerError(
    t("The server sent what this page does not understand.", "服务器发来了本页面无法理解的内容。"),
  );
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw notUnderstood();
  }
}

/** The data of server-sent events in a stream of bytes: characters may be cut anywhere. */
async function* serverSentEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (!line && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
