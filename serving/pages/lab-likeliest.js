// What the model held for likeliest before a token, and what came.

import { element, t } from "./common.js";
import { percent, rounded } from "./lab-look.js";
import { chip } from "./lab-pieces.js";

/** A list of tokens with bars: rows [{piece, p, rank?, isReal?}]. */
export function bars(rows) {
  const most = Math.max(...rows.map(({ p }) => p ?? 0), 1e-9);
  const items = rows.map(({ piece, p, rank, isReal }) => {
    const bar = element("span", { class: "fill" });
    bar.style.width = `${(100 * (p ?? 0)) / most}%`;
    return element(
      "li",
      { class: isReal ? "real" : null },
      element("span", { class: "rank" }, rank ? `${rank}` : ""),
      chip(piece),
      element("span", { class: "track", "aria-hidden": "true" }, bar),
      element("span", { class: "value" }, percent(p)),
    );
  });
  return element("ol", { class: "bars" }, ...items);
}

export class LikeliestView {
  constructor() {
    this.root = element("div", { class: "view surprise" });
  }

  show(look) {
    this.look = look;
  }

  choose(place) {
    this.root.replaceChildren(...heading(this.look, place), ...foretold(this.look, place));
  }

  hover(place) {
    this.choose(place);
  }
}

function heading(look, place) {
  const piece = look.pieceAt(place);
  if (piece === null) {
    return [element("h2", {}, t("What would come next", "接下来会是什么"))];
  }
  const found = [element("h2", {}, chip(piece), " ", facts(look, place))];
  const whole = look.characters(place);
  if (whole !== undefined) {
    const text = t(
      "Bytes of a character that several tokens make together: ",
      "几个词元合成一个字符，这是其中的字节：",
    );
    found.push(element("p", { class: "muted" }, text, chip({ text: whole })));
  }
  return found;
}

function facts(look, place) {
  const nats = look.surprise(place);
  const number = `#${look.tokens[place]}`;
  if (place === 0) return element("span", { class: "muted" }, number);
  const rank = look.rank(place);
  const text = t(
    `${rounded(nats)} nats · ${percent(Math.exp(-nats))} · rank ${rank} · ${number}`,
    `${rounded(nats)} 奈特 · ${percent(Math.exp(-nats))} · 第 ${rank} 位 · ${number}`,
  );
  return element("span", { class: "muted" }, nats === null ? number : text);
}

function foretold(look, place) {
  if (place === 0) {
    const text = t(
      "The first token: nothing stands before it that could foretell it.",
      "第一个词元：它前面没有可以用来预测的内容。",
    );
    return [element("p", { class: "muted" }, text)];
  }
  const real = look.tokens[place];
  const rows = look.likeliest(place).map(({ id, p }, i) => ({
    piece: look.piece(id),
    p,
    rank: i + 1,
    isReal: id === real,
  }));
  const nats = look.surprise(place);
  if (nats !== null && !rows.some(({ isReal }) => isReal)) {
    rows.push({
      piece: look.piece(real),
      p: Math.exp(-nats),
      rank: look.rank(place),
      isReal: true,
    });
  }
  const text =
    place < look.length
      ? t("Likeliest before it came:", "它出现之前最可能的词元：")
      : t("Likeliest now:", "此刻最可能的词元：");
  return [element("p", { class: "muted" }, text), bars(rows)];
}
