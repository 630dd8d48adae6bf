// From numbers to colours. The colours themselves are in lab.css, dark and light: text can be read
// on each of them, and each scale runs from pale to strong, so that no hue need be told apart.

import { element } from "./common.js";

const MOST_NATS = 10; // from here on as strong as can be

// Okabe and Ito's eight, which people with any kind of colour vision tell apart.
const EIGHT = [
  ...["#e69f00", "#56b4e9", "#009e73", "#f0e442"],
  ...["#0072b2", "#d55e00", "#cc79a7", "#9a9a9a"],
];

/** Where on the scale a surprise lies, 0 to 1: the root, since most tokens cost little. */
export function shareOfSurprise(nats) {
  return Math.sqrt(Math.min(nats, MOST_NATS) / MOST_NATS);
}

/** Where on the scale an attention weight lies: the root, since most are small. */
export function shareOfWeight(weight) {
  return Math.sqrt(weight);
}

export function expertColour(expert, count) {
  if (count <= EIGHT.length) return EIGHT[expert];
  return `hsl(${(expert * 137.508) % 360} 62% ${[48, 60, 70][expert % 3]}%)`;
}

const SCALES = {
  surprise: {
    ticks: [0, 0.5, 1, 2, 4, 7, 10],
    share: shareOfSurprise,
    text: (nats) => (nats === MOST_NATS ? "10+" : `${nats}`),
  },
  attention: {
    ticks: [0, 0.01, 0.05, 0.2, 0.5, 1],
    share: shareOfWeight,
    text: (weight) => `${Math.round(100 * weight)}%`,
  },
  probability: {
    ticks: [0, 0.25, 0.5, 0.75, 1],
    share: (p) => p,
    text: (p) => `${Math.round(100 * p)}%`,
  },
};

/** A scale with its ticks: kind "surprise", "attention" or "probability"; title says what of. */
export function legend(kind, ...title) {
  const { ticks, share, text } = SCALES[kind];
  const marks = ticks.map((value) => {
    const tick = element("span", { class: "tick" }, text(value));
    tick.style.left = `${100 * share(value)}%`;
    return tick;
  });
  return element(
    "div",
    { class: "legend" },
    element("span", { class: "legend-title" }, ...title),
    element(
      "span",
      { class: "legend-scale", "aria-hidden": "true" },
      element("span", { class: `legend-bar ramp-${kind}` }),
      element("span", { class: "legend-ticks" }, ...marks),
    ),
  );
}

function channels(colour) {
  const [r, g, b] = colour.trim().match(/[0-9a-f]{2}/gi);
  return [parseInt(r, 16), parseInt(g, 16), parseInt(b, 16)];
}

/** 256 colours [r, g, b] of the canvas scale, as the theme has it now. */
export function heatColours() {
  const style = getComputedStyle(document.documentElement);
  const stops = ["low", "mid", "high"].map((name) =>
    channels(style.getPropertyValue(`--heat-${name}`)),
  );
  return Array.from({ length: 256 }, (_, i) => {
    const position = (i / 255) * 2;
    const from = Math.min(1, Math.floor(position));
    return stops[from].map((value, c) => value + (stops[from + 1][c] - value) * (position - from));
  });
}

/** A colour of the theme by its name in the style sheets. */
export function themeColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Call `draw` whenever the theme changes or the element gets another width. */
export function redrawn(target, draw) {
  let width = 0;
  new MutationObserver(draw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  new ResizeObserver(() => {
    if (target.clientWidth !== width) draw();
    width = target.clientWidth;
  }).observe(target);
}

/** A canvas context whose unit is a CSS pixel, sized width × height and empty. */
export function prepared(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return context;
}
