// Attention of one layer and head as a picture: a row for each token that looks, a column for each
// that is looked at.

import { element, t } from "./common.js";
import {
  heatColours,
  legend,
  prepared,
  redrawn,
  shareOfWeight,
  themeColour,
} from "./lab-colours.js";
import { bars } from "./lab-likeliest.js";
import { percent } from "./lab-look.js";
import { chip, shortLabel } from "./lab-pieces.js";

const LEFT = 78; // CSS pixels for the names of tokens …
const TOP = 70; // … and above, where all are written
const TOP_OF_ONE = 20; // … or only that of the column pointed at
const SMALLEST_NAMED = 10; // cells of this size have all their names written
const LARGEST_CELL = 34;
const LARGEST_PICTURE = 620;

export class AttentionView {
  /** onchoose(place); onhover(row, column) with nulls when the mouse has gone. */
  constructor({ onchoose, onhover, onhead }) {
    this.onchoose = onchoose;
    this.onhover = onhover;
    this.layer = new Choice(t("Layer", "层"), onhead);
    this.head = new Choice(t("Head", "头"), onhead);
    this.canvas = element("canvas", {
      tabindex: "0",
      role: "img",
      "aria-label": t(
        "Attention weights: rows look at columns. Arrow keys move.",
        "注意力权重：行关注列。方向键移动。",
      ),
      onmousemove: (event) => this.#point(event),
      onmouseleave: () => this.#pointAt(null),
      onclick: (event) => this.#click(event),
      onkeydown: (event) => this.#onKey(event),
    });
    this.frame = element("div", { class: "picture" }, this.canvas);
    this.said = element("p", { class: "said", "aria-live": "polite" });
    this.most = element("div");
    this.aside = element("div", { class: "aside" }, this.said, this.most);
    this.root = element(
      "div",
      { class: "view attention" },
      element("div", { class: "choices" }, this.layer.root, this.head.root),
      this.frame,
      legend("attention", t("how much a row looks at a column", "行对列的关注程度")),
    );
    redrawn(this.frame, () => this.#draw());
  }

  /** The layer and head that are chosen. */
  wanted() {
    return { layer: this.layer.value, head: this.head.value };
  }

  /** To the first of each, for another model. */
  reset() {
    this.layer.select.selectedIndex = this.head.select.selectedIndex = 0;
  }

  show(look) {
    this.look = look;
    this.cell = null;
    this.layer.offer(look.layers);
    this.head.offer(look.heads);
    this.map = null; // the picture, one pixel per pair, made when it is drawn
  }

  choose(place) {
    this.place = Math.min(place, this.look.length - 1);
    this.cell = null;
    this.#draw();
    this.#tell();
  }

  #draw() {
    if (!this.look || this.root.hidden || !this.frame.clientWidth) return;
    const n = this.look.length;
    const room = Math.min(this.frame.clientWidth, LARGEST_PICTURE) - LEFT - 1;
    this.size = Math.min(room / n, LARGEST_CELL);
    this.allNamed = this.size >= SMALLEST_NAMED;
    this.top = this.allNamed ? TOP : TOP_OF_ONE;
    const side = this.size * n;
    const context = prepared(this.canvas, LEFT + side + 1, this.top + side + 1);
    context.imageSmoothingEnabled = this.size < 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.#pixels(), LEFT, this.top, side, side);
    this.#drawNames(context);
    this.#drawCross(context, side);
  }

