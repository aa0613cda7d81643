// The terminal. A row is drawn again only where it changed.

const MOST_ROWS = 500, MOST_COLUMNS = 4000, INK = "0123456789abcdef";

// NetHack's usual colour of what a sign can be, where the trace does not say it.
const CLASS_INK = { "@": "f", ".": "7", "-": "7", "|": "7", "#": "8", "+": "3", "<": "f", ">": "f", "^": "d", "$": "b", "%": "3",
  "!": "d", "?": "f", "/": "6", "=": "6", "\"": "6", "(": "6", ")": "6", "[": "6", "*": "e", "`": "8", "{": "4", "}": "4", "_": "f",
  "\\": "b", d: "3", f: "f", F: "a", x: "5", r: "3", a: "b", b: "2", e: "c", h: "1", i: "2", j: "4", k: "d", n: "2", o: "b", q: "3",
  s: "8", u: "3", w: "1", y: "b", z: "7", D: "1", E: "e", G: "3", H: "1", L: "d", M: "f", N: "2", O: "4", T: "2", V: "1", Z: "f" };

function classInk(text, row, rows) {
  // The message and the status lines are words, and so is what lies over the map.
  if (row === 0 || row >= rows - 2 || /[A-Za-z]{3}/.test(text)) return "";
  return Array.from(text, (sign) => CLASS_INK[sign] ?? "7").join("");
}

function drawRow(target, text, ink, hit) {
  target.classList.toggle("hit", hit);
  const rest = text.length - MOST_COLUMNS;
  const cells = visibleCells(text.slice(0, MOST_COLUMNS));
  const parts = [];
  for (let from = 0; from < cells.length;) {
    const digit = ink[from] ?? "7";
    let to = from + 1;
    while (to < cells.length && (cells[to] === " " || (ink[to] ?? "7") === digit)) to++;
    const part = cells.slice(from, to);
    parts.push(digit === "7" || !INK.includes(digit) ? part : el("span", `i${digit}`, part));
    from = to;
  }
  target.replaceChildren(...parts);
  if (rest > 0) target.append(el("span", "dim", ` \u2026 and ${count(rest)} characters`));
}

class Terminal {
  constructor(target) {
    this.target = target;
    this.shown = [];
  }

  clear() {
    this.shown = [];
    this.target.replaceChildren();
  }

  // Draws rows of an episode. Rows that hold `query`, or are not those of `against`, are marked.
  draw(doc, rows, query, against = rows) {
    const shown = rows.slice(0, MOST_ROWS);
    while (this.target.children.length > shown.length) this.target.lastChild.remove();
    this.shown.length = shown.length;
    this.target.classList.toggle("prose", !doc.grid);
    shown.forEach((row, at) => {
      const differs = row !== against[at];
      const key = `${row} ${at} ${shown.length} ${differs} ${query}`;
      if (this.shown[at] === key) return;
      this.shown[at] = key;
      const line = this.target.children[at] ?? this.target.appendChild(el("div"));
      const text = doc.rows[row];
      const ink = doc.inks[row] || (doc.grid ? classInk(text, at, shown.length) : "");
      drawRow(line, text, ink, differs || (query !== "" && text.toLowerCase().includes(query)));
    });
    if (rows.length > MOST_ROWS) {
      this.target.append(el("div", "dim", `\u2026 and ${count(rows.length - MOST_ROWS)} lines`));
      this.shown.push("rest");
    }
  }

  // Draws text that is no screen.
  write(text) {
    this.clear();
    this.target.classList.add("prose");
    this.target.append(longText(text));
  }
}
