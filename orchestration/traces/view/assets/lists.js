// A list that holds elements for the rows that are seen alone, whatever its length.

class VirtualList {
  constructor(target, height, fill, choose) {
    Object.assign(this, { target, height, fill, choose, length: 0, current: -1, rows: new Map() });
    this.spacer = target.appendChild(el("div"));
    target.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(target);
  }

  reset(length) {
    this.length = length;
    this.spacer.style.height = `${length * this.height}px`;
    this.refresh();
  }

  // Fills all rows again.
  refresh() {
    for (const row of this.rows.values()) row.remove();
    this.rows.clear();
    this.draw();
  }

  select(at) {
    this.rows.get(this.current)?.classList.remove("current");
    this.current = at;
    const top = at * this.height, seen = this.target.clientHeight;
    if (top < this.target.scrollTop || top + this.height > this.target.scrollTop + seen) {
      this.target.scrollTop = top - Math.max(0, seen - this.height) / 2;
    }
    this.draw();
  }

  draw() {
    const from = Math.max(0, Math.floor(this.target.scrollTop / this.height) - 4);
    const to = Math.min(this.length, from + Math.ceil(this.target.clientHeight / this.height) + 9);
    for (const [at, row] of this.rows) {
      if (at >= from && at < to) continue;
      row.remove();
      this.rows.delete(at);
    }
    for (let at = from; at < to; at++) {
      let row = this.rows.get(at);
      if (!row) {
        row = el("div", "row");
        row.setAttribute("role", "option");
        row.style.top = `${at * this.height}px`;
        row.style.height = `${this.height}px`;
        row.addEventListener("click", () => this.choose(at));
        this.fill(row, at);
        this.rows.set(at, row);
        this.target.append(row);
      }
      row.classList.toggle("current", at === this.current);
    }
  }
}
