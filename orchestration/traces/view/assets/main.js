// What ties it together: where one is, the keys, playing, and loading again while the run goes.

const KEYS = [["\u2190 \u2192", "a step back, on; with Shift ten"], ["Home End", "first, last"], ["space", "play, stop"],
  ["[ ]", "slower, faster"], ["j k", "next, previous episode"], ["n p", "next, previous of what is chosen beside the search"],
  ["r l e d", "next reward, label, error, divergence; with Shift the previous one"], ["/", "search; Enter goes to the next match"],
  ["+ \u2212 0", "zoom the lanes in, out, whole"], ["f", "stop and resume loading again (--follow)"], ["?", "these keys"]];
const JUMPS = { r: "reward", l: "label", e: "error", d: "divergence" };
const MOST_SPEED = 1000;

const view = { episode: -1, doc: null, frame: 0, playing: false, speed: 10, query: "", chosen: -1, live: true, drawn: -1 };
const terminal = new Terminal(byId("terminal")), other = new Terminal(byId("other-terminal"));
const lanes = new Lanes((frame) => { stop(); go(frame); }, chooseEvent);
const episodes = new VirtualList(byId("episodes"), 38, fillEpisode, (at) => load(at));
const steps = new VirtualList(byId("steps"), 20, fillStep, (at) => { stop(); go(at); });

function fillEpisode(row, at) {
  const one = index.episodes[at];
  const how = one.error ? "bad" : one.success ? "good" : "dim";
  const told = one.success === null || one.error ? one.ending : one.success ? "success" : "no success";
  row.append(el("div", "", oneLine(one.episode)), el("div", "dim", `${count(one.frames)} ${one.scope === "run" ? "events" : "frames"}`,
    one.return === null || one.scope === "run" ? "" : ` \u00b7 ${num(one.return)}`, " \u00b7 ", el("span", how, told),
    el("span", "bad", one.divergences ? " \u00b7 diverged" : "")));
  row.title = `${oneLine(one.episode)} \u00b7 ${oneLine(one.env)} \u00b7 policy v${one.policy}`;
}

function fillStep(row, at) {
  const { doc } = view, event = eventOf(doc, at), fields = event[FIELDS], caption = captionOf(doc, at);
  if (event[KIND] === "env_step") {
    const paid = fields.reward ? `${fields.reward > 0 ? "+" : ""}${num(fields.reward)}` : "";
    row.append(el("span", "dim", String(fields.step).padStart(5)), ` ${oneLine(String(fields.action_name), 24).padEnd(8)} `,
      el("span", fields.reward > 0 ? "good" : "bad", paid));
  } else {
    row.append(el("span", "dim", event[TIME].toFixed(2).padStart(6)), ` ${oneLine(event[KIND], 24)} `, el("span", "dim", oneLine(doc.agents[event[AGENT]], 40)));
  }
  if (caption) row.append(" ", el("span", doc.labelsOf.has(at) ? "told" : "dim", oneLine(caption, 80)));
  row.classList.toggle("hit", view.query !== "" && doc.marks.match[lowerBound(doc.marks.match, at)] === at);
}

async function load(at, frame = 0) {
  stop();
  view.episode = at;
  episodes.select(at);
  let doc;
  try {
    doc = await openEpisode(at);
  } catch (error) {
    notice(`This episode cannot be shown: ${error.message}`);
    return;
  }
  if (view.episode !== at) return; // another one was chosen meanwhile
  Object.assign(view, { doc, chosen: -1, drawn: -1 });
  terminal.clear();
  byId("subtitle").textContent = visible(`${doc.header.episode_id} \u00b7 ${doc.header.env_id} \u00b7 ${doc.header.run}`);
  byId("steps-title").textContent = `${count(doc.frames.length)} ${doc.stepped ? "steps (with the reset)" : "events"}`;
  doc.marks.match = search(doc, view.query);
  showMatches();
  lanes.show(doc);
  steps.reset(doc.frames.length);
  showEpisode(doc);
  if (doc.frames.length) go(frame); else notice("This trace has no events.");
}

function go(frame) {
  if (!view.doc?.frames.length) return;
  const to = Math.min(view.doc.frames.length - 1, Math.max(0, frame));
  if (to !== view.frame) view.chosen = -1;
  view.frame = to;
  if (view.drawn === -1) draw(); else if (!view.wait) view.wait = requestAnimationFrame(draw);
}

