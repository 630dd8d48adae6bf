// Which numbers share a chart, what the chart is called, and how each number is drawn.

import { t } from "./common.js";

const LEARNED = () => t("What is learned", "学到了什么");
const STEPS = () => t("The steps", "更新步");
const MACHINE = () => t("Speed and memory", "速度与内存");

// in the order of the page: its name; title; what else to say of it; heading; names of the numbers
// (held-out ones besides)
const PANELS = [
  ["loss", () => t("Loss", "损失"), () => "", LEARNED, ["loss"]],
  [
    "bits",
    () => t("Bits per byte", "每字节比特数"),
    () => t("of held-out text", "留出文本"),
    LEARNED,
    ["bits_per_byte"],
  ],
  [
    "exact",
    () => t("Exact answers", "完全正确"),
    () => t("share of the questions", "占问题的比例"),
    LEARNED,
    ["exact_match"],
  ],
  [
    "accuracy",
    () => t("Ranked right", "排序正确"),
    () => t("share of the pairs or answers", "占样本对或回答的比例"),
    LEARNED,
    ["accuracy"],
  ],
  ["margin", () => t("Reward margin", "奖励差"), () => "", LEARNED, ["margin"]],
  [
    "reward",
    () => t("Rewards", "奖励"),
    () => "",
    LEARNED,
    ["chosen_reward", "rejected_reward", "desirable_reward", "undesirable_reward"],
  ],
  [
    "log_prob",
    () => t("Log-probability", "对数概率"),
    () => t("of whole answers, in nats", "整个回答，单位 nats"),
    LEARNED,
    ["chosen_log_prob", "rejected_log_prob", "desirable_log_prob", "undesirable_log_prob"],
  ],
  [
    "kl",
    () => t("KL divergence", "KL 散度"),
    () => t("from the reference, in nats", "与参考模型之间，单位 nats"),
    LEARNED,
    ["kl"],
  ],
  ["lr", () => t("Learning rate", "学习率"), () => "", STEPS, ["lr"]],
  [
    "grad_norm",
    () => t("Gradient norm", "梯度范数"),
    () => t("before clipping", "裁剪之前"),
    STEPS,
    ["grad_norm"],
  ],
  [
    "max_expert_load",
    () => t("Busiest expert", "最忙的专家"),
    () => t("share of the tokens that go to it; even: 1 / experts", "分到它的 token 比例；均匀时为 1/专家数"),
    STEPS,
    ["max_expert_load"],
  ],
  ["aux_loss", () => t("Load-balancing loss", "负载均衡损失"), () => "", STEPS, ["aux_loss"]],
  ["loss_scale", () => t("Loss scale", "损失缩放"), () => "float16", STEPS, ["loss_scale"]],
  [
    "speed",
    () => t("Speed", "速度"),
    () => t("tokens, pairs or examples a second", "每秒的 token、样本对或样本数"),
    MACHINE,
    ["tokens_per_s", "pairs_per_s", "examples_per_s"],
  ],
  [
    "mfu",
    () => "MFU",
    () => t("share of the device's arithmetic rate", "占设备算力的比例"),
    MACHINE,
    ["mfu"],
  ],
  [
    "data_wait",
    () => t("Waiting for data", "等待数据"),
    () => t("share of the time", "占时间的比例"),
    MACHINE,
    ["data_wait"],
  ],
  ["memory_gb", () => t("Memory", "内存"), () => "GB", MACHINE, ["memory_gb"]],
  ["minutes_left", () => t("Minutes left", "剩余分钟"), () => "", MACHINE, ["minutes_left"]],
];

/** A number's name without what says that it is of held-out data. */
function base(field) {
  return field.startsWith("val_") ? field.slice(4) : field;
}

/**
 * The charts for the numbers that some runs have: [{ id, title, hint, heading, fields }], in the
 * order of the page. A number that nobody has told this page of gets a chart of its own.
 */
export function panelsFor(fields) {
  const left = new Set(fields);
  const panels = [];
  for (const [id, title, hint, heading, names] of PANELS) {
    const own = [...left].filter((field) => names.includes(base(field)));
    const place = (field) => (isHeldOut(field) ? names.length : 0) + names.indexOf(base(field));
    own.sort((a, b) => place(a) - place(b));
    own.forEach((field) => left.delete(field));
    if (!own.length) continue;
    panels.push({ id, title: title(), hint: hint(), heading: heading(), fields: own });
  }
  const others = new Map();
  for (const field of [...left].sort()) {
    others.set(base(field), [...(others.get(base(field)) ?? []), field]);
  }
  for (const [name, own] of others) {
    own.sort((a, b) => isHeldOut(a) - isHeldOut(b));
    const heading = t("Other", "其他");
    panels.push({ id: `other.${name}`, title: name, hint: "", heading, fields: own });
  }
  return panels;
}

/** Whether a number is measured on held-out data: drawn with dots. */
export function isHeldOut(field) {
  return field.startsWith("val_") || field === "exact_match";
}

/** Whether a number is about the answers that are to become less likely: drawn dashed. */
export function isDashed(field) {
  return /(^|_)(rejected|undesirable)_/.test(field);
}

/** What tells a chart's lines apart, a pair of words each; null where they do not differ in it. */
function wordsFor(fields) {
  const differ = (is) => fields.some(is) && fields.some((field) => !is(field));
  const isOfLabels = fields.some((field) => base(field).includes("desirable"));
  const sides = isOfLabels
    ? [t("desirable", "合意"), t("undesirable", "不合意")]
    : [t("chosen", "选中"), t("rejected", "拒绝")];
  return {
    sides: differ(isDashed) ? sides : null,
    sources: differ(isHeldOut) ? [t("training", "训练"), t("held out", "留出")] : null,
  };
}

/** What a line of a chart is, in words; empty if there is nothing to tell apart. */
export function kindOf(field, fields) {
  const { sides, sources } = wordsFor(fields);
  const words = [sides?.[Number(isDashed(field))], sources?.[Number(isHeldOut(field))]];
  return words.filter(Boolean).join(t(", ", "，"));
}

/** The keys below a chart: [{ text, heldOut, dashed }]. */
export function legendOf(fields) {
  const { sides, sources } = wordsFor(fields);
  return [
    ...(sources ?? []).map((text, i) => ({ text, heldOut: i === 1, dashed: false })),
    ...(sides ?? []).map((text, i) => ({ text, heldOut: false, dashed: i === 1 })),
  ];
}
