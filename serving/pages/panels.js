// Which numbers share a chart, what the chart is called, and how each number is drawn.

import { t } from "./common.js";

const LEARNED = () => t("What is learned", "学到了什么");
const STEPS = () => t("The steps", "更新步");
const MACHINE = () => t("Speed and memory", "速度与内存");

// in the order of the page: name, title, heading, names of the numbers (held-out ones besides)
const PANELS = [
  ["loss", () => t("Loss", "损失"), LEARNED, ["loss"]],
  ["bits", () => t("Bits per byte", "每字节比特数"), LEARNED, ["bits_per_byte"]],
  ["exact", () => t("Exact answers (share)", "完全正确的回答（比例）"), LEARNED, ["exact_match"]],
  ["accuracy", () => t("Ranked right (share)", "排序正确（比例）"), LEARNED, ["accuracy"]],
  ["margin", () => t("Reward margin", "奖励差"), LEARNED, ["margin"]],
  [
    "reward",
    () => t("Rewards", "奖励"),
    LEARNED,
    ["chosen_reward", "rejected_reward", "desirable_reward", "undesirable_reward"],
  ],
  [
    "log_prob",
    () => t("Log-probability of answers (nats)", "回答的对数概率（nats）"),
    LEARNED,
    ["chosen_log_prob", "rejected_log_prob", "desirable_log_prob", "undesirable_log_prob"],
  ],
  ["kl", () => t("KL from the reference (nats)", "与参考模型的 KL（nats）"), LEARNED, ["kl"]],
  ["lr", () => t("Learning rate", "学习率"), STEPS, ["lr"]],
  ["grad_norm", () => t("Gradient norm", "梯度范数"), STEPS, ["grad_norm"]],
  [
    "max_expert_load",
    () => t("Load of the busiest expert (1: even)", "最忙专家的负载（1 为均匀）"),
    STEPS,
    ["max_expert_load"],
  ],
  ["aux_loss", () => t("Load-balancing loss", "负载均衡损失"), STEPS, ["aux_loss"]],
  ["loss_scale", () => t("Loss scale (float16)", "损失缩放（float16）"), STEPS, ["loss_scale"]],
  [
    "speed",
    () => t("Speed (a second)", "速度（每秒）"),
    MACHINE,
    ["tokens_per_s", "pairs_per_s", "examples_per_s"],
  ],
  ["mfu", () => t("MFU (share of the peak rate)", "MFU（占峰值算力的比例）"), MACHINE, ["mfu"]],
  ["data_wait", () => t("Waiting for data (share)", "等待数据（比例）"), MACHINE, ["data_wait"]],
  ["memory_gb", () => t("Memory (GB)", "内存（GB）"), MACHINE, ["memory_gb"]],
  ["minutes_left", () => t("Minutes left", "剩余分钟"), MACHINE, ["minutes_left"]],
];

/** A number's name without what says that it is of held-out data. */
function base(field) {
  return field.startsWith("val_") ? field.slice(4) : field;
}

/**
 * The charts for the numbers that some runs have: [{ id, title, heading, fields }] in the order of
 * the page. A number that nobody has told this page of gets a chart of its own.
 */
export function panelsFor(fields) {
  const left = new Set(fields);
  const panels = [];
  for (const [id, title, heading, names] of PANELS) {
    const own = [...left].filter((field) => names.includes(base(field)));
    own.sort((a, b) => isHeldOut(a) - isHeldOut(b) || names.indexOf(base(a)) - names.indexOf(base(b)));
    own.forEach((field) => left.delete(field));
    if (own.length) panels.push({ id, title: title(), heading: heading(), fields: own });
  }
  const others = new Map();
  for (const field of [...left].sort()) {
    others.set(base(field), [...(others.get(base(field)) ?? []), field]);
  }
  for (const [name, own] of others) {
    own.sort((a, b) => isHeldOut(a) - isHeldOut(b));
    panels.push({ id: `other.${name}`, title: name, heading: t("Other", "其他"), fields: own });
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

/** What tells a chart's lines apart, in words; empty if there is nothing to tell apart. */
export function kindOf(field, fields) {
  const words = [];
  if (fields.some(isDashed) && fields.some((name) => !isDashed(name))) {
    const [good, bad] = base(field).includes("desirable")
      ? [t("desirable", "合意"), t("undesirable", "不合意")]
      : [t("chosen", "选中"), t("rejected", "拒绝")];
    words.push(isDashed(field) ? bad : good);
  }
  if (fields.some(isHeldOut) && fields.some((name) => !isHeldOut(name))) {
    words.push(isHeldOut(field) ? t("held out", "留出") : t("training", "训练"));
  }
  return words.join(t(", ", "，"));
}