function draw() {
  view.wait = 0;
  const { doc, frame } = view;
  view.drawn = frame;
  const [screen, kept] = screenOf(doc, frame);
  if (screen) terminal.draw(doc, screen, view.query.toLowerCase()); else terminal.write(eventAsText(doc, frame));
  byId("terminal").classList.toggle("kept", screen !== null && !kept);
  drawDivergence(doc, frame);
  const fields = eventOf(doc, frame)[FIELDS];
  const step = doc.stepped ? (fields.step === undefined ? "reset" : `step ${fields.step}`) : "event";
  byId("position").textContent = `${step} \u00b7 ${count(frame + 1)} of ${count(doc.frames.length)}`;
  lanes.head(frame);
  steps.select(frame);
  showFacts(doc, frame);
  showCaption(doc, frame);
  showLabels(doc, frame);
  showRewards(doc, frame);
  showEvents(doc, frame, view.chosen, chooseEvent);
  document.body.dataset.frame = String(frame);
  document.body.dataset.episode = String(view.episode);
  remember();
}

function eventAsText(doc, frame) {
  const [kind, agent, , , , fields, texts] = eventOf(doc, frame);
  const lines = Object.entries(fields).filter(([, value]) => value !== null && value !== "").map(([name, value]) => `${name}: ${valueText(value)}`);
  return [`${kind} \u00b7 ${doc.agents[agent]}`, "", ...lines, ...Object.entries(texts).map(([name, text]) => `\n${name}:\n${doc.texts[text]}`)].join("\n");
}

function drawDivergence(doc, frame) {
  const found = doc.divergences.find((mark) => mark.frame === frame);
  const [screen, kept] = screenOf(doc, frame), ended = frame === doc.frames.length - 1 ? doc.end?.error : null;
  const told = [found && `The replay diverged here: ${found.reason}`, ended && `The episode ended with an error: ${ended}`,
    doc.stepped && !kept && "No screen was kept of this step; the one before is shown."].filter(Boolean);
  notice(told.join("\n"));
  const both = found !== undefined && found.screen >= 0;
  byId("other").hidden = !both;
  byId("screens").classList.toggle("both", both);
  if (both) other.draw(doc, doc.screens[found.screen], "", kept ? screen : undefined);
}

function notice(text) {
  byId("notice").hidden = !text;
  byId("notice").textContent = visible(text);
}

function chooseEvent(at) {
  stop();
  view.frame = view.doc.events[at][FRAME];
  view.chosen = at;
  draw();
}

function jump(kind, way) {
  if (!view.doc) return;
  byId("kind").value = kind;
  const marks = view.doc.marks[kind];
  const at = way > 0 ? lowerBound(marks, view.frame + 1) : lowerBound(marks, view.frame) - 1;
  stop();
  if (at >= 0 && at < marks.length) go(marks[at]);
  byId("matches").textContent = marks.length ? `${count(Math.min(marks.length, Math.max(0, at) + 1))} of ${count(marks.length)}` : "none";
}

function showMatches() {
  byId("matches").textContent = view.query ? `${count(view.doc.marks.match.length)} found` : "";
}

function find(query) {
  view.query = query;
  if (!view.doc) return;
  view.doc.marks.match = search(view.doc, query);
  byId("kind").value = query ? "match" : "any";
  lanes.redraw();
  steps.refresh();
  showMatches();
  draw();
}

// Playing: as many steps as time has passed for, drawn once for each frame of the display.

