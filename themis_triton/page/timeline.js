// Curves, decisions and actions of one pipeline on one axis of time: from the journal, continued by the live status.

import { get } from "./api.js";
import { Chart } from "./chart.js";
import { byId, h, reconcile, setText, show } from "./dom.js";
import * as f from "./format.js";
import { reasonWords } from "./state.js";

const RANGES = [[900, "15 min"], [3600, "1 h"], [21600, "6 h"], [86400, "24 h"], [604800, "7 d"]];
const SERIES = ["at_s", "rate_rps", "demand_rps", "capacity_rps", "p50_ms", "p99_ms", "slo_ms", "servers", "instances"];
const REFRESH_MS = 30000;
const SOON_MS = 800;
const LIVE_UP_TO_S = 3600;
const SHORTEST_S = 60;
const KINDS = { paused: "Paused", resumed: "Resumed", tick_failed: "Tick failed", settings_reloaded: "Settings reloaded", settings_refused: "Settings refused", settings_edited: "Settings edited", pinned: "Pinned", pin_ended: "Unpinned", bounded: "Bounded", drain_requested: "Drain asked for", drained: "Drained", drained_rests: "Drained, at rest", drain_ended: "Drain ended", mode_changed: "Mode changed" };

const last = (values) => values.findLast((value) => value !== null && value !== undefined);
const worst = (values) => Math.max(...values.map((value) => value ?? 0));

export class Timeline {
  constructor(onDecision) {
    this.onDecision = onDecision;
    this.rangeS = 900;
    this.live = new Map();
    this.name = null;
    this.history = null;
    this.newest = "";
    const ranges = byId("ranges");
    for (const [seconds, label] of RANGES) {
      ranges.append(h("label", {}, h("input", { type: "radio", name: "range", value: seconds, checked: seconds === this.rangeS, onchange: () => this.setRange(seconds) }), h("span", {}, label)));
    }
    this.select = byId("timeline-pipeline");
    this.select.addEventListener("change", () => this.onSelect?.(this.select.value));
    const parent = byId("charts");
    const shared = { sync: "timeline", onPick: (decision) => onDecision(decision.id) };
    const step = "per second";
    this.charts = [
      new Chart(parent, { ...shared, title: "Requests per second", height: 180, marks: "decisions", series: [
        { key: "capacity_rps", label: "capacity", color: "--chart-3", fill: "--chart-fill", stepped: true, width: 1.5, dash: [8, 3], format: f.rate },
        { key: "demand_rps", label: "demand with headroom", color: "--chart-2", width: 1.5, dash: [2, 3], format: f.rate },
        { key: "rate_rps", label: "rate", color: "--chart-1", format: f.rate },
      ], describe: (data) => `Rate of ${this.name}: now ${f.rate(last(data.rate_rps))} ${step}, at most ${f.rate(worst(data.rate_rps))}; capacity now ${f.rate(last(data.capacity_rps))} ${step}.` }),
      new Chart(parent, { ...shared, title: "Latency, ms", height: 160, marks: "decisions", series: [
        { key: "slo_ms", label: "SLO", color: "--chart-slo", width: 1.5, dash: [8, 4], format: f.ms },
        { key: "p50_ms", label: "p50", color: "--chart-2", width: 1.5, dash: [2, 3], format: f.ms },
        { key: "p99_ms", label: "p99", color: "--chart-1", format: f.ms },
      ], describe: (data) => `Latency of ${this.name}: p99 now ${f.ms(last(data.p99_ms))} ms, at most ${f.ms(worst(data.p99_ms))} ms; SLO ${f.ms(last(data.slo_ms))} ms.` }),
      new Chart(parent, { ...shared, title: "Servers, instances and actions", height: 130, marks: "actions", series: [
        { key: "instances", label: "instances", color: "--chart-2", width: 1.5, dash: [2, 3], stepped: true, format: f.count },
        { key: "servers", label: "servers", color: "--chart-1", stepped: true, format: f.count },
      ], describe: (data) => `${this.name} has ${f.count(last(data.servers))} servers and ${f.count(last(data.instances))} instances.` }),
    ];
    setInterval(() => this.refresh(), REFRESH_MS);
  }

  themeChanged() { for (const chart of this.charts) { chart.rebuild(); if (chart.plot) chart.set(chart.data, chart.range); } }

  setRange(seconds) { this.rangeS = seconds; this.refresh(); }

  setPipeline(name) {
    if (name === this.name) return;
    this.name = name;
    this.history = null;
    this.refresh();
  }

