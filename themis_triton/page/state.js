// What a status means: pure functions from the API's values to words and levels.

import * as f from "./format.js";

/** Whether the service times of its models are known; until then its capacity is a guess that says nothing. */
export const isKnown = ({ knowledge }) => !knowledge || knowledge.enough;

/** The state of a pipeline: a level, a word, and its rank, the worst first. */
export function pipelineState(pipeline) {
  const { estimate, evidence } = pipeline;
  if (!estimate) return { level: "idle", word: "No data", rank: 3 };
  const demand = evidence ? evidence.demand_fast_rps : estimate.recent_rps;
  if (pipeline.slo_violated) return { level: "bad", word: "SLO missed", rank: 0 };
  if (evidence && isKnown(pipeline) && Math.round(demand) > Math.round(evidence.capacity_rps)) return { level: "warn", word: "Above capacity", rank: 1 };
  if (evidence && Math.round(evidence.refused_rps) > 0) return { level: "warn", word: "Refusing", rank: 1 };
  if (!isKnown(pipeline)) return { level: "info", word: "Learning", rank: 2 };
  if (justLate(pipeline)) return { level: "warn", word: "Just late", rank: 1 };
  if (estimate.recent_rps === 0 && pipeline.slo_violated === null) return { level: "idle", word: "No traffic", rank: 5 };
  if (evidence && evidence.servers_now !== evidence.servers_desired) return { level: "info", word: "Changing", rank: 3 };
  return { level: "good", word: "Inside SLO", rank: 4 };
}

/** Whether more were late in the last minute than the objective allows, although p99 is inside the SLO by now. */
const justLate = ({ slo_minute: { late, budget_left: left } }) => late >= 2 && left < 0;

/** What is left of a window's error budget. */
export function budgetWords({ budget_left: left }) {
  if (left === null) return f.NONE;
  return left < 0 ? `${f.count(Math.round(-100 * left))} % over` : `${Math.floor(100 * left)} %`;
}

const PHASES = {
  launching: ["info", "Starting", 2], warming: ["info", "Warming up", 2], serving: ["good", "Serving", 5], unreachable: ["warn", "No metrics", 1],
  unresponsive: ["bad", "Not answering", 0], draining: ["info", "Draining", 3], stopping: ["info", "Stopping", 3],
};

export function serverState(server, status) {
  const [level, word, rank] = PHASES[server.phase] ?? ["info", f.capital(server.phase), 2];
  if (level === "good" && status.faults.some((fault) => mentions(fault, server.name))) return { level: "bad", word: "Fault", rank: 0 };
  const drain = level === "good" ? status.overrides.drains.find((each) => each.server === server.name) : undefined;
  if (drain) return { level: "warn", word: drain.left ? "Drained" : "To be drained", rank: 1 };
  return { level, word, rank };
}

const mentions = (sentence, name) => sentence.split(/[\s,:;]+/).includes(name);

/** What is under way, waiting or wrong on one server. */
export function serverNotes(server, status) {
  const notes = [];
  const own = (actuator) => actuator === server.name || actuator.startsWith(`${server.name}/`);
  const remaining = (name) => (name in status.remaining_s ? (status.remaining_s[name] > 0 ? `, ready in about ${f.duration(status.remaining_s[name])}` : ", longer than expected") : "");
  if (server.name in status.remaining_s) notes.push(`starting${remaining(server.name)}`);
  for (const actuator of status.busy.filter(own)) notes.push(`${actuator === server.name ? "change under way" : `changing ${actuator.slice(server.name.length + 1)}`}${actuator === server.name ? "" : remaining(actuator)}`);
  for (const [actuator, untilS] of Object.entries(status.backing_off)) if (own(actuator)) notes.push(`retry of ${actuator} in ${f.duration(untilS - status.at_s)}`);
  for (const [actuator, reason] of Object.entries(status.resting)) if (own(actuator)) notes.push(`${actuator} rests: ${reason}`);
  const drain = status.overrides.drains.find((each) => each.server === server.name);
  if (drain) notes.push(status.clamps.find((clamp) => clamp.kind === "drain" && mentions(clamp.sentence, server.name))?.sentence ?? drainWords(drain));
  notes.push(...status.faults.filter((fault) => mentions(fault, server.name)));
  return notes;
}

const REASONS = {
  surge: "Absorbing a surge", settle: "Scaling down in place", steady: "Steady", scale_out: "Adding servers", scale_in: "Removing servers", replace: "Replacing a lost server",
  infeasible: "Overload", hold_no_data: "Holding, no data", hold_stale: "Holding, readings are stale",
  hold_warmup: "Holding, not enough history yet", hold_no_server: "Holding, no server is ready",
};
export const reasonWords = (reason) => REASONS[reason] ?? f.capital(f.words(reason));

/** The state of everything in one line. */
export function headline(status) {
  if (status.tick_error) return "The last tick failed: nothing is changed until one succeeds";
  if (!status.tick) return "Started; the first tick has not ended yet";
  const states = status.pipelines.map(pipelineState);
  const missed = states.filter((state) => state.rank === 0).length;
  const above = states.filter((state) => state.word === "Above capacity").length;
  const all = status.pipelines.length;
  const opening = reasonWords(status.reason);
  const subject = all === 1 ? status.pipelines[0].name : missed || above ? `${missed || above} of ${all} pipelines` : `all ${all} pipelines`;
  const one = all === 1 || (missed || above) === 1;
  if (missed) return `${opening}: ${subject} ${one ? "misses its SLO" : "miss their SLO"} now`;
  if (above) return `${opening}: ${subject} ${one ? "needs" : "need"} more than the ready servers carry`;
  if (states.every((state) => state.word === "No traffic")) return `${opening}: no traffic`;
  const late = status.pipelines.filter((pipeline) => pipelineState(pipeline).word === "Just late");
  if (late.length === 1) return `${opening}: ${late[0].name} is inside its SLO again; of its last minute ${f.percent(1 - late[0].slo_minute.attainment)} were late`;
  if (late.length) return `${opening}: ${late.length} of ${all} pipelines are inside their SLO again, after late requests in the last minute`;
  return `${opening}: ${subject} ${all === 1 ? "is inside its SLO" : "are inside their SLO"}`;
}