function play() {
  if (!view.doc || view.playing) return;
  if (view.frame >= view.doc.frames.length - 1) go(0);
  view.playing = true;
  byId("play").textContent = "\u275a\u275a stop";
  let due = 0, before = performance.now();
  const tick = (now) => {
    if (!view.playing) return;
    due += (now - before) / 1000 * view.speed;
    before = now;
    const whole = Math.floor(due);
    due -= whole;
    if (whole) go(view.frame + whole);
    if (view.frame >= view.doc.frames.length - 1) stop(); else requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}

function stop() {
  view.playing = false;
  byId("play").textContent = "\u25b6 play";
}

function setSpeed(value) {
  view.speed = Math.min(MOST_SPEED, Math.max(1, Math.round(value) || 1));
  byId("speed").value = String(view.speed);
  remember();
}

// Where one is stands in the address, so that loading again, and a copied address, keep the place.

const nameOf = (one) => (one ? `${one.run}/${one.episode}` : "");
let remembering = 0;
function remember() {
  clearTimeout(remembering);
  remembering = setTimeout(() => history.replaceState(null, "", `#${address()}`), 250);
}

function address() {
  const place = { e: nameOf(index.episodes[view.episode]), at: view.frame, speed: view.speed };
  if (view.query) place.q = view.query;
  if (view.doc && lanes.to - lanes.from < view.doc.frames.length) Object.assign(place, { from: lanes.from.toFixed(2), span: (lanes.to - lanes.from).toFixed(2) });
  if (!view.live) place.live = 0;
  return new URLSearchParams(place).toString();
}

async function recall() {
  const place = new URLSearchParams(location.hash.slice(1));
  setSpeed(Number(place.get("speed") ?? view.speed));
  view.query = place.get("q") ?? "";
  byId("search").value = view.query;
  view.live = place.get("live") !== "0";
  const found = index.episodes.findIndex((one) => nameOf(one) === place.get("e"));
  await load(Math.max(0, found), found < 0 ? 0 : Number(place.get("at")) || 0);
  if (place.has("span") && view.doc) {
    lanes.see(Number(place.get("from")) || 0, Math.min(view.doc.frames.length, Math.max(1, Number(place.get("span")) || 1)));
  }
}

function follow() {
  const button = byId("live"), say = () => { button.textContent = view.live ? "\u25cf following" : "\u25cb not following"; };
  button.hidden = false;
  button.addEventListener("click", () => { view.live = !view.live; say(); remember(); });
  say();
  setInterval(() => {
    const busy = view.playing || document.hidden || byId("help").open || document.activeElement === byId("search");
    if (!view.live || busy) return;
    if (index.episodes.length) history.replaceState(null, "", `#${address()}`);
    location.reload();
  }, index.reload_s * 1000);
}

function key(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || byId("help").open) return;
  const typing = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    if (event.key === "Enter" && event.target === byId("search")) { jump("match", event.shiftKey ? -1 : 1); event.target.blur(); }
    return;
  }
  const step = event.shiftKey ? 10 : 1, low = event.key.toLowerCase();
  const acts = {
    ArrowLeft: () => { stop(); go(view.frame - step); }, ArrowRight: () => { stop(); go(view.frame + step); },
    Home: () => { stop(); go(0); }, End: () => { stop(); go(Infinity); }, " ": () => (view.playing ? stop() : play()),
    "[": () => setSpeed(view.speed / 2), "]": () => setSpeed(view.speed * 2),
    j: () => view.episode + 1 < index.episodes.length && load(view.episode + 1), k: () => view.episode > 0 && load(view.episode - 1),
    n: () => jump(byId("kind").value, 1), p: () => jump(byId("kind").value, -1), "/": () => byId("search").focus(),
    "+": () => lanes.zoom(0.5), "=": () => lanes.zoom(0.5), "-": () => lanes.zoom(2), 0: () => lanes.zoom(Infinity),
    f: () => index.reload_s && byId("live").click(), "?": () => byId("help").showModal(),
  };
  const act = acts[event.key] ?? (low in JUMPS ? () => jump(JUMPS[low], event.shiftKey ? -1 : 1) : null);
  if (!act) return;
  event.preventDefault();
  if (view.doc || event.key === "?" || event.key === "f") act();
  if ("+-=0".includes(event.key)) remember();
}

function begin() {
  byId("title").textContent = visible(index.title);
  document.title = visible(index.title);
  byId("count").textContent = `${count(index.episodes.length)} ${index.episodes.length === 1 ? "trace" : "traces"}`
    + (index.left_out ? `, ${count(index.left_out)} older left out` : "");
  if (index.unreadable.length) {
    const bad = byId("unreadable");
    bad.hidden = false;
    bad.querySelector("summary").textContent = `${count(index.unreadable.length)} could not be read`;
    bad.querySelector("ul").append(...index.unreadable.map((why) => el("li", "", oneLine(why, 500))));
  }
  fill("keys", table(KEYS));
  const on = (id, event, act) => byId(id).addEventListener(event, act);
  on("first", "click", () => { stop(); go(0); });
  on("last", "click", () => { stop(); go(Infinity); });
  on("back", "click", () => { stop(); go(view.frame - 1); });
  on("forward", "click", () => { stop(); go(view.frame + 1); });
  on("play", "click", () => (view.playing ? stop() : play()));
  on("previous", "click", () => jump(byId("kind").value, -1));
  on("next", "click", () => jump(byId("kind").value, 1));
  on("speed", "change", () => setSpeed(Number(byId("speed").value)));
  on("help-button", "click", () => byId("help").showModal());
  let waiting = 0;
  on("search", "input", () => { clearTimeout(waiting); waiting = setTimeout(() => find(byId("search").value), 120); });
  document.addEventListener("keydown", key);
  episodes.reset(index.episodes.length);
  if (index.reload_s) follow();
  if (typeof DecompressionStream === "undefined") notice("This browser is too old: it lacks DecompressionStream (2023).");
  else if (index.episodes.length) recall().then(() => { document.body.dataset.ready = "1"; });
  else { notice(index.reload_s ? "No episode has finished yet." : "There is no episode in this file."); document.body.dataset.ready = "1"; }
}

begin();