  async refresh() {
    if (!this.name) return;
    const asked = { name: this.name, rangeS: this.rangeS, control: new AbortController() };
    if (this.asked && this.asked.name === asked.name && this.asked.rangeS === asked.rangeS) return;
    this.asked?.control.abort();
    this.asked = asked;
    try {
      const history = await get("v1/history", { range_s: this.rangeS, points: 400, pipeline: this.name }, asked.control.signal);
      if (asked.name !== this.name || asked.rangeS !== this.rangeS) return;
      this.history = history;
      show(byId("timeline-error"), false);
      this.draw();
      this.list();
    } catch (error) {
      if (error.name === "AbortError") return;
      const place = byId("timeline-error");
      setText(place, `The history cannot be read now: ${error.message}. The next attempt follows within ${REFRESH_MS / 1000} s.`);
      show(place, true);
    } finally {
      if (this.asked === asked) this.asked = null;
    }
  }

  /** Continue the curves with a live status, and read the journal again once something was decided. */
  take(status) {
    const names = status.pipelines.map((pipeline) => pipeline.name);
    if (this.select.dataset.names !== names.join("\n")) {
      this.select.dataset.names = names.join("\n");
      this.select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    }
    if (this.select.value !== this.name) this.select.value = this.name;
    for (const pipeline of status.pipelines) this.addPoint(status, pipeline);
    const newest = status.events.length ? `${status.events.at(-1).decision_id}/${status.events.length}` : "";
    if (newest !== this.newest && this.newest !== "" && !this.soon) this.soon = setTimeout(() => { this.soon = null; this.refresh(); }, SOON_MS);
    this.newest = newest || "none";
    if (this.history) this.draw();
  }

  addPoint(status, pipeline) {
    if (!status.at_s) return;
    const points = this.live.get(pipeline.name) ?? [];
    this.live.set(pipeline.name, points);
    if (points.length && points.at(-1).at_s >= status.at_s) return;
    const instances = status.servers.reduce((sum, server) => sum + pipeline.stages.reduce((own, stage) => own + (server.models[stage]?.instances ?? 0), 0), 0);
    points.push({
      at_s: status.at_s, rate_rps: pipeline.estimate?.recent_rps ?? 0, demand_rps: pipeline.evidence?.demand_fast_rps ?? null, capacity_rps: pipeline.evidence?.capacity_rps ?? null,
      p50_ms: pipeline.p50_ms, p99_ms: pipeline.estimate?.p99_ms ?? null, slo_ms: pipeline.slo_ms, servers: pipeline.evidence?.servers_now ?? null, instances,
    });
    const oldest = status.at_s - LIVE_UP_TO_S;
    while (points.length && points[0].at_s < oldest) points.shift();
  }

  draw() {
    const past = this.history.pipelines[0];
    const live = this.live.get(this.name) ?? [];
    const until = Math.max(this.history.until_s, live.at(-1)?.at_s ?? 0);
    const known = Math.min(past.at_s[0] ?? until, live[0]?.at_s ?? until);
    const from = Math.max(until - this.rangeS, Math.min(known, until - SHORTEST_S));
    const useLive = this.rangeS <= LIVE_UP_TO_S ? live : [];
    const firstLive = useLive[0]?.at_s ?? Infinity;
    const data = Object.fromEntries(SERIES.map((name) => [name, []]));
    const push = (point) => { for (const name of SERIES) data[name].push(point(name)); };
    let before = null;
    past.at_s.forEach((start, place) => {
      const at = start + this.history.step_s / 2;
      if (at < from || at >= firstLive) return;
      if (before !== null && at - before > 3 * this.history.step_s) push((name) => (name === "at_s" ? before + this.history.step_s : name === "slo_ms" ? past.slo_ms : null));
      push((name) => (name === "at_s" ? at : name === "slo_ms" ? past.slo_ms : past[name][place]));
      before = at;
    });
    for (const point of useLive) if (point.at_s >= from) push((name) => point[name]);
    const { decisions, actions } = this.history;
    const events = { decisions, actions };
    for (const chart of this.charts) chart.set(data, { from, until, events });
  }

  list() {
    const { decisions, until_s: nowS, omitted } = this.history;
    const shown = [...decisions].sort((a, b) => b.at_s - a.at_s).slice(0, 100);
    const list = byId("decisions");
    reconcile(list, shown, (decision) => decision.id, (decision) => h("li", {}, h("button", { type: "button", onclick: () => this.onDecision(decision.id) }, h("time", {}), h("span", { class: "kind" }), h("span", { class: "text" }))), (element, decision) => {
      const [time, kind, text] = element.firstChild.children;
      setText(time, f.moment(decision.at_s, nowS));
      time.dateTime = new Date(1000 * decision.at_s).toISOString();
      setText(kind, KINDS[decision.reason] ?? reasonWords(decision.reason));
      setText(text, f.brief(decision.sentence, this.select.options.length));
    });
    const hidden = decisions.length - shown.length + omitted;
    const range = RANGES.find(([seconds]) => seconds === this.rangeS)[1];
    setText(byId("decisions-note"), decisions.length ? `${f.plural(decisions.length + omitted, "change")} in the last ${range}${hidden > 0 ? `, the newest ${shown.length} are shown` : ""}; choose one for its evidence` : `Nothing was changed in the last ${range}.`);
  }
}