  #pixels() {
    const theme = document.documentElement.dataset.theme;
    if (this.map && this.theme === theme) return this.map;
    const n = this.look.length;
    const image = new ImageData(n, n);
    const colours = heatColours();
    for (let row = 0; row < n; row++) {
      this.look.attention(row).forEach((weight, column) => {
        const [r, g, b] = colours[Math.round(255 * shareOfWeight(weight ?? 0))];
        image.data.set([r, g, b, 255], 4 * (row * n + column));
      });
    }
    this.map = element("canvas", { width: n, height: n });
    this.map.getContext("2d").putImageData(image, 0, 0);
    this.theme = theme;
    return this.map;
  }

  #drawNames(context) {
    const [row, column] = this.cell ?? [this.place, null];
    const tone = (isHere) => themeColour(isHere ? "--text" : "--muted");
    context.font = `${Math.max(11, Math.min(13, this.size * 0.85))}px ${themeColour("--mono")}`;
    context.textBaseline = "middle";
    for (let place = 0; place < this.look.length; place++) {
      const middle = (place + 0.5) * this.size;
      const name = shortLabel(this.look.pieceAt(place), 9);
      if (this.allNamed || place === row) {
        context.fillStyle = tone(place === row);
        context.textAlign = "right";
        context.fillText(name, LEFT - 6, this.top + middle, LEFT - 8);
      }
      if (!this.allNamed && place !== column) continue;
      context.fillStyle = tone(place === column);
      context.textAlign = this.allNamed ? "left" : "center";
      context.save();
      context.translate(LEFT + middle, this.top - (this.allNamed ? 6 : 10));
      if (this.allNamed) context.rotate(-Math.PI / 2);
      context.fillText(name, 0, 0, this.allNamed ? TOP - 8 : 2 * LEFT);
      context.restore();
    }
  }

  #drawCross(context, side) {
    const [row, column] = this.cell ?? [this.place, null];
    context.strokeStyle = themeColour("--cross");
    context.lineWidth = 1.5;
    const thick = Math.max(this.size, 3);
    context.strokeRect(LEFT, this.top + row * this.size, (row + 1) * this.size, thick);
    if (column === null) return;
    const above = column * this.size;
    context.strokeRect(LEFT + above, this.top + above, thick, side - above);
  }

  #tell() {
    const [row, column] = this.cell ?? [this.place, null];
    const weights = this.look.attention(row);
    const of = (place) => chip(this.look.pieceAt(place));
    if (column === null || column > row) {
      this.said.replaceChildren(of(row), t(" looks most at", " 最关注"));
    } else {
      const weight = percent(weights[column]);
      this.said.replaceChildren(of(row), t(` looks at `, ` 对 `), of(column));
      this.said.append(t(`: ${weight}`, ` 的关注：${weight}`));
    }
    const best = weights
      .map((p, place) => ({ p, place }))
      .sort((a, b) => b.p - a.p)
      .slice(0, 5)
      .map(({ p, place }) => ({ p, piece: this.look.pieceAt(place), isReal: place === column }));
    this.most.replaceChildren(bars(best));
  }

  #cellOf(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - LEFT) / this.size);
    const row = Math.floor((event.clientY - box.top - this.top) / this.size);
    const inside = row >= 0 && row < this.look.length && column < this.look.length;
    return inside ? [row, Math.max(0, column)] : null;
  }

  #point(event) {
    this.#pointAt(this.#cellOf(event));
  }

  #pointAt(cell) {
    if (`${cell}` === `${this.cell}`) return;
    this.cell = cell;
    this.#draw();
    this.#tell();
    this.onhover(...(cell ?? [null, null]));
  }

  #click(event) {
    const cell = this.#cellOf(event);
    if (cell) this.onchoose(cell[0]);
  }

  #onKey(event) {
    const [dy, dx] =
      { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ??
      [];
    if (dy === undefined) return;
    event.preventDefault();
    const last = this.look.length - 1;
    const [row, column] = this.cell ?? [this.place, this.place - dx];
    const next = Math.max(0, Math.min(last, row + dy));
    const cell = [next, Math.max(0, Math.min(next, column + dx))];
    if (next !== this.place) this.onchoose(next); // the text is coloured by the row
    this.#pointAt(cell);
  }
}

/** A choice of a number from 0 on, counted from 1 on the page. */
export class Choice {
  constructor(name, onchange) {
    this.select = element("select", { onchange: () => onchange() });
    this.root = element("label", {}, element("span", {}, name), this.select);
  }

  offer(count, names = (i) => `${i + 1}`) {
    if (this.select.options.length === count) return;
    const before = this.select.selectedIndex;
    const options = Array.from({ length: count }, (_, i) => element("option", {}, names(i)));
    this.select.replaceChildren(...options);
    if (before > 0 && before < count) this.select.selectedIndex = before;
  }

  get value() {
    return Math.max(0, this.select.selectedIndex);
  }
}
