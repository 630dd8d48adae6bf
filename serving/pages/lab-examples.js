// Texts to begin with: each goes on as a small model expects, and then does not.

import { language } from "./common.js";

const TEXTS = {
  en: [
    "Once upon a time, there was a curious girl named Zoe. She did not like the night, because " +
      "her room was so dark. One night, she woke up and saw something tall in the corner. It " +
      "looked like a big monster. Dad came and sat down on the bed. He turned on the light. It " +
      "was only an elephant on a chair! Zoe began to laugh.",
    "The opposite of hot is cold. The opposite of early is late. The capital of France is Paris. " +
      "The capital of Italy is spaghetti. 3 + 4 = 7. 2 + 5 = 7. 6 + 1 = 9.",
  ],
  zh: [
    "从前，有一个好奇的小男孩，名字叫小杰。他什么都不怕，就是怕黑。一天晚上，小杰看见屋角有一个" +
      "高高的影子，好像一个巨人。爷爷马上来了，打开了灯。原来那只是椅子上的一头大象！小杰笑了起来。",
    "一年有四个季节：春天、夏天、秋天和冬天。一个星期有七天。法国的首都是巴黎。3加4等于7。5加2等于土豆。",
  ],
};

const CHATS = {
  en: { user: "What is 3 + 4?", assistant: "3 + 4 = 8." },
  zh: { user: "3加4等于几？", assistant: "3 + 4 = 8。" },
};

/** Example number i in the page's language, then in the other one. */
export function exampleText(i) {
  const [mine, other] = language() === "zh" ? ["zh", "en"] : ["en", "zh"];
  const all = [TEXTS[mine][0], TEXTS[other][0], TEXTS[mine][1], TEXTS[other][1]];
  return all[i % all.length];
}

export function exampleChat(i) {
  const languages = language() === "zh" ? ["zh", "en"] : ["en", "zh"];
  return CHATS[languages[i % 2]];
}
