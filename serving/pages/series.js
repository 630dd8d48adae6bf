// The curves of one run as the page has them: what was sent first, and what came after.

/** A run's curves, samples and events, put together from answers of /runs/data. */
export class RunData {
  constructor() {
    this.forget();
  }

  /** Know nothing: the next answer is asked to hold everything. */
  forget() {
    this.position = "";
    this.fields = new Map();
    this.samples = [];
    this.events = [];
    this.rows = 0;
    this.unit = null;
    this.hasMore = true;
  }

  /** Take in an answer; true if there was anything new in it. */
  add(answer, mostPoints) {
    const isNew = answer.begins || answer.rows !== this.rows || answer.samples.length > 0;
    if (answer.begins) this.forget();
    for (const [name, points] of Object.entries(answer.fields)) {
      const known = this.fields.get(name) ?? { x: [], y: [], low: [], high: [] };
      known.x.push(...points.x);
      known.y.push(...points.y);
      known.low.push(...(points.low ?? points.y));
      known.high.push(...(points.high ?? points.y));
      this.fields.set(name, known);
    }
    this.samples.push(...answer.samples);
    this.events.push(...answer.events);
    this.position = answer.position;
    this.rows = answer.rows;
    this.unit = answer.unit;
    this.hasMore = answer.more;
    // what is added comes line by line: when it has become much, it is thinned by the server
    const longest = Math.max(0, ...[...this.fields.values()].map((points) => points.x.length));
    if (longest > 2 * mostPoints) this.position = "";
    return isNew;
  }
}

/** The least and the largest x of some runs' data, never the same. */
export function extentOf(runs) {
  let [low, high] = [Infinity, -Infinity];
  for (const { fields } of runs) {
    for (const { x } of fields.values()) {
      low = Math.min(low, x[0]);
      high = Math.max(high, x.at(-1));
    }
  }
  if (!(low <= high)) return [0, 1];
  return low === high ? [low, low + 1] : [low, high];
}

/**
 * Means over neighbours, near ones counting more: exp(-distance / width) on both sides.
 * So that points lie no further right or left than they were.
 */
export function smoothed(x, y, width) {
  const n = y.length;
  if (!(width > 0) || n < 3) return y;
  const sums = new Float64Array(n);
  const weights = new Float64Array(n);
  for (const step of [1, -1]) {
    const first = step > 0 ? 0 : n - 1;
    let sum = 0;
    let weight = 0;
    for (let i = first; i >= 0 && i < n; i += step) {
      const fade = i === first ? 0 : Math.exp(-Math.abs(x[i] - x[i - step]) / width);
      sum = sum * fade + y[i];
      weight = weight * fade + 1;
      sums[i] += sum;
      weights[i] += weight;
    }
  }
  return Array.from(sums, (sum, i) => (sum - y[i]) / (weights[i] - 1)); // y[i] was in both
}

/** The place in sorted x that is nearest to a value; -1 if there is none. */
export function nearest(x, value) {
  let low = 0;
  let high = x.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] <= value) low = middle;
    else high = middle;
  }
  if (high < 0) return -1;
  return Math.abs(x[low] - value) <= Math.abs(x[high] - value) ? low : high;
}
