// One decision whole, in a dialog: why, what lost, what limited it, what was done, and what came of it.

import { get } from "./api.js";
import { byId, h, setText, stateMark } from "./dom.js";
import * as f from "./format.js";
import { reasonWords } from "./state.js";

const FEW = 5;
const AGAIN_MS = 1500;
const KNOWN_AFTER_S = 300;
const OUTCOMES = { done: ["good", "Done"], refused: ["bad", "Refused"], timed_out: ["bad", "Timed out"], skipped: ["idle", "Skipped"], lost: ["bad", "Lost"] };

export class DecisionDialog {
  constructor() {
    this.dialog = byId("decision");
    byId("decision-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
    this.dialog.addEventListener("close", () => { if (location.hash.startsWith("#decision=")) history.replaceState(null, "", location.pathname + location.search); });
    const follow = () => { const name = /^#decision=(.+)$/.exec(location.hash); if (name) this.open(decoded(name[1])); };
    window.addEventListener("hashchange", follow);
    follow();
  }

  async open(id) {
    const body = byId("decision-body");
    setText(byId("decision-title"), "Decision");
    body.replaceChildren(h("p", { class: "facts" }, `Reading ${id}…`));
    if (!this.dialog.open) this.dialog.showModal();
    history.replaceState(null, "", `#decision=${encodeURIComponent(id)}`);
    this.id = id;
    this.shown = "";
    await this.read(id);
    byId("decision-title").focus();
  }

  /** Show the decision, and again while its steps run or its result is not known yet. */
  async read(id) {
    clearTimeout(this.again);
    if (id !== this.id || !this.dialog.open) return;
    const body = byId("decision-body");
    try {
      const detail = await get(`v1/decisions/${encodeURIComponent(id)}`);
      if (id !== this.id) return;
      const text = JSON.stringify(detail);
      if (unfinished(detail)) this.again = setTimeout(() => this.read(id), AGAIN_MS);
      if (text === this.shown) return;
      this.shown = text;
      setText(byId("decision-title"), f.capital(f.brief(detail.sentence, detail.evidence.length)));
      body.replaceChildren(...parts(detail));
    } catch (error) {
      body.replaceChildren(h("p", { class: "facts" }, `This decision cannot be shown: ${error.message}`));
    }
  }
}

function unfinished(detail) {
  if (Date.now() / 1000 - detail.at_s > KNOWN_AFTER_S) return false;
  return (!detail.advisory && detail.steps.some((step) => step.outcome === null)) || detail.results.some((row) => row.measured_p99_ms === null);
}

/** A part of an address as it was before encoding; as it is, where someone typed it. */
function decoded(part) {
  try { return decodeURIComponent(part); } catch { return part; }
}

function parts(detail) {
  const nowS = Date.now() / 1000;
  const fact = (label, value) => (value ? h("span", {}, `${label} `, h("b", {}, value)) : null);
  const facts = h("p", { class: "facts" }, fact("at", f.moment(detail.at_s, nowS)), fact("reason", reasonWords(detail.reason)), fact("policy", detail.policy), fact("id", detail.id), detail.advisory ? h("b", {}, "advisory: nothing was changed") : null);
  if (!detail.policy) return [facts];
  const focus = focused(detail);
  return [facts, ...evidence(detail, focus), ...limits(detail), ...runnersUp(detail, focus), ...steps(detail), ...results(detail, focus)];
}

/** The pipelines that the decision is about: all of a few, else those that change or lack capacity. */
function focused({ evidence: rows }) {
  const about = rows.filter((row) => row.servers_now !== row.servers_desired || Math.round(row.demand_fast_rps) > Math.round(row.capacity_rps));
  return new Set((rows.length <= FEW || !about.length ? rows.slice(0, about.length ? rows.length : FEW) : about).map((row) => row.pipeline));
}

const table = (titles, rows) => h("div", { class: "scroller" }, h("table", { class: "grid compact" },
  h("thead", {}, h("tr", {}, titles.map(([title, number]) => h("th", { scope: "col", class: number ? "num" : undefined }, title)))),
  h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell, place) => h(place === 0 ? "th" : "td", { scope: place === 0 ? "row" : undefined, class: titles[place][1] ? "num" : undefined }, cell)))))));

