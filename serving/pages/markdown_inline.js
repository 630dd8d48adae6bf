// Markdown inside a line: emphasis, code, links. Text in, DOM nodes out; HTML in the text is text.
//
// One pass. `nodes` is a flat list of what stands so far; `openers` remembers where in it a marker
// stands that may still be closed. When it is, what came after becomes its child; when it never
// is, the marker is already there as the text it was. Openers are few (MAX_OPEN), which bounds how
// deep the page nests, whatever a model repeats.

import { element } from "./common.js";

const MAX_OPEN = 16;
const SPECIAL = new RegExp(
  [
    /\\(?<escaped>[!-/:-@[-`{-~])/,
    /(?<ticks>`+)/,
    /(?<marker>\*+|_+|~~)/,
    /(?<open>!?\[)/,
    /(?<close>\])/,
    /<(?<auto>(?:https?:\/\/|mailto:)[^\s<>]+)>/,
    /(?<url>https?:\/\/[!#-;=?-_a-~]+)/, // printable ASCII: Chinese goes on without a space
    /(?<newline>\n)/,
  ]
    .map((part) => part.source)
    .join("|"),
  "g",
);
const ADDRESS = /[ \n]*<?([^\s<>()]*(?:\([^\s()]*\)[^\s<>()]*)*)>?/;
const TITLE = /(?:[ \n]+(?:"[^"]*"|'[^']*'))?[ \n]*/;
const DESTINATION = new RegExp(`\\(${ADDRESS.source}${TITLE.source}\\)`, "y");
const SAFE = ["http:", "https:", "mailto:"];
const WORD = /[\p{L}\p{N}]/u;
const IN_ADDRESS = /[a-z0-9:]/i; // before a "https:" that is part of another address

/** The address if a click on it may be allowed (absolute http, https or mailto), else null. */
function safeAddress(address) {
  try {
    const url = new URL(address);
    return SAFE.includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/** An element around nodes and texts, of which there may be more than a call has room for. */
export function around(tag, nodes, attributes = {}) {
  const made = element(tag, attributes);
  for (const node of nodes) made.append(node);
  return made;
}

/** The DOM nodes of a text with inline Markdown. */
export function inlineNodes(text) {
  const nodes = [];
  const openers = [];
  const closingTicks = ticksByLength(text);
  let at = 0;
  SPECIAL.lastIndex = 0;
  for (let match; (match = SPECIAL.exec(text)); SPECIAL.lastIndex = at) {
    if (match.index > at) nodes.push(text.slice(at, match.index));
    at = match.index + match[0].length;
    const { escaped, ticks, marker, open, close, auto, url, newline } = match.groups;
    if (newline) nodes.push(element("br"));
    else if (escaped) nodes.push(escaped);
    else if (ticks) at = readCode(text, at, ticks, closingTicks, nodes);
    else if (marker) readMarker(text, match.index, marker, nodes, openers);
    else if (open) pushOpener(nodes, openers, { marker: "[", index: nodes.length }, open);
    else if (close) at = readLink(text, at, nodes, openers);
    else if (auto) nodes.push(link(auto, [auto.replace(/^mailto:/, "")]) ?? match[0]);
    else if (url) {
      const address = withoutEnd(url);
      at = match.index + address.length;
      const linked = openers.some((opener) => opener.marker === "[");
      const isPart = IN_ADDRESS.test(text[match.index - 1] ?? "");
      nodes.push((!linked && !isPart && link(address, [address])) || address);
    }
  }
  nodes.push(text.slice(at));
  return nodes;
}

function link(address, children) {
  const href = safeAddress(address);
  if (href === null) return null;
  return around("a", children, { href, target: "_blank", rel: "noopener noreferrer" });
}

function pushOpener(nodes, openers, opener, text) {
  if (openers.length < MAX_OPEN) openers.push(opener);
  nodes.push(text);
}

/** Where runs of n backticks stand, by n, last first: each is looked at once. */
function ticksByLength(text) {
  const places = new Map();
  for (const run of text.matchAll(/`+/g)) {
    const length = run[0].length;
    if (!places.has(length)) places.set(length, []);
    places.get(length).push(run.index);
  }
  for (const list of places.values()) list.reverse();
  return places;
}

function readCode(text, at, ticks, closingTicks, nodes) {
  const places = closingTicks.get(ticks.length) ?? [];
  while (places.length && places.at(-1) < at) places.pop();
  if (!places.length) {
    nodes.push(ticks);
    return at;
  }
  const end = places.pop();
  let code = text.slice(at, end).replaceAll("\n", " ");
  if (/^ .*[^ ].* $/.test(code)) code = code.slice(1, -1);
  nodes.push(element("code", {}, code));
  return end + ticks.length;
}

// Emphasis: "*" and "_" once, twice or three times, "~~" for what is struck out. Unlike
// CommonMark, punctuation does not matter, only space: "**重点：**后面" is meant as it looks.
function readMarker(text, index, marker, nodes, openers) {
  const char = marker[0];
  const before = text[index - 1] ?? " ";
  const after = text[index + marker.length] ?? " ";
  const inWord = char === "_" && WORD.test(before) && WORD.test(after);
  if (marker.length > 3 || inWord) {
    nodes.push(marker);
    return;
  }
  let left = marker.length;
  if (before.trim()) left = closeMarkers(char, left, nodes, openers);
  if (left === 0) return;
  const rest = char.repeat(left);
  if (after.trim()) pushOpener(nodes, openers, { marker: char, left, index: nodes.length }, rest);
  else nodes.push(rest);
}

/** Close what `left` marks can close; how many of them are left. */
function closeMarkers(char, left, nodes, openers) {
  while (left > 0) {
    const place = openers.findLastIndex(
      (opener) =>
        opener.marker === char && (opener.left === left || opener.left === 3 || left === 3),
    );
    if (place < 0) return left;
    const opener = openers[place];
    if (opener.index === nodes.length - 1) return left; // nothing stands between
    const used = Math.min(2, opener.left, left);
    const tag = char === "~" ? "del" : used === 2 ? "strong" : "em";
    const made = around(tag, nodes.splice(opener.index + 1));
    left -= used;
    opener.left -= used;
    openers.length = place;
    if (opener.left) {
      nodes[opener.index] = char.repeat(opener.left);
      nodes.push(made);
      openers.push(opener);
    } else nodes[opener.index] = made;
  }
  return left;
}

// After a "]": a link if "(address)" follows and may be clicked, else the text as it stands. An
// image becomes a link, too: the page shows nothing that comes from elsewhere.
function readLink(text, at, nodes, openers) {
  const place = openers.findLastIndex((opener) => opener.marker === "[");
  DESTINATION.lastIndex = at;
  const destination = place >= 0 ? DESTINATION.exec(text) : null;
  const href = destination && safeAddress(destination[1]);
  if (!href) {
    if (place >= 0) openers.splice(place, 1);
    nodes.push("]");
    return at;
  }
  const { index } = openers[place];
  const children = nodes.splice(index + 1);
  nodes[index] = link(href, children.length ? children : [destination[1]]);
  openers.length = place;
  // no links in links
  for (let other = place - 1; other >= 0; other--) {
    if (openers[other].marker === "[") openers.splice(other, 1);
  }
  return DESTINATION.lastIndex;
}

/** An address in a text without the punctuation that ends the sentence. */
function withoutEnd(url) {
  let end = url.length;
  const parentheses = url.includes("(");
  while (end && (".,;:!?'*_~]}".includes(url[end - 1]) || (url[end - 1] === ")" && !parentheses))) {
    end--;
  }
  return url.slice(0, end);
}
