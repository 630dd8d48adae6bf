// Tokens as a person can read them: white space and half characters are shown, not hidden.

import { element, t } from "./common.js";

const MARKS = { " ": "·", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽", "\u3000": "□" };

// Invisible, or turning the direction of what stands around them.
const UNSEEN = new RegExp(
  "[\\u0000-\\u001f\\u007f-\\u00a0\\u00ad\\u061c\\u200b-\\u200f\\u2028-\\u202f" +
    "\\u2060-\\u206f\\ufe0e\\ufeff]",
);

function mark(character) {
  if (character in MARKS) return MARKS[character];
  if (!UNSEEN.test(character)) return null;
  return `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

/** [text, is a mark] parts of what a piece looks like. */
function parts(piece) {
  if (piece === null) return [["…", true]];
  if (piece.bytes) return [[`⟨${piece.bytes}⟩`, false]];
  if (piece.text === "") return [["∅", true]];
  const found = [];
  for (const character of piece.text) {
    const shown = mark(character);
    const last = found.at(-1);
    if (shown === null && last && !last[1]) last[0] += character;
    else found.push([shown ?? character, shown !== null]);
  }
  return found;
}

/** A piece as one text, marks and all. */
export function label(piece) {
  return parts(piece)
    .map(([text]) => text)
    .join("");
}

/** `label`, cut after some characters. */
export function shortLabel(piece, most = 12) {
  const characters = [...label(piece)];
  return characters.length > most ? `${characters.slice(0, most - 1).join("")}…` : label(piece);
}

/** A piece for the ear: what a screen reader says. */
export function spoken(piece) {
  if (piece === null) return t("what would come next", "接下来会是什么");
  if (piece.bytes) return t(`bytes ${piece.bytes}`, `字节 ${piece.bytes}`);
  return label(piece);
}

/** Fill an element with a piece, marks paler than text; it gets a class of its kind. */
export function showPiece(target, piece) {
  target.replaceChildren(
    ...parts(piece).map(([text, isMark]) =>
      isMark ? element("span", { class: "mark" }, text) : text,
    ),
  );
  target.classList.toggle("control", Boolean(piece?.control));
  target.classList.toggle("bytes", Boolean(piece?.bytes));
  target.classList.toggle("coming", piece === null);
  return target;
}

/** A piece as a chip. */
export function chip(piece) {
  return showPiece(element("span", { class: "chip" }), piece);
}
