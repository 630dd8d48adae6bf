// Which experts each token went to: a stripe for every layer, and how the load was spread.

import { element, t } from "./common.js";
import { Choice } from "./lab-attention.js";
import { expertColour, prepared, redrawn, themeColour } from "./lab-colours.js";
import { percent } from "./lab-look.js";
import { chip } from "./lab-pieces.js";

const MARGIN = 34; // CSS pixels for the numbers of layers
const HEIGHT = 22;
const GAP = 3;
const NARROWEST = 4; // a token's column
const MOST_IN_LEGEND = 16;

export class ExpertsView {
  constructor({ onchoose, onhover, onlayer }) {
    this.onchoose = onchoose;
    this.onhover = onhover;
    this.onlayer = onlayer;
    this.choice = new Choice(t("Layer", "层"), onlayer);
    this.canvas = element("canvas", {
      tabindex: "0",
      role: "img",
      "aria-label": t(
        "Experts of each token, a stripe for every layer. Arrow keys move.",
        "每个词元的专家，每层一条。方向键移动。",
      ),
      onmousemove: (event) => this.#point(event),
      onmouseleave: () => this.#pointAt(null),
      onclick: (event) => this.#click(event),
      onkeydown: (event) => this.#onKey(event),
    });
    this.frame = element("div", { class: "picture scrolled" }, this.canvas);
    this.said = element("p", { class: "said", "aria-live": "polite" });
    this.load = element("div", { class: "load" });
    this.root = element(
      "div",
      { class: "view experts" },
      element("div", { class: "choices" }, this.choice.root),
      this.frame,
      this.said,
      this.load,
    );
    redrawn(this.frame, () => this.#draw());
  }

  get layer() {
    return this.choice.value;
  }

  show(look) {
    this.look = look;
    this.cell = null;
    if (look.experts) this.choice.offer(look.layers);
  }

  choose(place) {
    if (!this.look.experts) return;
    this.place = Math.min(place, this.look.length - 1);
    this.cell = null;
    this.#draw();
    this.#tell();
    this.#showLoad();
  }

  /** The colour of a token's first expert in the chosen layer. */
  colour(place) {
    const [{ expert }] = this.look.expertsOf(this.layer, place);
    return expertColour(expert, this.look.answer.experts_per_layer);
  }

  #draw() {
    if (!this.look?.experts || !this.frame.clientWidth) return;
    const { layers, length } = this.look;
    const room = this.frame.clientWidth - MARGIN - 2;
    this.width = Math.max(NARROWEST, Math.min(HEIGHT, room / length));
    const context = prepared(
      this.canvas,
      MARGIN + this.width * length + 2,
      layers * (HEIGHT + GAP) + 2,
    );
    context.font = `12px ${themeColour("--sans")}`;
    context.textBaseline = "middle";
    for (let layer = 0; layer < layers; layer++) {
      const top = layer * (HEIGHT + GAP) + 1;
      context.fillStyle = themeColour(layer === this.layer ? "--text" : "--muted");
      context.fillText(`${layer + 1}`, 6, top + HEIGHT / 2);
      for (let place = 0; place < length; place++) this.#drawCell(context, layer, place, top);
    }
    const [layer, place] = this.cell ?? [this.layer, this.place];
    context.strokeStyle = themeColour("--text");
    context.lineWidth = 2;
    context.strokeRect(MARGIN + place * this.width, layer * (HEIGHT + GAP) + 1, this.width, HEIGHT);
  }

  /** A token's experts above each other, as high as their weights. */
  #drawCell(context, layer, place, top) {
    const chosen = this.look.expertsOf(layer, place);
    const all = chosen.reduce((sum, { weight }) => sum + (weight ?? 0), 0) || 1;
    let y = top;
    for (const { expert, weight } of chosen) {
      const height = (HEIGHT * (weight ?? 0)) / all;
      context.fillStyle = expertColour(expert, this.look.answer.experts_per_layer);
      const gap = this.width > 8 ? 1 : 0;
      context.fillRect(MARGIN + place * this.width, y, this.width - gap, height);
      y += height;
    }
  }

  #tell() {
    const [layer, place] = this.cell ?? [this.layer, this.place];
    const chosen = this.look.expertsOf(layer, place).map(({ expert, weight }) => [
      swatch(expert, this.look),
      t(`expert ${expert + 1} `, `专家 ${expert + 1} `),
      percent(weight),
    ]);
    this.said.replaceChildren(
      t(`Layer ${layer + 1}, `, `第 ${layer + 1} 层，`),
      chip(this.look.pieceAt(place)),
      " → ",
      ...chosen.flatMap((parts, i) => (i ? ["  ", ...parts] : parts)),
    );
  }

  /** The share of this text's tokens that each expert of the chosen layer got. */
  #showLoad() {
    const load = this.look.experts.load[this.layer];
    const order = load.map((share, expert) => ({ share, expert }));
    if (load.length > MOST_IN_LEGEND) order.sort((a, b) => b.share - a.share);
    const most = Math.max(...load, 1e-9);
    const items = order.slice(0, MOST_IN_LEGEND).map(({ share, expert }) => {
      const fill = element("span", { class: "fill" });
      fill.style.width = `${(100 * share) / most}%`;
      fill.style.background = expertColour(expert, load.length);
      return element(
        "li",
        {},
        swatch(expert, this.look),
        element("span", { class: "name" }, t(`expert ${expert + 1}`, `专家 ${expert + 1}`)),
        element("span", { class: "track", "aria-hidden": "true" }, fill),
        element("span", { class: "value" }, percent(share)),
      );
    });
    const even = percent(1 / load.length);
    const title = t(
      `Load of layer ${this.layer + 1} in this text (even: ${even})`,
      `第 ${this.layer + 1} 层在此文本中的负载（均匀时为 ${even}）`,
    );
    this.load.replaceChildren(element("h3", {}, title), element("ol", { class: "bars" }, ...items));
    if (load.length > MOST_IN_LEGEND) {
      const rest = load.length - MOST_IN_LEGEND;
      this.load.append(
        element("p", { class: "muted" }, t(`and ${rest} with less`, `另有 ${rest} 个更少`)),
      );
    }
  }

  #point(event) {
    const box = this.canvas.getBoundingClientRect();
    const place = Math.floor((event.clientX - box.left - MARGIN) / this.width);
    const layer = Math.floor((event.clientY - box.top) / (HEIGHT + GAP));
    const inside =
      place >= 0 && place < this.look.length && layer >= 0 && layer < this.look.layers;
    this.#pointAt(inside ? [layer, place] : null);
  }

  #pointAt(cell) {
    if (`${cell}` === `${this.cell}`) return;
    this.cell = cell;
    this.#draw();
    this.#tell();
    this.onhover(cell ? cell[1] : null);
  }

  #click() {
    if (this.cell) this.#move(...this.cell);
  }

  #move(layer, place) {
    this.choice.select.selectedIndex = layer;
    this.onchoose(place);
    this.onlayer();
  }

  #onKey(event) {
    const [dy, dx] =
      { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ??
      [];
    if (dy === undefined) return;
    event.preventDefault();
    const layer = Math.max(0, Math.min(this.look.layers - 1, this.layer + dy));
    this.#move(layer, Math.max(0, Math.min(this.look.length - 1, this.place + dx)));
  }
}

function swatch(expert, look) {
  const found = element("span", { class: "swatch", "aria-hidden": "true" });
  found.style.background = expertColour(expert, look.answer.experts_per_layer);
  return found;
}
