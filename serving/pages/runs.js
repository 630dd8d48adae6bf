// The training page: asks for the runs and their curves as they grow, and shows them.

import { axisOf } from "./axes.js";
import { Chart } from "./chart.js";
import { ask, drawBar, element, store, stored, t } from "./common.js";
import { Flags, Samples } from "./comparison.js";
import { isDashed, isHeldOut, kindOf, legendOf, panelsFor } from "./panels.js";
import { RunList } from "./run_list.js";
import { extentOf, RunData } from "./series.js";

const COLORS = 8; // runs at once, a colour each: --run-0 … in runs.css
const POINTS = 400; // of a curve: one for every pixel or two, standing for what lies around it
const BETWEEN_LOOKS = 2_000; // milliseconds, while a run that is shown is running
const BETWEEN_LOOKS_AT_REST = 10_000;
const SHARE_OF_TIME = 0.004; // that drawing may take of this thread: training needs the rest
const BETWEEN_LISTS = 6_000;
const PATIENCE = 30_000;
const SMALLEST_VIEW = 1e-6; // of the whole x axis
const SHOWN_AT_FIRST = 4;

const state = {
  runs: [], // as the server lists them
  chosen: new Map(), // name -> colour
  data: new Map(), // name -> RunData
  detail: new Map(), // the same for the part that is zoomed into
  axis: stored("runs.axis") ?? "step",
  smoothing: Number(stored("runs.smoothing") ?? 0),
  view: null, // [low, high] of x, or null for all
  isFirst: true,
  listedAt: -Infinity,
  drawings: [0, 0], // milliseconds that it took the last two times
};
const charts = new Map(); // panel id -> Chart
const headings = new Map();

drawBar();
const page = Object.fromEntries(
  ["list", "controls", "charts", "samples", "flags"].map((id) => [id, document.getElementById(id)]),
);
const list = new RunList(page.list, { toggle, only });
const samples = new Samples(page.samples);
const flags = new Flags(page.flags);
const controls = makeControls();

// ---- choosing runs

function toggle(name) {
  if (state.chosen.has(name)) {
    state.chosen.delete(name);
    state.data.delete(name);
    state.detail.delete(name);
  } else if (state.chosen.size < COLORS) {
    choose(name);
  }
  choiceChanged();
}

function only(name) {
  for (const other of [...state.chosen.keys()]) if (other !== name) state.chosen.delete(other);
  if (!state.chosen.has(name)) choose(name);
  choiceChanged();
}

/** Give a run the first colour that is free: it keeps it as long as it is shown. */
function choose(name) {
  const taken = new Set(state.chosen.values());
  const color = [...Array(COLORS).keys()].find((number) => !taken.has(number));
  if (color !== undefined) state.chosen.set(name, color);
}

function choiceChanged() {
  const names = new URLSearchParams([...state.chosen.keys()].map((name) => ["run", name]));
  history.replaceState(null, "", `#${names}`);
  redraw();
  lookSoon(0);
}

/** What the address names; else what is running, else the latest. */
function chooseAtFirst() {
  const names = new Set(state.runs.map((run) => run.name));
  const named = new URLSearchParams(location.hash.slice(1)).getAll("run");
  let wanted = named.filter((name) => names.has(name));
  if (!wanted.length) {
    const running = state.runs.filter((run) => run.state === "running");
    wanted = (running.length ? running : state.runs.slice(0, 1)).map((run) => run.name);
    wanted = wanted.slice(0, SHOWN_AT_FIRST);
  }
  wanted.slice(0, COLORS).forEach(choose);
}

// ---- asking the server

let timer = null;
let isLooking = false;
let isWanted = false; // something was changed while an answer was on its way

function lookSoon(milliseconds) {
  clearTimeout(timer);
  timer = setTimeout(look, milliseconds);
}

async function look() {
  if (document.hidden) return; // it goes on when the page is seen again
  if (isLooking) {
    isWanted = true;
    return;
  }
  isLooking = true;
  let pause = BETWEEN_LOOKS_AT_REST;
  try {
    const isDue = performance.now() - state.listedAt > BETWEEN_LISTS;
    if (isDue || !state.runs.length) await lookAtList();
    const hasMore = await lookAtData();
    const shown = state.runs.filter((run) => state.chosen.has(run.name));
    const isWaiting = !state.runs.length || shown.some((run) => run.state === "running");
    if (isWaiting) pause = BETWEEN_LOOKS;
    const drawing = Math.min(...state.drawings) / SHARE_OF_TIME;
    pause = hasMore ? 0 : Math.min(Math.max(pause, drawing), BETWEEN_LOOKS_AT_REST);
    controls.problem.textContent = "";
  } catch (error) {
    controls.problem.textContent = t(`No answer: ${error.message}`, `没有回应：${error.message}`);
    pause = 2 * BETWEEN_LOOKS;
  }
  isLooking = false;
  lookSoon(isWanted ? 0 : pause);
  isWanted = false;
}