const said = ({ by, why }) => `${by ? ` by ${by}` : ""}${why ? `: ${why}` : ""}`;

/** Pins and bounds as a sentence. */
export function boundsWords(each) {
  const where = each.counted === "instances" ? " a server" : "";
  const noun = each.counted.slice(0, -1);
  const counts = each.min === each.max ? `pinned at ${f.plural(each.min, noun)}` : `bounded to ${each.min} to ${f.plural(each.max, noun)}`;
  return `${each.name} is ${counts}${where}${said(each)}`;
}

export function drainWords(drain) {
  if (!drain.left) return `${drain.server} is to be drained${drain.force ? " at once" : ""}${said(drain)}`;
  return `${drain.server} is drained${said(drain)} (${drain.launched ? "it retires" : "it runs on, and gets no new requests"})`;
}

const CRASH_S = 600;

/** Crashes of the last minutes; several are a loop. */
function crashes(status) {
  const number = status.events.filter((event) => event.kinds.includes("server_crashed") && event.at_s > status.at_s - CRASH_S).length;
  if (!number) return null;
  const words = `${f.plural(number, "crash").replace("crashs", "crashes")} of servers in the last ${f.duration(CRASH_S)}`;
  return number > 2 ? { level: "bad", text: `Crash loop: ${words}` } : { level: "warn", text: words };
}

/** Conditions that an operator must know, the worst first. */
export function conditions(status) {
  const list = [];
  const add = (level, text) => list.push({ level, text });
  if (status.tick_error) add("bad", status.tick_error);
  for (const fault of status.faults) add("bad", fault);
  if (status.routes_unwritten) add("bad", `Routes are not written: ${status.routes_unwritten}`);
  if (status.journal_trouble) add("bad", status.journal_trouble);
  if (status.settings_edited) add("warn", f.capital(status.settings_edited));
  const crashed = crashes(status);
  if (crashed) list.push(crashed);
  if (status.reason?.startsWith("hold_")) add("warn", `${reasonWords(status.reason)}: nothing is changed`);
  for (const [source, reason] of Object.entries(status.stale)) add("warn", `Stale readings of ${source}: ${reason}`);
  for (const words of status.predictions) add("bad", f.capital(words));
  for (const drift of status.drift) add("warn", `Drift: ${drift}`);
  if (status.paused) add("warn", "Paused: Themis shows what it would do and changes nothing. Resume it under Controls or with “themis resume”.");
  else if (status.mode === "advisory") add("info", "Advisory mode: Themis shows what it would do and changes nothing.");
  if (status.clamps.length) add("info", `Limited: ${status.clamps[0].sentence}${status.clamps.length > 1 ? `; and ${f.plural(status.clamps.length - 1, "other limit")}, in the decision` : ""}`);
  for (const each of status.overrides.bounds) add("warn", `${boundsWords(each)}, for ${f.duration(each.until_s - status.at_s)} more`);
  for (const drain of status.overrides.drains) add("warn", drainWords(drain));
  const { mode } = status.overrides;
  if (mode) add("warn", `Switched to ${mode.mode} mode${said(mode)}`);
  for (const [actuator, reason] of Object.entries(status.resting)) add("warn", `${actuator} rests: ${reason}`);
  for (const [actuator, untilS] of Object.entries(status.backing_off)) {
    if (!(actuator in status.resting)) add("warn", `${actuator} is in back-off after a failure, for ${f.duration(untilS - status.at_s)} more`);
  }
  if (status.next_steps.length) add("info", `${status.paused || status.mode === "advisory" ? "Would do" : "Started"}: ${status.next_steps.join(", ")}`);
  return list;
}

/** Whether servers still find a node of a node type, as far as the engine said. */
export function nodeTypeState({ nodes, free_places: places, slots, used_slots: used }) {
  if (used >= slots) return { level: "idle", word: "All slots used" };
  if (nodes === null) return { level: "idle", word: "Not known" };
  if (nodes === 0) return { level: "warn", word: "No nodes" };
  return places === 0 ? { level: "warn", word: "Full" } : { level: "good", word: places === null ? "Has nodes" : "Has room" };
}

/** Price, slots, nodes, devices and further places of a node type. */
export function nodeTypeCells(each) {
  const free = (kind, amount) => (each.free_devices === null ? f.count(amount) : `${f.count(each.free_devices[kind] ?? 0)} of ${f.count(amount)}`);
  const devices = Object.entries(each.devices).sort().map(([kind, amount]) => `${free(kind, amount)} ${kind}`).join(", ");
  return [f.price(each.price_per_hour), `${each.used_slots} of ${each.slots}`, f.count(each.nodes), devices || f.NONE, f.count(each.free_places)];
}

/** How old the reading of the nodes is, and why there is no newer one. */
export function nodesNote({ at_s: atS, error }, nowS) {
  const read = atS === null ? "nodes not read yet" : `nodes as of ${f.ago(nowS - atS)}`;
  return error === null ? read : `${read}: ${error}`;
}
