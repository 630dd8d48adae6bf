// The page /lab: a text coloured by surprise, and what the model thought at each token.

import { ask, drawBar, element, t } from "./common.js";
import { AttentionView } from "./lab-attention.js";
import { legend, shareOfSurprise, shareOfWeight } from "./lab-colours.js";
import { ExpertsView } from "./lab-experts.js";
import { Form } from "./lab-form.js";
import { LensView } from "./lab-lens.js";
import { LikeliestView } from "./lab-likeliest.js";
import { Look, rounded } from "./lab-look.js";
import { TokenText } from "./lab-text.js";

const main = document.querySelector("#lab");
const views = {}; // by the names of the tabs
const parts = {}; // elements that are filled later
let form;
let text;
let wanted = null; // what shall be looked at: a part of a request
let shown = null; // … and what is shown
let look = null; // the newest answer
let view = "surprise";
let chosen = 0;
let asked = 0; // number of the newest request: answers to older ones come too late

const TABS = [
  ["surprise", t("Surprise", "惊讶度")],
  ["attention", t("Attention", "注意力")],
  ["lens", t("Layers", "逐层")],
  ["experts", t("Experts", "专家")],
];

async function start() {
  drawBar();
  let models;
  try {
    ({ models } = await ask("/lab/models"));
    if (!models.length) throw new Error(t("the server has no model", "服务器没有模型"));
  } catch (error) {
    main.replaceChildren(element("p", { class: "error", role: "alert" }, error.message));
    return;
  }
  build(models);
  window.addEventListener("hashchange", () => {
    if (location.hash !== form.fragment() && form.restore(location.hash)) lookAgain();
  });
  if (form.restore(location.hash)) await lookAgain();
  else form.begins();
}

function build(models) {
  form = new Form({ models, onlook: lookAgain });
  text = new TokenText({ onchoose: chooseInText, onhover: hover });
  views.surprise = new LikeliestView();
  views.attention = new AttentionView({ onchoose: choose, onhover: hoverPair, onhead: refresh });
  views.lens = new LensView({ onchoose: choose, onhover: hover });
  views.experts = new ExpertsView({ onchoose: choose, onhover: hover, onlayer: showView });
  parts.error = element("p", { class: "error", role: "alert", hidden: true });
  parts.facts = element("div", { class: "facts" });
  parts.legend = element("div");
  parts.tabs = Object.fromEntries(TABS.map(([name, title]) => [name, tab(name, title)]));
  parts.panel = element("div", { class: "panel", role: "tabpanel", id: "panel" });
  for (const [name, { root }] of Object.entries(views)) {
    root.hidden = name !== view;
    parts.panel.append(root);
  }
  const tabs = element("div", { class: "tabs", role: "tablist" }, ...Object.values(parts.tabs));
  const { aside } = views.attention;
  const reading = element("section", { class: "reading" }, parts.legend, text.root, aside);
  parts.result = element(
    "section",
    { class: "result", hidden: true },
    parts.facts,
    tabs,
    element("div", { class: "split" }, reading, parts.panel),
  );
  main.replaceChildren(intro(), form.root, parts.error, parts.result);
}

function intro() {
  const what = t(
    "Where the model was surprised, what it expected instead, and how it got there.",
    "模型在哪里感到惊讶，它原本期待什么，又是怎样得出的。",
  );
  return element(
    "div",
    { class: "intro" },
    element("h1", {}, t("Look inside", "看看内部")),
    element("p", { class: "muted" }, what),
  );
}

function tab(name, title) {
  return element(
    "button",
    {
      role: "tab",
      id: `tab-${name}`,
      "aria-controls": "panel",
      "aria-selected": `${name === view}`,
      onclick: () => open(name),
      onkeydown: onTabKey,
    },
    title,
  );
}

function onTabKey(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  const names = TABS.map(([name]) => name).filter((name) => !parts.tabs[name].hidden);
  const next = names[(names.indexOf(view) + step + names.length) % names.length];
  parts.tabs[next].focus();
  open(next);
}

function open(name) {
  view = name;
  for (const [other, button] of Object.entries(parts.tabs)) {
    button.setAttribute("aria-selected", `${other === view}`);
    button.tabIndex = other === view ? 0 : -1;
    views[other].root.hidden = other !== view;
  }
  parts.result.dataset.view = view;
  parts.panel.setAttribute("aria-labelledby", `tab-${view}`);
  if (!look) return;
  if (isMissing()) refresh();
  else showView();
}

/** Whether the open view needs what the newest answer does not hold. */
function isMissing() {
  if (view === "attention") return !look.answer.attention;
  return view === "lens" && !look.answer.lens;
}

/** Look at what is in the form, from the beginning. */
function lookAgain() {
  if (wanted && wanted.model !== form.request().model) views.attention.reset();
  wanted = form.request();
  return refresh();
}