const counts = (row) => (row.servers_now === row.servers_desired ? f.plural(row.servers_now, row.unit) : `${row.servers_now} → ${row.servers_desired} ${row.unit}s`);

function evidence({ evidence: rows }, focus) {
  if (!rows.length) return [];
  const titles = [["Pipeline"], ["Demand /s", 1], ["Stable /s", 1], ["Capacity /s", 1], ["p99 ms", 1], ["Predicted ms", 1], ["SLO ms", 1], ["Now → wanted", 1]];
  const shown = (list) => table(titles, list.map((row) => [row.pipeline, f.rate(row.demand_fast_rps), f.rate(row.demand_slow_rps), f.rate(row.capacity_rps), f.ms(row.measured_p99_ms), f.ms(row.predicted_p99_ms), f.ms(row.slo_ms), counts(row)]));
  const others = rows.filter((row) => !focus.has(row.pipeline));
  return [h("h3", {}, "Evidence"), shown(rows.filter((row) => focus.has(row.pipeline))), others.length ? h("details", {}, h("summary", {}, f.plural(others.length, "other pipeline")), shown(others)) : null].filter(Boolean);
}

function limits({ clamps }) {
  if (!clamps.length) return [];
  return [h("h3", {}, "Limits that bound it"), h("ul", { class: "plain-list" }, clamps.map((clamp) => h("li", {}, h("b", {}, `${f.capital(f.words(clamp.kind))}: `), clamp.sentence)))];
}

function runnersUp({ evidence: rows }, focus) {
  const known = rows.filter((row) => row.runner_up && focus.has(row.pipeline));
  if (!known.length) return [];
  return [h("h3", {}, "Runner-up, and why it lost"), h("ul", { class: "plain-list" }, known.map((row) => h("li", {}, rows.length > 1 ? h("b", {}, `${row.pipeline}: `) : null, row.runner_up)))];
}

function steps(detail) {
  if (!detail.steps.length) return [h("h3", {}, "Steps"), h("p", { class: "quiet" }, "None: nothing had to be changed.")];
  const item = (step) => {
    const mark = h("span", { class: "state" });
    const [level, word] = OUTCOMES[step.outcome] ?? (detail.advisory ? ["idle", "Not carried out"] : ["info", "Under way"]);
    stateMark(mark, level, word);
    const when = step.duration_s === null ? "" : `after ${f.duration(Math.max(0, step.started_at_s - detail.at_s))}, took ${f.duration(step.duration_s)}`;
    const more = [step.detail, step.requires.length ? `only after ${f.plural(step.requires.length, "other step")}` : ""].filter(Boolean).join("; ");
    return h("li", {}, mark, h("span", { class: "what" }, step.sentence), h("span", { class: "quiet" }, when), more ? h("small", {}, more) : null);
  };
  return [h("h3", {}, "Steps"), h("ol", { class: "steps" }, detail.steps.map(item))];
}

function results({ results }, focus) {
  const rows = results.filter((row) => focus.has(row.pipeline));
  if (!rows.length) return [];
  const titles = [["Pipeline"], ["p99 predicted", 1], ["largest measured", 1], ["SLO expected in", 1], ["held after", 1], ["Servers wanted", 1], ["then", 1]];
  const held = (row) => (row.held_after_s === null ? (row.observed_s > 0 ? `not yet in ${f.duration(row.observed_s)}` : f.NONE) : row.held_after_s < 1 ? "at once" : f.duration(row.held_after_s));
  return [h("h3", {}, "Predicted, and what came of it"), table(titles, rows.map((row) => [row.pipeline, row.predicted_p99_ms === null ? f.NONE : `${f.ms(row.predicted_p99_ms)} ms`, row.measured_p99_ms === null ? "not yet known" : `${f.ms(row.measured_p99_ms)} ms`,
    f.duration(row.predicted_holds_after_s), held(row), f.count(row.servers_desired), f.count(row.servers === null ? null : Math.round(10 * row.servers) / 10)])),
  h("p", { class: "quiet" }, "Measured by samples of a few seconds: p99 in the minute after the last step.")];
}
