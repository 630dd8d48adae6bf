// Round numbers for axes, and numbers as text.

/** Round values within [low, high], about so many: steps of 1, 2 or 5 times a power of ten. */
export function roundTicks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0) || !Number.isFinite(rough)) return [];
  const power = 10 ** Math.floor(Math.log10(rough));
  const factor = rough / power;
  const step = power * (factor < 1.5 ? 1 : factor < 3.2 ? 2 : factor < 7 ? 5 : 10);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) {
    ticks.push(Number((i * step).toPrecision(12)));
  }
  return ticks;
}

/** Powers of ten within [low, high], both positive; few of them: with what lies between. */
export function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  if (decades < 1) return roundTicks(low, high, count).filter((tick) => tick > 0);
  const factors = decades < count / 3 ? [1, 2, 5] : [1];
  const every = Math.max(1, Math.ceil(decades / count));
  const ticks = [];
  const first = Math.floor(Math.log10(low));
  for (let power = first; power <= Math.log10(high); power += 1) {
    if ((power - first) % every !== 0) continue;
    for (const factor of factors) {
      const tick = Number(`${factor}e${power}`);
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks;
}

const SIZES = [
  [1e12, "T"],
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
];

/** A number for an axis: 0.0002 as 2e-4, 1,500,000 as 1.5M. */
export function short(value) {
  const size = Math.abs(value);
  if (size !== 0 && size < 1e-3) return value.toExponential().replace(/e\+?/, "e");
  for (const [unit, letter] of SIZES) {
    if (size >= unit && size >= 1e4) return `${Number((value / unit).toPrecision(4))}${letter}`;
  }
  return String(Number(value.toPrecision(6)));
}

/** A measured number, four digits of it. */
export function measured(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3) return value.toExponential(2).replace(/e\+?/, "e");
  if (size >= 1e4) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}

/** Seconds as text of two units at most: 40 s, 12 min, 3 h 5 min, 2 d 4 h. */
export function duration(seconds, words) {
  if (seconds < 59.5) return `${Math.round(seconds)} ${words.s}`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} ${words.min}`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return joined(hours, words.h, minutes % 60, words.min);
  return joined(Math.floor(hours / 24), words.d, hours % 24, words.h);
}

function joined(large, largeUnit, small, smallUnit) {
  return small ? `${large} ${largeUnit} ${small} ${smallUnit}` : `${large} ${largeUnit}`;
}