/** An answer that never comes must not be the last that was asked for. */
function patient() {
  return { signal: AbortSignal.timeout(PATIENCE) };
}

async function lookAtList() {
  const answer = await ask("/runs/list", patient());
  state.listedAt = performance.now();
  state.runs = answer.runs;
  state.folder = answer.folder;
  state.clock = answer.now - performance.now() / 1000;
  if (state.isFirst && state.runs.length) {
    state.isFirst = false;
    chooseAtFirst();
  }
  const names = new Set(state.runs.map((run) => run.name));
  for (const name of [...state.chosen.keys()]) if (!names.has(name)) state.chosen.delete(name);
  redraw();
}

/** Ask for what is new of the runs shown; whether there is more to be had at once. */
async function lookAtData() {
  const listed = new Map(state.runs.map((run) => [run.name, run]));
  const asked = [...state.chosen.keys()].filter((name) => {
    const data = state.data.get(name);
    const run = listed.get(name);
    const isSame = data && data.position && !data.hasMore && data.updated === run?.updated;
    return !isSame || run?.state === "running";
  });
  if (!asked.length) return false;
  const { axis } = state;
  const query = new URLSearchParams({ axis, points: POINTS });
  for (const name of asked) {
    query.append("run", name);
    query.append("since", state.data.get(name)?.position ?? "");
  }
  const answer = await ask(`/runs/data?${query}`, patient());
  if (axis !== state.axis) return true; // changed meanwhile
  const [, last] = extentOf(shownRuns().map((run) => run.data));
  let isNew = false;
  for (const run of answer.runs) {
    if (!state.chosen.has(run.name)) continue;
    const data = state.data.get(run.name) ?? new RunData();
    state.data.set(run.name, data);
    isNew = data.add(run, POINTS) || isNew;
    data.updated = run.updated;
    const before = listed.get(run.name);
    isNew = isNew || before?.state !== run.state;
    if (before) Object.assign(before, run);
  }
  if (answer.gone.length) state.listedAt = -Infinity;
  if (isNew && state.view && state.view[1] >= last) await lookCloser();
  if (isNew) redraw();
  else drawList();
  return answer.runs.some((run) => run.more);
}

/** Ask for more points of the part that is zoomed into. */
async function lookCloser() {
  const { view, axis } = state;
  const names = [...state.chosen.keys()];
  if (!view || !names.length) return;
  const query = new URLSearchParams({ axis, points: POINTS, low: view[0], high: view[1] });
  for (const name of names) query.append("run", name);
  const answer = await ask(`/runs/data?${query}`, patient());
  if (view !== state.view || axis !== state.axis) return;
  state.detail.clear();
  for (const run of answer.runs) {
    const data = new RunData();
    data.add(run, POINTS);
    state.detail.set(run.name, data);
  }
}

// ---- the controls above the charts

function makeControls() {
  const axes = [
    ["step", t("steps", "步数")],
    ["seen", t("data seen", "已见数据")],
    ["time", t("training time", "训练时间")],
  ];
  const select = element(
    "select",
    { onchange: (event) => setAxis(event.target.value) },
    ...axes.map(([value, name]) => element("option", { value }, name)),
  );
  if (!axes.some(([value]) => value === state.axis)) state.axis = "step";
  select.value = state.axis;
  const slider = element("input", {
    type: "range", min: "0", max: "100", value: String(state.smoothing),
    oninput: () => {
      state.smoothing = Number(slider.value);
      store("runs.smoothing", slider.value);
      redraw();
    },
  });
  const width = element("output", {});
  const reset = element("button", { onclick: () => setView(null) }, t("Whole run", "显示全部"));
  const hint = element(
    "span",
    { class: "hint muted" },
    t("Drag across a chart to zoom.", "在图上拖动可放大。"),
  );
  const problem = element("span", { class: "error", role: "status" });
  page.controls.append(
    element("label", {}, t("x axis", "x 轴"), select),
    element("label", {}, t("smoothing", "平滑"), slider, width),
    reset,
    hint,
    problem,
  );
  return { slider, width, reset, hint, problem };
}

function setAxis(axis) {
  state.axis = axis;
  store("runs.axis", axis);
  state.view = null;
  state.data.clear();
  state.detail.clear();
  lookSoon(0);
}

