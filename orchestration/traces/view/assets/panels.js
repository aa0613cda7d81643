// The right side: what is known of the step that is shown.

const HIDDEN_FIELDS = new Set(["caption_id", "step", "observation_hash"]);

function fill(id, ...content) { byId(id).replaceChildren(...content); }

function showFacts(doc, frame) {
  const [kind, agent, time, , , fields] = eventOf(doc, frame);
  const facts = [["what", kind], ["agent", doc.agents[agent]], ["time", `${time.toFixed(3)} s`]];
  if (kind === "env_step") {
    facts.push(["action", `${fields.action_name} (${fields.action})${fields.grounded === false ? ", not carried out" : ""}`],
      ["reward", fields.reward], ["value", fields.value ?? "-"], ["log-prob.", fields.log_prob ?? "-"], ["policy", `v${fields.policy_version}`]);
  }
  fill("facts", table(facts));
}

function showCaption(doc, frame) {
  const text = captionOf(doc, frame), times = eventOf(doc, frame)[FIELDS].caption_count;
  byId("caption-section").hidden = text === null;
  if (text !== null) fill("caption", longText(text), times ? el("div", "dim", `time ${num(times)} in this episode`) : "");
}

function showLabels(doc, frame) {
  const labels = doc.labelsOf.get(frame) ?? [];
  byId("judge-section").hidden = labels.length === 0;
  fill("judge", ...labels.map((label) => {
    const event = doc.events[label.event], texts = event[TEXTS];
    const { label: answer, probability, question_ref, answer_ref, caption_id, targets, ...rest } = event[FIELDS];
    const said = (name, ref) => (name in texts ? doc.texts[texts[name]] : ref);
    const asked = said("question", question_ref), raw = said("answer", answer_ref);
    const pairs = [["label", answer === null ? "missing: the answer could not be read" : num(answer ?? "-")]];
    if (probability !== null && probability !== undefined) pairs.push(["probability", probability]);
    if (label.caption >= 0) pairs.push(["caption", doc.texts[label.caption]]);
    if (asked !== undefined && asked !== null) pairs.push(["question", asked]);
    if (raw !== undefined && raw !== null) pairs.push(["answer", raw]);
    for (const [name, value] of Object.entries(rest)) if (value !== null && value !== 0) pairs.push([name, value]);
    return el("div", "event", table(pairs));
  }));
}

function showRewards(doc, frame) {
  const rewards = doc.rewardsOf.get(frame) ?? [];
  byId("reward-section").hidden = rewards.length === 0;
  const body = el("tbody");
  for (const [lane, value] of rewards) {
    const cell = el("td", `value ${value > 0 ? "good" : value < 0 ? "bad" : "dim"}`, `${value > 0 ? "+" : ""}${num(value)}`);
    body.append(el("tr", "", el("td", "", oneLine(laneName(doc.lanes[lane]))), cell));
  }
  fill("rewards", el("table", "", body));
}

function showEvents(doc, frame, chosen, choose) {
  const most = 200, events = doc.eventsOf[frame];
  const shown = events.slice(0, most).map((at) => {
    const [kind, agent, time, , parents, fields, texts] = doc.events[at];
    const title = el("h3", "", `${oneLine(kind)} \u00b7 ${oneLine(doc.agents[agent])} \u00b7 ${time.toFixed(3)} s`);
    title.addEventListener("click", () => choose(at));
    const pairs = Object.entries(texts).map(([name, text]) => [name, doc.texts[text]]);
    for (const [name, value] of Object.entries(fields)) {
      const bare = value === null || value === "" || (typeof value === "object" && Object.keys(value).length === 0);
      if (!bare && !HIDDEN_FIELDS.has(name) && !(kind === "env_step" && !["duration", "skew", "error"].includes(name))) pairs.push([name, value]);
    }
    const made = el("div", "event", title, table(pairs.filter(([name, value]) => !(value === 0 && /^(duration|skew|latency_s)$/.test(name)))));
    if (parents.length) {
      const links = parents.map((parent) => {
        const link = el("a", "", `${oneLine(doc.events[parent][KIND])} \u00b7 ${oneLine(doc.agents[doc.events[parent][AGENT]])}`);
        link.addEventListener("click", () => choose(parent));
        return el("li", "", "after ", link);
      });
      made.append(el("ul", "", ...links));
    }
    made.classList.toggle("chosen", at === chosen);
    return made;
  });
  if (events.length > most) shown.push(el("div", "dim", `and ${count(events.length - most)} more`));
  fill("events", ...shown);
  byId("events").querySelector(".chosen")?.scrollIntoView({ block: "nearest" });
}

function showEpisode(doc) {
  const { header, end } = doc, pairs = [["file", doc.file]];
  const add = (tree) => { for (const [name, value] of Object.entries(tree)) {
    const bare = value === null || value === "" || (typeof value === "object" && Object.keys(value).length === 0);
    if (!bare && name !== "action_names") pairs.push([name, value]);
  } };
  add({ ...header, recorded_at: new Date(header.recorded_at * 1000).toISOString().replace("T", " ") });
  if (end) add({ ended: end.error ? "error" : end.terminated ? "terminated" : end.truncated ? "truncated" : "ended", ...end, terminated: null, truncated: null });
  else pairs.push(["ended", doc.cut ? `cut: ${doc.cut}` : "not finished"]);
  fill("episode", table(pairs));
}