/** Ask for what is wanted, another text or more of this one, and show it. */
async function refresh() {
  const fields = wanted;
  const asking = view;
  const answer = await request(fields);
  if (!answer) return;
  look = new Look(answer);
  if (shown !== fields) {
    shown = fields;
    keepInAddress();
    chosen = look.mostSurprising();
    text.show(look);
  }
  showAll();
  if (view !== asking && isMissing()) refresh();
}

/** A link to this text, unless it is too long for one. */
function keepInAddress() {
  const fragment = form.fragment();
  history.replaceState(null, "", fragment ?? location.pathname);
  form.link.hidden = fragment === null;
}

/** The server's answer, or null when it refuses or a newer request was made meanwhile. */
async function request(fields) {
  const number = ++asked;
  const body = { ...fields, lens: view === "lens" };
  if (view === "attention") Object.assign(body, views.attention.wanted());
  busy(true);
  try {
    return await latest(number, body);
  } catch (error) {
    if (number === asked) {
      showError(error);
      wanted = shown;
    }
    return null;
  } finally {
    if (number === asked) busy(false);
  }
}

async function latest(number, body) {
  const options = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const answer = await ask("/lab/look", options);
  if (number !== asked) return null;
  parts.error.hidden = true;
  return answer;
}

function busy(is) {
  main.setAttribute("aria-busy", `${is}`);
  form.look.textContent = is ? t("Looking…", "查看中…") : t("Look", "查看");
}

function showError(error) {
  parts.error.textContent = error.message;
  parts.error.hidden = false;
}

function showAll() {
  parts.result.hidden = false;
  parts.tabs.experts.hidden = !look.experts;
  for (const each of Object.values(views)) each.show(look);
  showFacts();
  if (view === "experts" && !look.experts) open("surprise");
  else if (!isMissing()) showView();
}

/** The open view and the text beside it. */
function showView() {
  parts.result.dataset.view = view;
  colour();
  text.mark(chosen);
  text.reveal();
  views[view].choose(chosen);
}

function colour() {
  if (view === "attention") {
    const row = look.attention(Math.min(chosen, look.length - 1));
    text.paint("attention", (place) => (row[place] == null ? null : shareOfWeight(row[place])));
    const { layer, head } = views.attention.wanted();
    const title = t(`layer ${layer + 1}, head ${head + 1}`, `第 ${layer + 1} 层第 ${head + 1} 头`);
    parts.legend.replaceChildren(
      legend("attention", t("what the chosen token looks at · ", "所选词元在看什么 · "), title),
    );
  } else if (view === "experts") {
    text.stripe((place) => views.experts.colour(place));
    const number = views.experts.layer + 1;
    const title = t(`each token's first expert in layer ${number}`, `第 ${number} 层各词元的首选专家`);
    parts.legend.replaceChildren(element("div", { class: "legend" }, title));
  } else {
    text.paint("surprise", (place) => {
      const nats = look.surprise(place);
      return nats === null ? null : shareOfSurprise(nats);
    });
    parts.legend.replaceChildren(legend("surprise", t("surprise, nats", "惊讶度（奈特）")));
  }
}

/** From now on, what is said of the chosen token stays in sight on a phone. */
function chooseInText(place) {
  parts.result.classList.add("touched");
  choose(place);
}

function choose(place) {
  chosen = place;
  text.mark(chosen);
  text.reveal();
  if (view === "attention") colour();
  views[view].choose(chosen);
}

function hover(place) {
  text.mark(chosen, place === null ? [] : [place]);
  views[view].hover?.(place ?? chosen);
}

function hoverPair(row, column) {
  text.mark(chosen, [row, column].filter((place) => place !== null));
}

function showFacts() {
  const { totals, answer, left_out: leftOut, model } = look.answer;
  const fact = (value, name, title) =>
    element("span", { class: "fact", title }, element("b", {}, value), ` ${name}`);
  const measured = (of) => [
    fact(rounded(of.nats_per_token), t("nats per token", "奈特/词元"), t("mean of -ln p", "-ln p 的平均")),
    fact(rounded(of.bits_per_byte, 3), t("bits per byte", "比特/字节")),
    fact(rounded(of.perplexity), t("perplexity", "困惑度")),
  ];
  const found = [fact(`${look.length}`, t("tokens", "个词元")), ...measured(totals)];
  if (answer?.tokens) {
    const title = t("the answer, which training counts:", "回答（训练只计算它）：");
    found.push(element("span", { class: "muted" }, title), ...measured(answer));
  }
  if (leftOut) {
    const said = t(`${leftOut} more tokens are left out`, `另有 ${leftOut} 个词元未显示`);
    found.push(element("span", { class: "error" }, said));
  }
  parts.facts.replaceChildren(element("b", { class: "of" }, model), ...found);
}

start();
