// Text and elements. All that a trace says passes through `visible` and is set as text, never as markup.

const byId = (id) => document.getElementById(id);
const CLIP = 2000;

// Control characters (C0, DEL, C1), line separators, marks that turn the direction of text, and halves of surrogates.
const UNSEEN = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]|\p{Cs}/gu;

function visible(text) {
  return text.replace(UNSEEN, (sign) => {
    const code = sign.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    return code === 0x7f ? "\u2421" : `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}

// One character stays one character: columns of a screen must not move.
function visibleCells(text) {
  return text.replace(UNSEEN, (sign) => (sign.codePointAt(0) < 0x20 ? String.fromCodePoint(0x2400 + sign.codePointAt(0)) : "\ufffd"));
}

const oneLine = (text, most = 200) => visible(text.slice(0, most).replaceAll("\n", "\u23ce")) + (text.length > most ? "\u2026" : "");

function el(tag, kind = "", ...content) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.append(...content);
  return made;
}

function longText(text) {
  const shown = el("div", "text", visible(text.slice(0, CLIP)));
  if (text.length <= CLIP) return shown;
  const more = el("button", "", `show all ${count(text.length)} characters`);
  more.type = "button";
  more.addEventListener("click", () => { shown.textContent = visible(text); more.remove(); });
  return el("div", "", shown, more);
}

const count = (value) => value.toLocaleString("en");

function num(value) {
  if (typeof value !== "number") return visible(String(value));
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1e6 ? value.toFixed(1) : String(Number(value.toPrecision(6)));
}

function valueText(value) {
  if (typeof value === "string") return value;
  if (typeof value === "number") return num(value);
  if (value === null || typeof value !== "object" || Array.isArray(value)) return JSON.stringify(value);
  return Object.entries(value).map(([name, inner]) => `${name}: ${valueText(inner)}`).join("\n");
}

function table(pairs) {
  const body = el("tbody");
  for (const [name, value] of pairs) {
    const cell = el("td");
    cell.append(value instanceof Node ? value : longText(valueText(value)));
    body.append(el("tr", "", el("td", "", visible(name)), cell));
  }
  return el("table", "", body);
}

const lowerBound = (sorted, value) => {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1; else high = middle;
  }
  return low;
};
