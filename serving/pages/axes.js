// The x axis of all charts: steps, data seen, or seconds of training.

import { t } from "./common.js";
import { timeWords } from "./run_list.js";
import { duration, roundTicks, short } from "./ticks.js";

/**
 * How x is told: { name, ticks(low, high, count), format(x) in short, exact(x) in full }.
 * kind: "step", "seen" or "time"; units: what the runs count their data in; view: [low, high].
 */
export function axisOf(kind, units, view) {
  if (kind === "time") return timeAxis(view);
  const names = {
    tokens: t("tokens", "token 数"),
    pairs: t("pairs", "对"),
    examples: t("examples", "样本"),
  };
  const counted = [...new Set(units.map((unit) => names[unit]).filter(Boolean))];
  const name = kind === "step" ? t("step", "步") : counted.join(", ");
  const exact = (x) => Math.round(x).toLocaleString("en");
  return { name, ticks: roundTicks, format: short, exact };
}

function timeAxis(view) {
  const span = view[1] - view[0];
  const words = timeWords();
  const units = [
    [3600, words.h],
    [60, words.min],
    [1, words.s],
  ];
  const [size, name] = units.find(([seconds]) => span >= 2 * seconds) ?? units[2];
  return {
    name,
    ticks: (low, high, count) => roundTicks(low / size, high / size, count).map((x) => x * size),
    format: (x) => short(x / size),
    exact: (x) => (x < 60 ? `${Number(x.toPrecision(3))} ${words.s}` : duration(x, words)),
  };
}
