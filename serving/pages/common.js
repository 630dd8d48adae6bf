// What all pages share: the bar at the top, two languages, dark and light, and asking the server.

const PAGES = [
  ["/", "Chat", "对话"],
  ["/runs", "Training", "训练"],
  ["/lab", "Look inside", "内部"],
];

/** The language of the page, "en" or "zh": what was chosen, else the browser's. */
export function language() {
  const chosen = stored("language");
  if (chosen === "en" || chosen === "zh") return chosen;
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

/** One of two texts, by the language of the page. */
export function t(english, chinese) {
  return language() === "zh" ? chinese : english;
}

/** What this browser keeps under a name, or null: a page works without storage, too. */
export function stored(name) {
  try {
    return localStorage.getItem(`minimind.${name}`);
  } catch {
    return null;
  }
}

/** Keep a text in this browser; false where it refuses (full, or private). */
export function store(name, text) {
  try {
    localStorage.setItem(`minimind.${name}`, text);
    return true;
  } catch {
    return false;
  }
}

/** An element with attributes (on…: listeners) and children; texts become text, never HTML. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** JSON from the server; an Error with its message where it refuses. */
export async function ask(path, options = {}) {
  const response = await fetch(path, options);
  const text = await response.text();
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    // not JSON: told below
  }
  if (!response.ok) throw new Error(body?.error?.message ?? `${response.status}: ${path}`);
  return body;
}

function setTheme(theme) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = theme ?? (dark ? "dark" : "light");
}

/** Draw the bar into the page's <header class="bar">. */
export function drawBar() {
  document.documentElement.lang = language();
  const links = PAGES.map(([path, english, chinese]) =>
    element(
      "a",
      { href: path, "aria-current": path === location.pathname ? "page" : null },
      t(english, chinese),
    ),
  );
  const otherLanguage = language() === "zh" ? "en" : "zh";
  document.querySelector("header.bar").replaceChildren(
    element("span", { class: "name" }, "MiniMind"),
    element("nav", { "aria-label": t("Pages", "页面") }, ...links),
    element(
      "button",
      {
        class: "quiet",
        lang: otherLanguage,
        onclick: () => {
          store("language", otherLanguage);
          location.reload();
        },
      },
      otherLanguage === "zh" ? "中文" : "English",
    ),
    element(
      "button",
      {
        class: "quiet",
        "aria-label": t("Dark or light", "深色或浅色"),
        title: t("Dark or light", "深色或浅色"),
        onclick: () => {
          const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
          store("theme", next);
          setTheme(next);
        },
      },
      "◐",
    ),
  );
}

setTheme(stored("theme"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  setTheme(stored("theme")),
);
