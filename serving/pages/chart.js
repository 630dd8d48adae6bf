// One chart: lines over a shared x, drawn on a canvas; a second canvas on top shows the cursor.

import { listen } from "./chart_input.js";
import { element, t } from "./common.js";
import { colorsOf, dot, prepared, strokeLine } from "./paint.js";
import { nearest, smoothed } from "./series.js";
import { logTicks, measured, roundTicks, short } from "./ticks.js";

const TOP = 10;
const BOTTOM = 22;
const RIGHT = 10;
const MOST_DOTS = 50; // of a held-out line in view
const FEW = 100; // points in view: more make a thin line
const MOST_VALUES = 4; // last values in the caption

/**
 * What a chart shows is a picture:
 *   lines    [{ run, color, field, kind, heldOut, dashed, x, y, low, high }], x rising
 *   legend   [{ text, heldOut, dashed }], what tells the lines of one run apart
 *   view     [low, high] of x
 *   axis     { name, format(x), ticks(low, high, count) } of x
 *   log      whether y is logarithmic
 *   smooth   width of the smoothing, in units of x; 0: none
 *   marks    [{ x, text }], events to mark at the top
 *
 * told: { zoom(low, high), reset(), cursor(x or null), log() } are called for what a person does.
 */
export class Chart {
  constructor({ title, hint, isWide }, told) {
    this.told = told;
    this.title = title;
    this.cursor = null; // x, of this chart or of another
    this.isHere = false; // whether the cursor is in this chart
    this.canvas = element("canvas", { "aria-hidden": "true" });
    this.top = element("canvas", { tabindex: "0", role: "img", class: "top" });
    this.tip = element("div", { class: "tip", hidden: true });
    this.values = element("span", { class: "values" });
    this.legend = element("span", { class: "legend" });
    this.axisName = element("span", {});
    this.logButton = element("button", { class: "quiet log", onclick: () => told.log() }, "log");
    this.logButton.title = t("Logarithmic y axis", "对数 y 轴");
    const place = element("div", { class: "place" }, this.canvas, this.top, this.tip);
    this.figure = element(
      "figure",
      { class: isWide ? "chart wide" : "chart" },
      element("figcaption", {}, element("h3", { title: hint }, title), this.values),
      place,
      element("div", { class: "foot muted" }, this.legend, this.logButton, this.axisName),
    );
    listen(this);
    this.width = 0;
    this.height = 0;
    new ResizeObserver(([{ contentRect }]) => {
      this.width = contentRect.width;
      this.height = contentRect.height;
      this.draw();
    }).observe(place);
    this.isVisible = true;
    new IntersectionObserver(([entry]) => {
      this.isVisible = entry.isIntersecting;
      if (this.isVisible && this.isStale) this.draw();
    }).observe(place);
  }

  show(picture) {
    this.picture = picture;
    this.logButton.setAttribute("aria-pressed", String(picture.log));
    this.writeLegend();
    this.draw();
  }

  // ---- the caption

  writeLegend() {
    const { lines } = this.picture;
    const words = lines.map((line) => `${line.run} ${line.kind} ${measured(line.y.at(-1))}`);
    const colors = lines.map((line) => line.color);
    const written = JSON.stringify([words, colors, this.picture.axis.name]);
    if (written === this.written) return; // touching the page makes the browser lay it out again
    this.written = written;
    this.legend.replaceChildren(
      ...this.picture.legend.map((kind) => element("span", {}, keyOf(kind, null), kind.text)),
    );
    this.axisName.textContent = this.picture.axis.name;
    const last = lines.slice(0, MOST_VALUES).map((line) => {
      const sign = line.heldOut && line.kind ? "●" : "";
      const text = element("span", {}, sign + measured(line.y.at(-1)));
      text.style.color = line.color;
      text.title = [line.run, line.kind].filter(Boolean).join(": ");
      return text;
    });
    this.values.replaceChildren(...last);
    const keys = t("arrow keys read the curve, + and − zoom, 0 resets",
      "方向键读取曲线，+ 和 − 缩放，0 还原");
    this.top.setAttribute("aria-label", `${this.title}: ${words.join("; ")}. ${keys}`);
  }

  // ---- drawing

  draw() {
    this.isStale = !this.isVisible;
    const { width, height } = this;
    if (!this.picture || this.isStale || !width) return;
    const paint = prepared(this.canvas, width, height);
    this.colors = colorsOf(this.canvas);
    paint.font = `11px ${this.colors.font}`;
    const [first, last] = this.picture.view;
    const lines = this.picture.lines.map((line) => this.inView(line, first, last));
    this.lines = lines;
    this.makeScales(paint, lines, width, height);
    this.drawAxes(paint, width, height);
    paint.save();
    paint.beginPath();
    paint.rect(this.left - 4, TOP - 4, this.right - this.left + 8, height - TOP - BOTTOM + 8);
    paint.clip();
    for (const line of lines) this.drawLine(paint, line);
    for (const mark of this.picture.marks) this.drawMark(paint, this.toX(mark.x));
    paint.restore();
    this.drawCursor();
  }

