// The lanes: marks to scrub over, rewards and credit, agents with the edges between their events. One axis for all, of
// frames; `from` and `to` are what of it is seen. The canvas is drawn when that changes, and a step only moves the head.

const MARKS_HEIGHT = 24, REWARD_HEIGHT = 34, AGENT_HEIGHT = 24, MOST_EDGES = 3000, LEAST_SPAN = 10;
const COLORS = { reward: "#7bd88f", loss: "#ff7b72", label: "#6cb6ff", error: "#ff6a5e", divergence: "#e58fff", match: "#ffd866" };
const KIND_COLORS = { env_reset: "#ffffff", env_step: "#59616e", llm_call: "#ffb86b", annotation: "#6cb6ff", reward: "#7bd88f",
  weights_update: "#c3a6ff", spawn: "#5be3c0", delegate: "#f2cc60", message: "#8fd3ff", tool_call: "#ff9db1", tool_result: "#d98cff",
  return: "#f2cc60", aggregate: "#f2cc60", stop: "#ff9b52", error: "#ff6a5e" };

class Lanes {
  constructor(seek, choose) {
    Object.assign(this, { seek, choose, doc: null, from: 0, to: 1, frame: 0, wait: 0 });
    this.canvas = byId("canvas");
    this.field = byId("field");
    new ResizeObserver(() => this.redraw()).observe(this.field);
    const move = (event) => { if (event.buttons & 1) this.seek(this.frameAt(event.offsetX)); };
    this.field.addEventListener("pointerdown", (event) => {
      const hit = this.eventAt(event.offsetX, event.offsetY);
      this.field.setPointerCapture(event.pointerId);
      if (hit !== null) this.choose(hit); else move(event);
    });
    this.field.addEventListener("pointermove", (event) => {
      move(event);
      const hit = event.buttons ? null : this.eventAt(event.offsetX, event.offsetY);
      this.field.title = hit === null ? "" : eventTitle(this.doc, hit);
    });
    this.field.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.altKey) return;
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? 0.8 : 1.25);
    }, { passive: false });
  }

  show(doc) {
    Object.assign(this, { doc, from: 0, to: Math.max(1, doc.frames.length), frame: 0 });
    this.fillGutter();
    this.redraw();
  }

  get height() { return MARKS_HEIGHT + this.doc.lanes.length * REWARD_HEIGHT + this.doc.agents.length * AGENT_HEIGHT; }

  fillGutter() {
    const row = (height, name, note, kind = "") => {
      const made = el("div", "", el("span", kind, oneLine(name)));
      if (note) made.append(el("span", "dim", note));
      made.style.height = `${height}px`;
      made.title = oneLine(name);
      return made;
    };
    const lanes = this.doc.lanes.map((lane) => {
      const sum = lane.points.reduce((total, [, value]) => total + value, 0);
      return row(REWARD_HEIGHT, laneName(lane), `\u03a3 ${num(sum)}`, lane.part === "total" ? "told" : "");
    });
    const agents = this.doc.agents.map((agent) => row(AGENT_HEIGHT, agent, ""));
    byId("gutter").replaceChildren(row(MARKS_HEIGHT, `${count(this.doc.marks.any.length)} marks`, "", "dim"), ...lanes, ...agents);
  }

  x(place) { return (place - this.from) / (this.to - this.from) * this.width; }
  frameAt(x) {
    const at = Math.floor(this.from + x / this.width * (this.to - this.from));
    return Math.min(this.doc.frames.length - 1, Math.max(0, at));
  }
  place(event) {
    const frame = this.doc.events[event][FRAME];
    return frame + (this.doc.slot[event] + 0.5) / Math.max(1, this.doc.eventsOf[frame].length);
  }
  laneTop(agent) { return MARKS_HEIGHT + this.doc.lanes.length * REWARD_HEIGHT + agent * AGENT_HEIGHT; }

  // The event drawn nearest to a point, not farther than 6 pixels.
  eventAt(x, y) {
    if (!this.doc) return null;
    const agent = Math.floor((y - this.laneTop(0)) / AGENT_HEIGHT);
    if (agent < 0 || agent >= this.doc.agents.length) return null;
    const reach = Math.ceil(6 / this.width * (this.to - this.from)), middle = this.frameAt(x);
    let best = null, distance = 6;
    for (let frame = Math.max(0, middle - reach); frame <= Math.min(this.doc.frames.length - 1, middle + reach); frame++) {
      for (const event of this.doc.eventsOf[frame]) {
        const away = Math.abs(this.x(this.place(event)) - x);
        if (this.doc.events[event][AGENT] === agent && away <= distance) { best = event; distance = away; }
      }
    }
    return best;
  }

  zoom(factor) {
    const most = Math.max(1, this.doc.frames.length);
    const span = Math.min(most, Math.max(Math.min(LEAST_SPAN, most), (this.to - this.from) * factor));
    const share = (this.frame + 0.5 - this.from) / (this.to - this.from);
    this.see(this.frame + 0.5 - span * Math.min(1, Math.max(0, share)), span);
  }

  see(from, span) {
    const most = Math.max(1, this.doc.frames.length);
    this.from = Math.max(0, Math.min(from, most - span));
    this.to = this.from + span;
    this.redraw();
  }

  // Moves the head, and what is seen where the head would leave it.
  head(frame) {
    this.frame = frame;
    const span = this.to - this.from;
    if (frame < Math.floor(this.from) || frame + 1 > Math.ceil(this.to)) this.see(frame - span / 2, span);
    byId("head").style.transform = `translateX(${this.x(frame + 0.5).toFixed(1)}px)`;
    this.field.setAttribute("aria-valuenow", String(frame));
    this.field.setAttribute("aria-valuemax", String(this.doc.frames.length - 1));
  }

  redraw() {
    if (this.wait || !this.doc) return;
    this.wait = requestAnimationFrame(() => { this.wait = 0; this.draw(); this.head(this.frame); });
  }

  get width() { return Math.max(1, this.field.clientWidth); }

  draw() {
    const ratio = window.devicePixelRatio || 1, { width, height, doc } = this;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.height = `${height}px`;
    const pen = this.canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const rule = (y) => { pen.fillStyle = "#22262d"; pen.fillRect(0, y - 1, width, 1); };
    this.drawMarks(pen, rule);
    doc.lanes.forEach((lane, at) => this.drawReward(pen, lane, MARKS_HEIGHT + at * REWARD_HEIGHT, rule));
    doc.agents.forEach((_, agent) => rule(this.laneTop(agent) + AGENT_HEIGHT));
    this.drawEdges(pen);
    this.drawEvents(pen);
  }

  drawMarks(pen, rule) {
    const thick = Math.max(1, Math.min(8, this.width / (this.to - this.from) - 1));
    ["reward", "label", "match", "error", "divergence"].forEach((kind, at) => {
      const marks = this.doc.marks[kind];
      pen.fillStyle = COLORS[kind];
      let last = -1;
      for (let i = lowerBound(marks, Math.floor(this.from)); i < marks.length && marks[i] < this.to; i++) {
        const x = Math.round(this.x(marks[i] + 0.5) - thick / 2);
        if (x !== last) pen.fillRect(x, 2 + at * 4, thick, 3);
        last = x;
      }
    });
    rule(MARKS_HEIGHT);
  }

  drawReward(pen, lane, top, rule) {
    const most = lane.points.reduce((top, [, value]) => Math.max(top, Math.abs(value)), 0) || 1;
    const gains = lane.points.some(([, value]) => value > 0), losses = lane.points.some(([, value]) => value < 0);
    const zero = top + (gains && losses ? REWARD_HEIGHT / 2 : losses ? 3 : REWARD_HEIGHT - 4);
    const reach = (gains && losses ? REWARD_HEIGHT / 2 : REWARD_HEIGHT - 3) - 4;
    pen.fillStyle = "#3a404b";
    pen.fillRect(0, zero, this.width, 1);
    // Of the values that fall on one column of pixels the largest and the least are drawn.
    const columns = new Map();
    for (let i = lowerBound(lane.points.map(([frame]) => frame), Math.floor(this.from)); i < lane.points.length; i++) {
      const [frame, value] = lane.points[i];
      if (frame >= this.to) break;
      const column = Math.round(this.x(frame + 0.5)), found = columns.get(column) ?? [0, 0];
      columns.set(column, [Math.min(found[0], value), Math.max(found[1], value)]);
    }
    const thick = Math.max(1, Math.min(6, this.width / (this.to - this.from) - 1));
    for (const [column, [least, greatest]] of columns) {
      for (const value of [least, greatest]) {
        const size = Math.max(1, Math.abs(value) / most * reach);
        pen.fillStyle = value > 0 ? COLORS.reward : COLORS.loss;
        if (value) pen.fillRect(column - thick / 2, value > 0 ? zero - size : zero, thick, size);
      }
    }
    rule(top + REWARD_HEIGHT);
  }

  seen() {
    const first = Math.max(0, Math.floor(this.from)), last = Math.min(this.doc.frames.length, Math.ceil(this.to));
    return this.doc.eventsOf.slice(first, last).flat();
  }

  drawEvents(pen) {
    const middle = AGENT_HEIGHT / 2, drawn = new Set();
    for (const event of this.seen()) {
      const [kind, agent] = this.doc.events[event], x = Math.round(this.x(this.place(event))), key = `${agent} ${x} ${kind}`;
      if (drawn.has(key)) continue;
      drawn.add(key);
      const size = kind === "env_step" ? 2 : 3.5;
      pen.fillStyle = KIND_COLORS[kind] ?? "#c8c8c8";
      pen.beginPath();
      pen.arc(x, this.laneTop(agent) + middle, size, 0, 7);
      pen.fill();
    }
  }

  // Edges between events of different agents, and to the agent that an event names (spawned, delegated or written to).
  drawEdges(pen) {
    const { doc } = this, middle = AGENT_HEIGHT / 2;
    pen.lineWidth = 1;
    let drawn = 0;
    for (const event of this.seen()) {
      const [, agent, , , parents, fields] = doc.events[event], x = this.x(this.place(event)), y = this.laneTop(agent) + middle;
      for (const parent of parents) {
        if (doc.events[parent][AGENT] === agent || drawn >= MOST_EDGES) continue;
        this.edge(pen, this.x(this.place(parent)), this.laneTop(doc.events[parent][AGENT]) + middle, x, y, KIND_COLORS[doc.events[parent][KIND]]);
        drawn++;
      }
      const other = doc.agents.indexOf(fields.child ?? fields.to);
      if (other >= 0 && other !== agent && drawn < MOST_EDGES) {
        this.edge(pen, x, y, x + 8, this.laneTop(other) + middle, KIND_COLORS[doc.events[event][KIND]]);
        drawn++;
      }
    }
  }

  edge(pen, fromX, fromY, toX, toY, color) {
    pen.strokeStyle = pen.fillStyle = color ?? "#8a919e";
    pen.globalAlpha = 0.75;
    pen.beginPath();
    pen.moveTo(fromX, fromY);
    pen.bezierCurveTo(fromX + 6, (fromY + toY) / 2, toX - 6, (fromY + toY) / 2, toX, toY);
    pen.stroke();
    const way = Math.sign(toY - fromY) || 1;
    pen.beginPath();
    pen.moveTo(toX, toY - way * 3);
    pen.lineTo(toX - 3, toY - way * 8);
    pen.lineTo(toX + 3, toY - way * 8);
    pen.fill();
    pen.globalAlpha = 1;
  }
}

function laneName(lane) {
  const rest = [lane.family, lane.unit === "turn" ? "" : lane.unit, lane.part === "raw" ? "" : lane.part];
  return [lane.source, ...rest].filter(Boolean).join(" \u00b7 ");
}

function eventTitle(doc, at) {
  const [kind, agent, time] = doc.events[at];
  return `${oneLine(kind)} \u00b7 ${oneLine(doc.agents[agent])} \u00b7 ${time.toFixed(3)} s`;
}
