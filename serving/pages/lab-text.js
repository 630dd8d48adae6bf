// The text as tokens: coloured, and one of them chosen by mouse, finger or arrow keys.

import { element, t } from "./common.js";
import { rounded } from "./lab-look.js";
import { showPiece, spoken } from "./lab-pieces.js";

export class TokenText {
  /** onchoose(place): a token was chosen; onhover(place or null): the mouse is over one. */
  constructor({ onchoose, onhover }) {
    this.onchoose = onchoose;
    this.tokens = [];
    this.chosen = null;
    this.root = element("div", {
      class: "tokens",
      tabindex: "0",
      role: "listbox",
      "aria-label": t("The text, token by token", "逐个词元显示的文本"),
      onkeydown: (event) => this.#onKey(event),
    });
    const placeOf = (event) => {
      const token = event.target.closest(".token");
      return token ? Number(token.dataset.place) : null;
    };
    this.root.addEventListener("click", (event) => {
      const place = placeOf(event);
      if (place !== null) onchoose(place);
    });
    this.root.addEventListener("mouseover", (event) => onhover(placeOf(event)));
    this.root.addEventListener("mouseleave", () => onhover(null));
  }

  /** Another text. The token behind the last one stands for what would come next. */
  show(look) {
    this.look = look;
    this.chosen = null;
    this.tokens = Array.from({ length: look.length + 1 }, (_, place) => this.#token(place));
    const children = [];
    this.tokens.forEach((token, place) => {
      const piece = look.pieceAt(place);
      // a line may end where a word begins, not between the tokens of a word
      if (piece === null || piece.control || /^\s/.test(piece.text ?? "")) {
        children.push(element("wbr"));
      }
      children.push(token);
      if (piece?.control) children.push(element("wbr"));
      if (piece?.text?.includes("\n")) children.push(element("br"));
    });
    this.root.replaceChildren(...children);
  }

  #token(place) {
    const piece = this.look.pieceAt(place);
    const nats = this.look.surprise(place);
    const cost = nats === null ? "" : t(`, ${rounded(nats)} nats`, `，${rounded(nats)} 奈特`);
    const token = element("span", {
      class: "token",
      id: `token-${place}`,
      role: "option",
      "aria-selected": "false",
      "aria-label": spoken(piece) + cost,
      "data-place": place,
    });
    return showPiece(token, piece);
  }

  /** Colour the tokens: kind as in lab-colours.js; shareOf(place) is 0 to 1, or null for none. */
  paint(kind, shareOf) {
    this.root.className = `tokens ramp-${kind}`;
    this.tokens.forEach((token, place) => {
      const share = place < this.look.length ? shareOf(place) : null;
      // in few steps: most weights are tiny, and what stays the same need not be drawn again
      const value = share === null ? "none" : share.toFixed(2);
      if (token.dataset.share === value) return;
      token.dataset.share = value;
      token.classList.toggle("uncoloured", share === null);
      token.style.setProperty("--share", share === null ? 0 : value);
    });
  }

  /** Underline the tokens, each with a colour: for what has no order. */
  stripe(colourOf) {
    this.root.className = "tokens striped";
    this.tokens.forEach((token, place) => {
      if (place >= this.look.length) return;
      token.classList.remove("uncoloured");
      delete token.dataset.share;
      token.style.setProperty("--stripe", colourOf(place));
    });
  }

  /** Outline the chosen token and those that are pointed at. */
  mark(chosen, pointed = []) {
    if (this.chosen !== chosen) {
      this.tokens[this.chosen]?.setAttribute("aria-selected", "false");
      this.tokens[chosen]?.setAttribute("aria-selected", "true");
      this.root.setAttribute("aria-activedescendant", `token-${chosen}`);
      this.chosen = chosen;
    }
    for (const token of this.root.querySelectorAll(".pointed")) token.classList.remove("pointed");
    for (const place of pointed) this.tokens[place]?.classList.add("pointed");
  }

  /** Scroll the text, where it scrolls by itself, to the chosen token; the page stays. */
  reveal() {
    const { root } = this;
    const top = this.tokens[this.chosen].offsetTop - root.offsetTop;
    const isSeen = top >= root.scrollTop && top + 30 <= root.scrollTop + root.clientHeight;
    if (!isSeen) root.scrollTop = top - root.clientHeight / 2;
  }

  #onKey(event) {
    const place = this.#target(event.key);
    if (place === null) return;
    event.preventDefault();
    this.onchoose(Math.max(0, Math.min(this.tokens.length - 1, place)));
    this.tokens[this.chosen].scrollIntoView({ block: "nearest" });
  }

  #target(key) {
    if (key === "ArrowLeft") return this.chosen - 1;
    if (key === "ArrowRight") return this.chosen + 1;
    if (key === "Home") return 0;
    if (key === "End") return this.tokens.length - 1;
    if (key === "ArrowUp") return this.#inLine(-1);
    if (key === "ArrowDown") return this.#inLine(1);
    return null;
  }

  /** The token of the line above (-1) or below (1) that is nearest to the chosen one. */
  #inLine(direction) {
    const here = this.tokens[this.chosen].getBoundingClientRect();
    let line = null;
    let best = null;
    for (let i = this.chosen + direction; i >= 0 && i < this.tokens.length; i += direction) {
      const box = this.tokens[i].getBoundingClientRect();
      if (direction * (box.top - here.top) < here.height / 2) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) > here.height / 2) break;
      const distance = Math.abs(box.left - here.left);
      if (best === null || distance < best.distance) best = { place: i, distance };
    }
    return best?.place ?? this.chosen;
  }
}
