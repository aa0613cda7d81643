// The data: the list of episodes, and an episode's tree, decoded when it is opened.

const KIND = 0, AGENT = 1, TIME = 2, FRAME = 3, PARENTS = 4, FIELDS = 5, TEXTS = 6;
const index = JSON.parse(byId("index").textContent);

async function openEpisode(at) {
  const packed = atob(byId(`block-${at}`).textContent);
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return prepare(await new Response(stream).json());
}

function prepare(doc) {
  doc.eventsOf = doc.frames.map(() => []);
  doc.events.forEach((event, at) => doc.eventsOf[event[FRAME]]?.push(at));
  doc.slot = new Uint32Array(doc.events.length); // the place of an event among those of its frame
  for (const events of doc.eventsOf) events.forEach((at, slot) => { doc.slot[at] = slot; });
  doc.rewardsOf = new Map();
  doc.lanes.forEach((lane, at) => {
    for (const [frame, value] of lane.points) push(doc.rewardsOf, frame, [at, value]);
  });
  doc.labelsOf = new Map();
  doc.labels.forEach((label) => { for (const frame of label.frames) push(doc.labelsOf, frame, label); });
  const { reward, label, error, divergence } = doc.marks;
  doc.marks.any = [...new Set([...reward, ...label, ...error, ...divergence])].sort((a, b) => a - b);
  doc.marks.match = [];
  doc.grid = /^(nethack|minihack)\//i.test(doc.header.env_id);
  doc.stepped = doc.events.some((event) => event[KIND] === "env_step");
  return doc;
}

function push(map, key, value) {
  const found = map.get(key);
  if (found) found.push(value); else map.set(key, [value]);
}

const eventOf = (doc, frame) => doc.events[doc.frames[frame][0]];
const captionOf = (doc, frame) => (doc.frames[frame][2] < 0 ? null : doc.texts[doc.frames[frame][2]]);

// The screen of a frame, or where none was kept the one before, and whether it was kept.
function screenOf(doc, frame) {
  for (let at = frame; at >= 0; at--) if (doc.frames[at][1] >= 0) return [doc.screens[doc.frames[at][1]], at === frame];
  return [null, false];
}

// Frames whose screen, caption, action or events hold `query`, whatever the case.
function search(doc, query) {
  const wanted = query.toLowerCase();
  if (!wanted) return [];
  const holds = (text) => text.toLowerCase().includes(wanted);
  const rows = doc.rows.map(holds), texts = doc.texts.map(holds);
  const screens = doc.screens.map((ids) => ids.some((row) => rows[row]));
  const found = new Set();
  doc.frames.forEach(([, screen, caption], at) => {
    if ((screen >= 0 && screens[screen]) || (caption >= 0 && texts[caption])) found.add(at);
  });
  const holdsValue = (value) => {
    if (typeof value === "string") return holds(value);
    if (Array.isArray(value)) return typeof value[0] !== "number" && value.some(holdsValue);
    return value !== null && typeof value === "object" && Object.values(value).some(holdsValue);
  };
  for (const event of doc.events) {
    if (found.has(event[FRAME])) continue;
    const named = event[KIND] !== "env_step" && holds(event[KIND]);
    if (named || Object.values(event[TEXTS]).some((text) => texts[text]) || holdsValue(event[FIELDS])) found.add(event[FRAME]);
  }
  return [...found].sort((a, b) => a - b);
}
