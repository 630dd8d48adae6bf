// Markdown, drawn while it arrives. Blocks are found line by line; all but the last never change
// again, so that an update costs what the last block costs, however long the answer is.
//
// Headings, paragraphs (a line break is a line break), lists, quotes, fenced code, tables, rules.
// Everything is built from elements and text nodes: HTML in a text is text.

import { element, t } from "./common.js";
import { around, inlineNodes } from "./markdown_inline.js";

const MAX_DEPTH = 6; // of lists and quotes in each other; deeper is text
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^([ \t]*)([-*+]|(\d{1,9})[.)])[ \t]+/;
const TABLE_RULE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/** Blocks of a text's lines: {type, start: number of the first line, …} each. */
function parseBlocks(lines, depth = 0) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const [block, next] =
      readHeading(lines, at) ??
      readFence(lines, at) ??
      readRule(lines, at) ??
      (depth < MAX_DEPTH ? readQuote(lines, at, depth) : null) ??
      (depth < MAX_DEPTH ? readList(lines, at, depth) : null) ??
      readTable(lines, at) ??
      readParagraph(lines, at);
    blocks.push({ ...block, start: at });
    at = next;
  }
  return blocks;
}

function readHeading(lines, at) {
  const match = HEADING.exec(lines[at]);
  if (!match) return null;
  const text = lines[at].slice(match[0].length).trim().replace(/(?:^|[ \t])#+$/, "");
  return [{ type: "heading", level: match[1].length, text }, at + 1];
}

function readRule(lines, at) {
  return RULE.test(lines[at]) ? [{ type: "rule" }, at + 1] : null;
}

function readFence(lines, at) {
  const match = FENCE.exec(lines[at]);
  if (!match) return null;
  const [opening, fence, info] = match;
  const indent = indentOf(opening);
  const code = [];
  for (let next = at + 1; next < lines.length; next++) {
    const line = lines[next];
    const closing = FENCE.exec(line);
    if (closing?.[1].startsWith(fence) && !closing[2].trim()) {
      return [{ type: "code", language: info.trim(), text: code.join("\n") }, next + 1];
    }
    code.push(outdented(line, indent));
  }
  return [{ type: "code", language: info.trim(), text: code.join("\n") }, lines.length];
}

function readQuote(lines, at, depth) {
  if (!QUOTE.test(lines[at])) return null;
  const inside = [];
  while (at < lines.length && QUOTE.test(lines[at])) inside.push(lines[at++].replace(QUOTE, ""));
  return [{ type: "quote", blocks: parseBlocks(inside, depth + 1) }, at];
}

// A list ends where a line is neither an item of the same kind, nor indented, nor the rest of a
// paragraph. Two spaces are enough to belong to an item: models are not careful with indents.
function readList(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  if (!first) return null;
  const indent = indentOf(first[0]);
  const ordered = first[3] !== undefined;
  const items = [];
  for (let match = first; match; match = ITEM.exec(lines[at] ?? "")) {
    const sameKind = (match[3] !== undefined) === ordered;
    if (!sameKind || indentOf(match[0]) >= indent + 2 || RULE.test(lines[at])) break;
    const [inside, next] = linesOfItem(lines, at, match, indent);
    items.push(parseBlocks(inside, depth + 1));
    at = next;
    const after = nextWithText(lines, at);
    if (ITEM.test(lines[after] ?? "")) at = after;
  }
  return [{ type: "list", ordered, first: Number(first[3] ?? 1), items }, at];
}

function linesOfItem(lines, at, match, listIndent) {
  const inside = [lines[at].slice(match[0].length)];
  const contentIndent = indentOf(match[0]) + match[0].trimStart().length;
  for (at++; at < lines.length; at++) {
    const line = lines[at];
    const indent = indentOf(line);
    if (!line.trim()) {
      const after = nextWithText(lines, at);
      if (after === lines.length || indentOf(lines[after]) < listIndent + 2) break;
      inside.push("");
    } else if (indent >= listIndent + 2) {
      inside.push(outdented(line, contentIndent));
    } else if (startsBlock(line, true) || FENCE.test(inside.at(-1))) break;
    else inside.push(line.trimStart());
  }
  return [inside, at];
}

function nextWithText(lines, at) {
  while (at < lines.length && !lines[at].trim()) at++;
  return at;
}

function readTable(lines, at) {
  if (!startsTable(lines, at)) return null;
  const sides = cellsOf(lines[at + 1]).map((cell) => {
    const right = cell.endsWith(":");
    if (right) return cell.startsWith(":") ? "center" : "right";
    return "left";
  });
  const rows = [];
  const head = cellsOf(lines[at]);
  for (at += 2; at < lines.length && lines[at].includes("|") && lines[at].trim(); at++) {
    rows.push(cellsOf(lines[at]).slice(0, head.length));
  }
  return [{ type: "table", head, sides, rows }, at];
}

function startsTable(lines, at) {
  const rule = lines[at + 1];
  if (rule === undefined || !lines[at].includes("|") || !TABLE_RULE.test(rule)) return false;
  return cellsOf(lines[at]).length === cellsOf(rule).length;
}

/** The cells of a table's row: between its "|", but not at "\|". */
function cellsOf(line) {
  const cells = [""];
  for (const part of line.trim().replace(/^\|/, "").split("|")) {
    if (cells.at(-1).endsWith("\\")) cells.push(`${cells.pop().slice(0, -1)}|${part}`);
    else cells.push(part);
  }
  cells.shift();
  if (cells.length > 1 && !cells.at(-1).trim()) cells.pop();
  return cells.map((cell) => cell.trim());
}

function readParagraph(lines, at) {
  const text = [lines[at].trim()];
  for (at++; at < lines.length; at++) {
    if (!lines[at].trim() || startsBlock(lines[at]) || startsTable(lines, at)) break;
    text.push(lines[at].trim());
  }
  return [{ type: "paragraph", text: text.join("\n") }, at];
}

/** Whether a line ends the paragraph before it; a number other than 1 may be a sentence's end. */
function startsBlock(line, inList = false) {
  const item = ITEM.exec(line);
  if (item && (inList || item[3] === undefined || item[3] === "1")) return true;
  return HEADING.test(line) || FENCE.test(line) || QUOTE.test(line) || RULE.test(line);
}

/** Columns of white space at the start of a line; a tab counts for four. */
function indentOf(line) {
  let columns = 0;
  for (const char of line) {
    if (char !== " " && char !== "\t") break;
    columns += char === "\t" ? 4 : 1;
  }
  return columns;
}

/** A line without up to `columns` of white space at its start. */
function outdented(line, columns) {
  let at = 0;
  while (columns > 0 && (line[at] === " " || line[at] === "\t")) {
    columns -= line[at++] === "\t" ? 4 : 1;
  }
  return line.slice(at);
}

/** The element of a block. */
function blockElement(block) {
  switch (block.type) {
    case "heading":
      // the page has headings of its own above these
      return around(`h${Math.min(6, block.level + 2)}`, inlineNodes(block.text));
    case "rule":
      return element("hr");
    case "code":
      return codeElement(block);
    case "quote":
      return around("blockquote", block.blocks.map(blockElement));
    case "list": {
      const start = block.ordered && block.first !== 1 ? block.first : null;
      return around(block.ordered ? "ol" : "ul", block.items.map(itemElement), { start });
    }
    case "table":
      return tableElement(block);
    default:
      return around("p", inlineNodes(block.text));
  }
}

function itemElement(blocks) {
  const opening = blocks[0]?.type === "paragraph" ? inlineNodes(blocks[0].text) : [];
  const rest = opening.length ? blocks.slice(1) : blocks;
  return around("li", [...opening, ...rest.map(blockElement)]);
}

function tableElement({ head, sides, rows }) {
  const row = (cells, tag) =>
    around("tr", head.map((_, column) => cell(tag, cells[column] ?? "", sides[column])));
  const cell = (tag, text, side) => around(tag, inlineNodes(text), { class: side });
  const table = element(
    "table",
    {},
    element("thead", {}, row(head, "th")),
    around("tbody", rows.map((cells) => row(cells, "td"))),
  );
  return element("div", { class: "table" }, table);
}

function codeElement({ language, text }) {
  return element(
    "figure",
    { class: "code" },
    element(
      "figcaption",
      {},
      element("span", {}, language),
      element("button", { type: "button", class: "quiet", "data-copy": "code" }, t("Copy", "复制")),
    ),
    element("pre", {}, element("code", {}, text)),
  );
}

/** A text that grows, drawn as Markdown into `root`. */
export class MarkdownView {
  constructor(root = element("div", { class: "markdown" })) {
    this.root = root;
    this.text = "";
    this.settled = 0; // characters whose blocks never change again
    this.live = []; // what is drawn of the rest: {block, node}
  }

  /** Draw `text`; quick where it is the text drawn before and more. */
  update(text) {
    if (text === this.text && this.live.length) return;
    if (!text.startsWith(this.text)) this.#clear();
    this.text = text;
    const lines = text.slice(this.settled).split("\n");
    const blocks = parseBlocks(lines);
    this.#draw(blocks);
    this.#settle(blocks, lines);
  }

  #clear() {
    this.root.replaceChildren();
    this.settled = 0;
    this.live = [];
  }

  #draw(blocks) {
    const drawn = blocks.map((block, index) => {
      const before = this.live[index];
      return { block, node: (before && grown(before, block)) || blockElement(block) };
    });
    let place = this.live[0]?.node ?? null;
    for (const { node } of drawn) {
      if (node === place) place = place.nextSibling;
      else this.root.insertBefore(node, place);
    }
    while (place) {
      const { nextSibling } = place;
      place.remove();
      place = nextSibling;
    }
    this.live = drawn;
  }

  // A block is settled when the line that begins the next one is whole: "1" may become "1. …".
  #settle(blocks, lines) {
    let count = 0;
    while (count + 1 < blocks.length && blocks[count + 1].start < lines.length - 1) count++;
    if (!count) return;
    for (const line of lines.slice(0, blocks[count].start)) this.settled += line.length + 1;
    this.live = this.live.slice(count);
  }
}

/** The node drawn before, where the block is the same or code with more text; else null. */
function grown({ block: before, node }, block) {
  if (before.type !== block.type) return null;
  if (block.type !== "code") return same(before, block) ? node : null;
  if (before.language !== block.language) return null;
  const code = node.querySelector("code");
  if (block.text.startsWith(before.text)) code.append(block.text.slice(before.text.length));
  else code.textContent = block.text;
  return node;
}

function same(before, block) {
  return block.text !== undefined && block.text === before.text && block.level === before.level;
}
