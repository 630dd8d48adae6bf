// The logit lens: what each layer would say if it were the last one, token by token.

import { element, t } from "./common.js";
import { legend } from "./lab-colours.js";
import { bars } from "./lab-likeliest.js";
import { percent } from "./lab-look.js";
import { chip, shortLabel, showPiece } from "./lab-pieces.js";

const COLUMNS = 40; // tokens that are shown together: a table of thousands of cells would be slow

export class LensView {
  constructor({ onchoose, onhover }) {
    this.onchoose = onchoose;
    this.onhover = onhover;
    this.layer = 0;
    this.by = element(
      "select",
      { onchange: () => this.#draw() },
      element("option", {}, t("of the layer's likeliest token", "该层最可能词元的概率")),
      element("option", {}, t("of the token that came", "实际出现词元的概率")),
    );
    this.earlier = this.#pager("‹", t("Earlier tokens", "前面的词元"), -COLUMNS);
    this.later = this.#pager("›", t("Later tokens", "后面的词元"), COLUMNS);
    this.frame = element("div", {
      class: "lens-frame",
      tabindex: "0",
      role: "group",
      "aria-label": t(
        "Layers and tokens. Arrow keys move from cell to cell.",
        "层与词元。方向键在单元格之间移动。",
      ),
      onkeydown: (event) => this.#onKey(event),
    });
    this.frame.addEventListener("mouseover", (event) => this.#onPointer(event, false));
    this.frame.addEventListener("mouseleave", () => this.#leave());
    this.frame.addEventListener("click", (event) => this.#onPointer(event, true));
    this.said = element("div", { class: "said", "aria-live": "polite" });
    this.root = element(
      "div",
      { class: "view lens" },
      element(
        "div",
        { class: "choices" },
        element("label", {}, element("span", {}, t("Colour: probability", "颜色：概率")), this.by),
        element("span", { class: "pager" }, this.earlier, this.later),
      ),
      this.frame,
      legend("probability", t("probability", "概率"), " · ", mark(), " ", t("right", "猜对")),
      this.said,
    );
  }

  #pager(text, name, step) {
    const turn = () => {
      this.first = Math.max(1, Math.min(this.first + step, this.look.length - 1));
      this.#draw();
    };
    return element("button", { onclick: turn, "aria-label": name, title: name }, text);
  }

  show(look) {
    this.look = look;
    this.layer = look.layers;
    this.first = 1;
    this.table = null;
  }

  choose(place) {
    this.place = Math.max(1, place);
    if (this.place < this.first || this.place >= this.first + COLUMNS) {
      this.first = Math.max(1, Math.min(this.place - 8, this.look.length + 1 - COLUMNS));
      this.table = null;
    }
    if (this.table) this.#mark();
    else this.#draw();
    this.#tell(this.layer, this.place);
  }

  #draw() {
    const { look } = this;
    if (!look?.answer.lens) return;
    const end = Math.min(this.first + COLUMNS, look.length + 1);
    const places = Array.from({ length: end - this.first }, (_, i) => this.first + i);
    const head = places.map((place) =>
      showPiece(element("th", { scope: "col", "data-place": place }), look.pieceAt(place)),
    );
    const corner = element("th", { class: "corner" }, t("came →", "实际 →"));
    const rows = look.answer.lens.map((_, layer) => this.#row(layer, places));
    this.table = element(
      "table",
      {},
      element("thead", {}, element("tr", {}, corner, ...head)),
      element("tbody", { class: "ramp-probability" }, ...rows),
    );
    this.frame.replaceChildren(this.table);
    this.earlier.disabled = this.first <= 1;
    this.later.disabled = end > look.length;
    this.#mark();
  }

  #row(layer, places) {
    const cells = places.map((place) => {
      const [best] = this.look.likeliest(place, layer);
      const cell = element("td", { "data-place": place, "data-layer": layer });
      showPiece(cell, this.look.piece(best.id));
      const isRight = place < this.look.length && best.id === this.look.tokens[place];
      if (isRight) cell.append(mark());
      const p = this.by.selectedIndex ? this.look.probabilityInLens(layer, place) : best.p;
      cell.style.setProperty("--share", p ?? 0);
      return cell;
    });
    return element("tr", {}, element("th", { scope: "row" }, this.#name(layer)), ...cells);
  }

  #name(layer) {
    if (layer === 0) return t("embedding", "嵌入");
    if (layer === this.look.layers) return t(`layer ${layer} = the model`, `第 ${layer} 层 = 模型`);
    return t(`layer ${layer}`, `第 ${layer} 层`);
  }

  #mark() {
    for (const cell of this.table.querySelectorAll(".chosen, .cursor")) {
      cell.classList.remove("chosen", "cursor");
    }
    for (const cell of this.table.querySelectorAll(`[data-place="${this.place}"]`)) {
      cell.classList.add("chosen");
    }
    const cursor = this.#cell(this.layer, this.place);
    cursor?.classList.add("cursor");
    if (cursor && this.frame.clientWidth) this.#scrollTo(cursor);
  }

  /** Sideways only: the page itself stays where it is. */
  #scrollTo(cell) {
    const { frame } = this;
    const fixed = this.table.querySelector("th").offsetWidth;
    const isSeen =
      cell.offsetLeft - fixed >= frame.scrollLeft &&
      cell.offsetLeft + cell.offsetWidth <= frame.scrollLeft + frame.clientWidth;
    if (!isSeen) frame.scrollLeft = cell.offsetLeft - (fixed + frame.clientWidth) / 2;
  }

  #cell(layer, place) {
    return this.table.querySelector(`td[data-place="${place}"][data-layer="${layer}"]`);
  }

  #tell(layer, place) {
    const { look } = this;
    const rows = look.likeliest(place, layer).map(({ id, p }, i) => ({
      piece: look.piece(id),
      p,
      rank: i + 1,
      isReal: id === look.tokens[place],
    }));
    const text = element("p", {}, this.#name(layer), t(", before ", "，在 "));
    text.append(chip(look.pieceAt(place)), t(" came:", " 出现之前："));
    if (place < look.length) {
      const p = percent(look.probabilityInLens(layer, place));
      text.append(t(` ${p} for it`, `它的概率 ${p}`));
    }
    this.said.replaceChildren(text, bars(rows));
  }

  #onPointer(event, isClick) {
    const cell = event.target.closest("[data-place]");
    if (!cell) return;
    const place = Number(cell.dataset.place);
    const layer = Number(cell.dataset.layer ?? this.look.layers);
    if (isClick) {
      this.layer = layer;
      this.onchoose(place);
    } else {
      this.#tell(layer, place);
      this.onhover(place);
    }
  }

  #leave() {
    this.#tell(this.layer, this.place);
    this.onhover(null);
  }

  #onKey(event) {
    const { key } = event;
    if (key === "ArrowLeft" || key === "ArrowRight") {
      const place = this.place + (key === "ArrowLeft" ? -1 : 1);
      this.onchoose(Math.max(1, Math.min(this.look.length, place)));
    } else if (key === "ArrowUp" || key === "ArrowDown") {
      const layer = this.layer + (key === "ArrowUp" ? -1 : 1);
      this.layer = Math.max(0, Math.min(this.look.layers, layer));
      this.choose(this.place);
    } else {
      return;
    }
    event.preventDefault();
  }
}

function mark() {
  return element("span", { class: "right", title: t("what came", "实际出现") }, "✓");
}