/** Show a part of x, within all that there is and not smaller than numbers can tell. */
function zoom(low, high) {
  const [first, last] = extentOf(shownRuns().map((run) => run.data));
  const least = (last - first) * SMALLEST_VIEW;
  const middle = Math.min(last, Math.max(first, (low + high) / 2));
  const half = Math.max(high - low, least) / 2;
  const view = [Math.max(first, middle - half), Math.min(last, middle + half)];
  setView(view[0] === first && view[1] === last ? null : view);
}

async function setView(view) {
  state.view = view;
  state.detail.clear();
  redraw();
  if (!view) return;
  await lookCloser().catch(() => {}); // the points that are there will do
  redraw();
}

// ---- drawing

function drawList() {
  const now = state.clock + performance.now() / 1000;
  list.show(state.runs, state.chosen, state.folder, now);
}

function redraw() {
  const began = performance.now();
  drawList();
  const shown = shownRuns();
  drawCharts(shown);
  samples.show(shown.map((run) => ({ ...run, samples: run.data.samples })));
  flags.show(shown);
  const took = performance.now() - began;
  requestAnimationFrame((frame) => {
    setTimeout(() => {
      // this comes after the painting
      state.drawings = [state.drawings[1], took + performance.now() - frame];
    });
  });
}

/** The runs with anything to show, in the order in which they were chosen. */
function shownRuns() {
  const listed = new Map(state.runs.map((run) => [run.name, run]));
  return [...state.chosen].flatMap(([name, color]) => {
    const data = state.data.get(name);
    const run = listed.get(name);
    return data && run ? [{ name, color, data, started: run.started }] : [];
  });
}

function drawCharts(shown) {
  const fields = new Set(shown.flatMap((run) => [...run.data.fields.keys()]));
  const panels = panelsFor(fields);
  const whole = extentOf(shown.map((run) => run.data));
  const view = state.view ?? whole;
  const axis = axisOf(state.axis, shown.map((run) => run.data.unit), view);
  const width = (state.smoothing / 100) ** 2 * 0.1 * (view[1] - view[0]);
  controls.width.textContent = width > 0 ? `± ${axis.exact(width)}` : t("none", "无");
  controls.reset.hidden = !state.view;
  controls.hint.hidden = Boolean(state.view) || !panels.length;
  place(panels);
  for (const panel of panels) {
    charts.get(panel.id).show({
      lines: linesOf(panel, shown, view),
      legend: legendOf(panel.fields),
      view,
      axis,
      log: stored(`runs.log.${panel.id}`) === "yes",
      smooth: width,
      marks: panel.id === "loss" && state.axis === "step" ? marksOf(shown) : [],
    });
  }
}

/** Make, order and remove charts so that there is one for each panel, below its heading. */
function place(panels) {
  const wanted = [];
  let heading = null;
  for (const panel of panels) {
    if (panel.heading !== heading) {
      heading = panel.heading;
      if (!headings.has(heading)) headings.set(heading, element("h2", {}, heading));
      wanted.push(headings.get(heading));
    }
    if (!charts.has(panel.id)) charts.set(panel.id, makeChart(panel));
    wanted.push(charts.get(panel.id).figure);
  }
  const now = page.charts.children;
  if (wanted.length === now.length && wanted.every((node, i) => node === now[i])) return;
  page.charts.replaceChildren(...wanted);
}

function makeChart(panel) {
  return new Chart({ ...panel, isWide: panel.id === "loss" }, {
    zoom,
    reset: () => setView(null),
    cursor: (x, from) => {
      for (const chart of charts.values()) chart.setCursor(x, chart === from);
    },
    log: () => {
      const name = `runs.log.${panel.id}`;
      store(name, stored(name) === "yes" ? "no" : "yes");
      redraw();
    },
  });
}

function linesOf(panel, shown, view) {
  const style = getComputedStyle(document.documentElement);
  return shown.flatMap((run) => {
    const detail = state.view === view ? state.detail.get(run.name) : null;
    return panel.fields.flatMap((field) => {
      const points = detail?.fields.get(field) ?? run.data.fields.get(field);
      if (!points) return [];
      const color = style.getPropertyValue(`--run-${run.color}`).trim();
      const kind = kindOf(field, panel.fields);
      const [heldOut, dashed] = [isHeldOut(field), isDashed(field)];
      return [{ run: run.name, color, field, kind, heldOut, dashed, ...points }];
    });
  });
}

function marksOf(shown) {
  return shown.flatMap((run) =>
    run.data.events.map((event) => {
      const name = shown.length > 1 ? `${run.name}: ` : "";
      return { x: event.step, text: `${name}${event.event} ${event.text}`.slice(0, 160) };
    }),
  );
}

new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) lookSoon(0);
});
look();
