// What a person does with a chart: point at it, drag across it, press keys.

import { nearest } from "./series.js";

const DRAG_FROM = 5; // pixels: less is a click

/** The x of a point near a pixel, that of the line with the most points in view. */
function snapped(chart, pixel) {
  const lines = chart.lines ?? [];
  const line = lines.reduce((a, b) => (b.x.length > (a?.x.length ?? 0) ? b : a), null);
  if (!line?.x.length) return null;
  const value = chart.fromX(pixel);
  const places = lines.map((other) => other.x[nearest(other.x, value)]);
  const distance = (x) => (x === undefined ? Infinity : Math.abs(x - value));
  return places.reduce((a, b) => (distance(b) < distance(a) ? b : a));
}

/** Begin to listen to mouse, finger and keys. */
export function listen(chart) {
  const { top } = chart;
  const pixel = (event) => event.clientX - top.getBoundingClientRect().left;
  top.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    chart.start = pixel(event);
    top.setPointerCapture(event.pointerId);
  });
  top.addEventListener("pointermove", (event) => {
    if (!chart.toX) return;
    const at = pixel(event);
    if (chart.start !== undefined && Math.abs(at - chart.start) > DRAG_FROM) {
      const ends = [chart.start, at].map((x) => Math.min(chart.right, Math.max(chart.left, x)));
      chart.dragged = ends.sort((a, b) => a - b);
    }
    chart.told.cursor(snapped(chart, at), chart);
  });
  top.addEventListener("pointerup", (event) => {
    const { dragged } = chart;
    endDrag(chart);
    if (dragged && dragged[1] > dragged[0]) chart.told.zoom(...dragged.map(chart.fromX));
    else if (chart.toX) chart.told.cursor(snapped(chart, pixel(event)), chart);
  });
  top.addEventListener("pointercancel", () => endDrag(chart));
  top.addEventListener("pointerleave", (event) => {
    // a finger that is lifted leaves, too: what it has tapped stays to be read
    if (chart.start === undefined && event.pointerType !== "touch") chart.told.cursor(null, chart);
  });
  top.addEventListener("dblclick", () => chart.told.reset());
  top.addEventListener("keydown", (event) => pressed(chart, event));
  top.addEventListener("blur", () => chart.told.cursor(null, chart));
}

function endDrag(chart) {
  chart.start = undefined;
  chart.dragged = null;
  chart.drawCursor();
}

function pressed(chart, event) {
  const actions = {
    ArrowLeft: () => moveCursor(chart, event.shiftKey ? -10 : -1),
    ArrowRight: () => moveCursor(chart, event.shiftKey ? 10 : 1),
    Home: () => moveCursor(chart, -Infinity),
    End: () => moveCursor(chart, Infinity),
    Escape: () => chart.told.cursor(null, chart),
    "+": () => zoomBy(chart, 0.5),
    "=": () => zoomBy(chart, 0.5),
    "-": () => zoomBy(chart, 2),
    0: () => chart.told.reset(),
  };
  const action = event.ctrlKey || event.metaKey || event.altKey ? null : actions[event.key];
  if (!action || !chart.lines) return;
  event.preventDefault();
  action();
}

function moveCursor(chart, places) {
  const [first, last] = chart.picture.view;
  const line = chart.lines.reduce((a, b) => (b.x.length > a.x.length ? b : a), { x: [] });
  const x = line.x.filter((value) => value >= first && value <= last);
  if (!x.length) return;
  const from = chart.cursor === null ? (places > 0 ? -1 : x.length) : nearest(x, chart.cursor);
  const to = Math.min(x.length - 1, Math.max(0, from + places));
  chart.told.cursor(x[to], chart);
}

function zoomBy(chart, factor) {
  const [first, last] = chart.picture.view;
  const middle = chart.cursor ?? (first + last) / 2;
  chart.told.zoom(middle - (middle - first) * factor, middle + (last - middle) * factor);
}
