// Asks for the server's key.

import { element, t } from "./common.js";

/** Makes the dialog; returns ask(refused) → a promise of the key, or null where none is given. */
export function keyDialog(dialog) {
  const box = element("input", {
    type: "password",
    id: "key_box",
    autocomplete: "off",
    required: true,
    pattern: "[!-~]+", // what a header can carry
  });
  const refusal = element("p", { class: "error", role: "alert" });
  dialog.setAttribute("aria-labelledby", "key_title");
  dialog.append(
    element(
      "form",
      { method: "dialog" },
      element("h2", { id: "key_title" }, t("This server wants a key", "此服务器需要密钥")),
      element("label", { for: box.id }, t("The key it was started with", "启动服务器时设置的密钥")),
      box,
      refusal,
      element(
        "footer",
        {},
        element("button", { type: "button", onclick: () => dialog.close("") }, t("Cancel", "取消")),
        element("button", { class: "primary", value: "given" }, t("Go on", "继续")),
      ),
    ),
  );
  return (refused) =>
    new Promise((resolve) => {
      refusal.textContent = refused ? t("That was not the key.", "密钥不正确。") : "";
      box.value = "";
      dialog.returnValue = "";
      dialog.addEventListener(
        "close",
        () => resolve(dialog.returnValue === "given" ? box.value.trim() || null : null),
        { once: true },
      );
      dialog.showModal();
    });
}