  /** The part of a line that is in view, and a point on either side. */
  inView(line, first, last) {
    let begin = line.x.findIndex((x) => x >= first);
    if (begin < 0) begin = line.x.length;
    let end = line.x.length;
    while (end > begin && line.x[end - 1] > last) end -= 1;
    begin = Math.max(0, begin - 1);
    end = Math.min(line.x.length, end + 1);
    const part = { ...line };
    for (const name of ["x", "y", "low", "high"]) part[name] = line[name].slice(begin, end);
    part.smooth = line.heldOut ? part.y : smoothed(part.x, part.y, this.picture.smooth);
    return part;
  }

  makeScales(paint, lines, width, height) {
    const { log, view } = this.picture;
    let [low, high] = [Infinity, -Infinity];
    for (const line of lines) {
      for (let i = 0; i < line.x.length; i += 1) {
        if (line.x[i] < view[0] || line.x[i] > view[1]) continue;
        if (line.high[i] > high) high = line.high[i];
        if (line.low[i] < low && !(log && line.low[i] <= 0)) low = line.low[i];
      }
    }
    if (!(low <= high)) [low, high] = log ? [0.1, 1] : [0, 1];
    if (low === high) {
      const around = Math.abs(low) / 10 || 1;
      [low, high] = log ? [low / 1.1, low * 1.1] : [low - around, high + around];
    }
    const to = (value) => (log ? Math.log10(value) : value);
    const margin = (to(high) - to(low)) * 0.04;
    const [from, until] = [to(low) - margin, to(high) + margin];
    const bottom = height - BOTTOM;
    const count = Math.max(2, Math.floor((bottom - TOP) / 27));
    const [lowest, highest] = log ? [10 ** from, 10 ** until] : [from, until];
    this.yTicks = (log ? logTicks : roundTicks)(lowest, highest, count);
    const widest = Math.max(0, ...this.yTicks.map((tick) => paint.measureText(short(tick)).width));
    this.left = Math.ceil(widest) + 14;
    const right = width - RIGHT;
    this.right = right;
    const span = view[1] - view[0] || 1;
    this.toX = (x) => this.left + ((x - view[0]) / span) * (right - this.left);
    this.fromX = (pixel) => view[0] + ((pixel - this.left) / (right - this.left)) * span;
    this.toY = (y) => {
      if (log && y <= 0) return bottom + 9; // below all that is seen
      return bottom - ((to(y) - from) / (until - from)) * (bottom - TOP);
    };
  }

  drawAxes(paint, width, height) {
    const { axis, view } = this.picture;
    const bottom = height - BOTTOM;
    paint.lineWidth = 1;
    paint.strokeStyle = this.colors.border;
    paint.fillStyle = this.colors.muted;
    paint.textAlign = "right";
    paint.textBaseline = "middle";
    for (const tick of this.yTicks) {
      const y = Math.round(this.toY(tick)) + 0.5;
      strokeLine(paint, this.left, y, this.right, y);
      paint.fillText(short(tick), this.left - 7, y);
    }
    paint.textBaseline = "top";
    paint.textAlign = "center";
    const count = Math.max(2, Math.floor((this.right - this.left) / 60));
    for (const tick of axis.ticks(view[0], view[1], count)) {
      const x = Math.round(this.toX(tick)) + 0.5;
      strokeLine(paint, x, bottom, x, bottom + 4);
      const text = axis.format(tick);
      const half = paint.measureText(text).width / 2;
      paint.fillText(text, Math.min(Math.max(half, x), width - half), bottom + 7);
    }
    paint.strokeStyle = this.colors.muted;
    strokeLine(paint, this.left, bottom + 0.5, this.right, bottom + 0.5);
  }

  drawLine(paint, line) {
    if (!line.x.length) return;
    paint.strokeStyle = line.color;
    paint.fillStyle = line.color;
    paint.lineJoin = "bevel";
    const isSmoothed = line.smooth !== line.y;
    this.drawRanges(paint, line, isSmoothed ? 0.15 : 0.35);
    if (isSmoothed) {
      paint.globalAlpha = 0.25;
      this.strokeThrough(paint, line.x, line.y, 1);
    }
    paint.globalAlpha = 1;
    paint.setLineDash(line.dashed ? [5, 4] : []);
    const isThick = line.heldOut || isSmoothed || line.x.length < FEW;
    this.strokeThrough(paint, line.x, line.smooth, isThick ? 1.6 : 1); // thin ones are quick
    paint.setLineDash([]);
    if (line.x.length > (line.heldOut ? MOST_DOTS : 1)) return;
    line.x.forEach((x, i) => dot(paint, this.toX(x), this.toY(line.y[i]), 2.6));
  }

  strokeThrough(paint, x, y, width) {
    paint.lineWidth = width;
    paint.beginPath();
    for (let i = 0; i < x.length; i += 1) paint.lineTo(this.toX(x[i]), this.toY(y[i]));
    paint.stroke();
  }

