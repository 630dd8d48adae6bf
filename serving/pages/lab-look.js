// One answer of POST /lab/look, asked by place: what was said *of* a token stands one place before
// it, and everything that the page shows is of a token.

export class Look {
  constructor(answer) {
    this.answer = answer;
    this.tokens = answer.tokens;
    this.length = answer.tokens.length;
    this.layers = answer.layers;
    this.heads = answer.heads;
    this.experts = answer.experts;
  }

  /** How to show a token: {text, control?} or {bytes}. */
  piece(id) {
    return this.answer.pieces[id];
  }

  /** The piece at a place; null behind the last one, where the text has ended. */
  pieceAt(place) {
    return place < this.length ? this.piece(this.tokens[place]) : null;
  }

  /** -ln p in nats; null for the first token, which nothing foretold, and behind the last. */
  surprise(place) {
    return this.answer.surprise[place - 1] ?? null;
  }

  /** 1 where the token was held for the likeliest. */
  rank(place) {
    return this.answer.rank[place - 1] ?? null;
  }

  /** What was likeliest at a place, [{id, p}], by all layers or by those up to one of them. */
  likeliest(place, layer = null) {
    const reading = layer === null ? this.answer : this.answer.lens[layer];
    if (place < 1 || place > this.length) return [];
    const probabilities = reading.probs[place - 1];
    return reading.ids[place - 1].map((id, i) => ({ id, p: probabilities[i] }));
  }

  /** The token's probability by the layers up to one of them; null where there is none. */
  probabilityInLens(layer, place) {
    const nats = this.answer.lens[layer].surprise[place - 1] ?? null;
    return nats === null ? null : Math.exp(-nats);
  }

  /** How much a token looks at each token up to itself; [] where that was not asked for. */
  attention(place) {
    return this.answer.attention?.[place] ?? [];
  }

  /** [{expert, weight}] of a token in a layer, the likeliest first. */
  expertsOf(layer, place) {
    const weights = this.experts.weights[layer][place];
    return this.experts.ids[layer][place].map((expert, i) => ({ expert, weight: weights[i] }));
  }

  /** The text of the whole characters that a token is a part of; undefined for most. */
  characters(place) {
    return this.answer.characters[place];
  }

  /** The place of the most surprising token: of a chat's answer, and one that begins a word. */
  mostSurprising() {
    if (this.length < 2) return this.length;
    const all = this.tokens.map((_, place) => place).slice(1);
    const answer = all.filter((place) => this.answer.trained?.[place]);
    const places = answer.length ? answer : all;
    const cost = (place) => {
      const nats = this.surprise(place) ?? -1;
      return /^[\s\p{Lo}\p{N}]/u.test(this.pieceAt(place).text ?? "") ? nats + 1000 : nats;
    };
    return places.reduce((best, place) => (cost(place) > cost(best) ? place : best));
  }
}

/** 0.4321 → "43%": two digits, and no more of a small one than that it is small. */
export function percent(p) {
  if (p == null) return "–";
  if (p === 0) return "0%";
  if (p > 0.9995 && p < 1) return ">99.9%";
  if (p >= 0.0995) return `${(100 * p).toFixed(p > 0.99 ? 1 : 0)}%`.replace("100.0", "100");
  if (p >= 0.00995) return `${(100 * p).toFixed(1)}%`;
  if (p >= 0.0001) return `${(100 * p).toFixed(2)}%`;
  return "<0.01%";
}

/** 1.23456 → "1.23", 12345.6 → "12,346". */
export function rounded(value, digits = 2) {
  if (value == null) return "–";
  return value < 100 ? value.toFixed(digits) : Math.round(value).toLocaleString("en");
}
