// One answer: ask the model, and while it calls tools, run them on the server and ask again.

import { t } from "./common.js";
import { plainMessages } from "./conversations.js";
import { ServerError, requestChunks, requestJSON } from "./stream.js";

const MAX_ROUNDS = 8; // of asking, in one answer that calls tools
const BASE_MAX_TOKENS = 256; // of a base model, which knows no end: OpenAI's default is 16

/** The settings that are sent as they are; what is not set is the server's to choose. */
const SENT = [
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "repetition_penalty",
  "max_tokens",
  "seed",
];

/**
 * Let the model answer, and put what arrives into `conversation.messages`.
 *
 * model     an entry of /v1/models
 * tools     descriptions of the functions it may call, none where they are switched off
 * versions  of what the answer replaces, for its first message
 * signal    ends it; what has arrived stays
 * changed   is called with the assistant's message whenever there is more of it
 *
 * An answer that fails says so in its `finish` and `error`; nothing is thrown for it.
 */
export async function answer({ conversation, model, tools, versions, signal, changed }) {
  for (let round = 1; ; round++) {
    const body = requestBody(conversation, model, tools);
    const message = newAnswer(model);
    if (round === 1 && versions) message.versions = versions;
    conversation.messages.push(message);
    changed(message);
    try {
      await receive(message, model, body, signal, changed);
      if (message.finish !== "tool_calls" || !tools.length) return;
      await runTools(conversation, message, tools, signal, changed);
    } catch (error) {
      breakOff(message, error, signal);
      return;
    } finally {
      changed(message);
    }
    if (round === MAX_ROUNDS) {
      message.error = t(
        `Stopped after ${MAX_ROUNDS} rounds of tool calls.`,
        `调用工具 ${MAX_ROUNDS} 轮后停止。`,
      );
      changed(message);
      return;
    }
  }
}

function newAnswer(model) {
  return {
    role: "assistant",
    content: "",
    reasoning_content: "",
    tool_calls: [],
    model: model.id,
    continues: isBase(model),
    finish: null,
  };
}

function breakOff(message, error, signal) {
  if (signal.aborted) {
    message.finish = "stopped";
    return;
  }
  message.finish = "error";
  message.error = error.message;
  if (!(error instanceof ServerError)) throw error; // a mistake of ours
}

/** What is asked: a chat model is asked to answer, a base model to go on with the text. */
function requestBody(conversation, model, tools = []) {
  const { settings } = conversation;
  const body = { model: model.id, stream: true, stream_options: { include_usage: true } };
  for (const name of SENT) if (settings[name] !== undefined) body[name] = settings[name];
  if (isBase(model)) {
    body.max_tokens ??= BASE_MAX_TOKENS;
    return { ...body, prompt: textSoFar(conversation) };
  }
  if (tools.length) body.tools = tools;
  const canThink = model.minimind?.can_think;
  if (canThink || (canThink === undefined && settings.think)) {
    body.chat_template_kwargs = { enable_thinking: Boolean(settings.think) };
  }
  return { ...body, messages: plainMessages(conversation) };
}

export function isBase(model) {
  return model?.minimind?.kind === "base";
}

function textSoFar({ messages }) {
  return messages.map(({ content }) => content).join("");
}

/** Receive an answer into `message`, with what it took. */
async function receive(message, model, body, signal, changed) {
  const path = isBase(model) ? "/v1/completions" : "/v1/chat/completions";
  const start = performance.now();
  let first = null;
  for await (const chunk of requestChunks(path, { body, signal })) {
    if (chunk.usage) message.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (choice && addChoice(message, choice)) first ??= performance.now();
    changed(message);
  }
  const end = performance.now();
  message.seconds = (end - start) / 1000;
  message.seconds_to_first = ((first ?? end) - start) / 1000;
  message.finish ??= "stop";
}

/** Add what a chunk brings; whether it brought any text. */
function addChoice(message, { delta, text, finish_reason: finish }) {
  if (finish) message.finish = finish;
  message.content += delta?.content ?? text ?? "";
  message.reasoning_content += delta?.reasoning_content ?? "";
  for (const piece of delta?.tool_calls ?? []) addCall(message.tool_calls, piece);
  return Boolean(delta?.content || text || delta?.reasoning_content || delta?.tool_calls?.length);
}

function addCall(calls, piece) {
  const at = piece.index ?? calls.length;
  while (calls.length <= at) {
    calls.push({ id: "", type: "function", function: { name: "", arguments: "" } });
  }
  const call = calls[at];
  if (piece.id) call.id = piece.id;
  call.function.name += piece.function?.name ?? "";
  call.function.arguments += piece.function?.arguments ?? "";
}

async function runTools(conversation, message, tools, signal, changed) {
  for (const call of message.tool_calls) {
    const result = await runTool(call.function, tools, signal);
    const { name } = call.function;
    conversation.messages.push({ role: "tool", tool_call_id: call.id, name, ...result });
    changed(message);
  }
}

/** {content, failed} of a call: what went wrong is told to the model, too. */
async function runTool({ name, arguments: text }, tools, signal) {
  const failed = (content) => ({ content, failed: true });
  if (!tools.some((tool) => tool.function.name === name)) return failed(`no such tool: ${name}`);
  let given;
  try {
    given = JSON.parse(text || "{}");
  } catch {
    return failed(`the arguments are not JSON: ${text}`);
  }
  try {
    const path = `/tools/${encodeURIComponent(name)}`;
    const { result } = await requestJSON(path, { body: { arguments: given }, signal });
    return { content: String(result), failed: false };
  } catch (error) {
    if (signal.aborted) throw error;
    return failed(error.message);
  }
}

/** Tokens per second once they came, or null where it cannot be known. */
export function tokensPerSecond({ usage, seconds, seconds_to_first: toFirst }) {
  const tokens = usage?.completion_tokens;
  if (!tokens || !seconds) return null;
  const writing = seconds - toFirst;
  // all of it at once says nothing of how fast it was written
  return tokens > 1 && writing > 0.02 ? (tokens - 1) / writing : tokens / seconds;
}