  /** Where a point stands for several lines of the file: all that they cover, a bar a pixel. */
  drawRanges(paint, line, alpha) {
    paint.globalAlpha = alpha;
    let [left, top, bottom] = [null, 0, 0];
    for (let i = 0; i <= line.x.length; i += 1) {
      const x = i < line.x.length ? Math.round(this.toX(line.x[i])) : left + 1;
      if (left !== null && x > left) {
        paint.fillRect(left, top, x - left, Math.max(1, bottom - top));
        left = null;
      }
      if (i === line.x.length || line.low[i] === line.high[i]) continue;
      const [high, low] = [line.high[i], line.low[i]].map((y) => Math.round(this.toY(y)));
      top = left === null ? high : Math.min(top, high);
      bottom = left === null ? low : Math.max(bottom, low);
      left ??= x;
    }
  }

  drawMark(paint, x) {
    paint.fillStyle = this.colors.danger;
    paint.beginPath();
    paint.moveTo(x - 4, TOP - 4);
    paint.lineTo(x + 4, TOP - 4);
    paint.lineTo(x, TOP + 3);
    paint.fill();
  }

  // ---- the cursor, and what it reads

  drawCursor() {
    if (!this.picture || !this.toX || this.isStale) return;
    const read = this.cursor === null ? [] : this.readings();
    this.writeTip(read);
    const isEmpty = !read.length && !this.dragged;
    if (isEmpty && this.wasEmpty) return; // drawing nothing again is work, too
    this.wasEmpty = isEmpty;
    const { width, height } = this;
    const paint = prepared(this.top, width, height);
    if (this.dragged) {
      paint.fillStyle = this.colors.accent;
      paint.globalAlpha = 0.15;
      const [from, to] = this.dragged;
      paint.fillRect(from, TOP, to - from, height - TOP - BOTTOM);
      paint.globalAlpha = 1;
    }
    if (read.length) {
      const x = Math.round(this.toX(this.cursor)) + 0.5;
      paint.strokeStyle = this.colors.muted;
      if (x >= this.left && x <= this.right) strokeLine(paint, x, TOP, x, height - BOTTOM);
      for (const { line, at } of read) {
        paint.fillStyle = line.color;
        const place = this.toX(line.x[at]);
        if (place >= this.left - 1 && place <= this.right + 1) {
          dot(paint, place, this.toY(line.smooth[at]), 3.5);
        }
      }
    }
  }

  /** The points nearest to the cursor, one of every line that is there at all. */
  readings() {
    const width = Math.abs(this.fromX(this.left + 60) - this.fromX(this.left));
    const found = [];
    for (const line of this.lines) {
      const at = nearest(line.x, this.cursor);
      if (at < 0) continue;
      const isWithin = line.x[0] <= this.cursor && this.cursor <= line.x.at(-1);
      const isNear = Math.abs(line.x[at] - this.cursor) <= width;
      if (isNear || (line.heldOut && isWithin)) found.push({ line, at });
    }
    return found;
  }

  writeTip(read) {
    this.tip.hidden = !this.isHere || !read.length;
    if (this.tip.hidden) return;
    const { axis, marks } = this.picture;
    const rows = read.map(({ line, at }) => {
      const range = line.low[at] < line.high[at];
      const text = range
        ? `${measured(line.y[at])} (${measured(line.low[at])} – ${measured(line.high[at])})`
        : measured(line.y[at]);
      const isElsewhere = line.heldOut && line.x[at] !== this.cursor;
      const away = isElsewhere ? ` @ ${axis.format(line.x[at])}` : "";
      const name = [line.run, line.kind].filter(Boolean).join(" · ");
      return element(
        "div",
        { class: "row" },
        keyOf(line, line.color),
        element("span", { class: "who" }, name),
        element("span", { class: "number" }, text + away),
      );
    });
    const near = marks.filter((mark) => Math.abs(this.toX(mark.x) - this.toX(this.cursor)) < 5);
    const notes = near.slice(0, 3).map((mark) => element("div", { class: "error" }, mark.text));
    const head = element("div", { class: "muted" }, `${axis.name} ${axis.exact(this.cursor)}`);
    this.tip.replaceChildren(head, ...rows, ...notes);
    const x = this.toX(this.cursor);
    const isLeft = x > this.width / 2;
    this.tip.style.maxWidth = `${Math.round((isLeft ? x : this.width - x) - 14)}px`;
    this.tip.style.left = isLeft ? "" : `${x + 12}px`;
    this.tip.style.right = isLeft ? `${this.width - x + 12}px` : "";
  }

  setCursor(x, isHere) {
    this.cursor = x;
    this.isHere = isHere;
    this.drawCursor();
  }
}

/** A short sample of how a line is drawn; color null: in the colour of the text. */
function keyOf(line, color) {
  const classes = ["key", line.heldOut && "held-out", line.dashed && "dashed"].filter(Boolean);
  const key = element("i", { class: classes.join(" ") });
  if (color) key.style.color = color;
  return key;
}
