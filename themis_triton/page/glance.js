// The table of pipelines: one compact row each, the worst first, sortable by every column.

import { byId, h, reconcile, setText, show, stateMark } from "./dom.js";
import * as f from "./format.js";
import { budgetWords, isKnown, pipelineState } from "./state.js";

const COLUMNS = [
  ["state", "State", false], ["name", "Pipeline", false], ["rate", "Rate /s", true], ["load", "Demand of capacity", false], ["p50", "p50 ms", true], ["p99", "p99 ms", true],
  ["slo", "SLO ms", true], ["minute", "In SLO, 1 min", true], ["hour", "1 h", true], ["day", "24 h", true], ["budget", "Budget left", true], ["servers", "Servers", true],
];
const VALUES = {
  state: (row) => row.state.rank, name: (row) => row.pipeline.name, rate: (row) => -(row.pipeline.estimate?.recent_rps ?? 0), load: (row) => -row.fraction,
  p50: (row) => -(row.pipeline.p50_ms ?? 0), p99: (row) => -(row.pipeline.estimate?.p99_ms ?? 0), slo: (row) => row.pipeline.slo_ms, minute: (row) => row.pipeline.slo_minute.attainment ?? 2, hour: (row) => row.pipeline.slo_hour.attainment ?? 2,
  day: (row) => row.pipeline.slo_day.attainment ?? 2, budget: (row) => row.pipeline.slo_day.budget_left ?? 2,
  servers: (row) => -(row.pipeline.evidence?.servers_now ?? 0),
};

export class Glance {
  constructor(onSelect) {
    this.onSelect = onSelect;
    this.sorted = { by: "state", reverse: false };
    this.selected = null;
    this.table = byId("pipelines");
    this.table.classList.add("cards");
    this.head = h("tr", {}, COLUMNS.map(([id, title, number]) => h("th", { scope: "col", class: number ? "num" : undefined, data: { id } }, h("button", { type: "button", class: "sort", onclick: () => this.sort(id) }, title))));
    this.body = h("tbody");
    this.table.replaceChildren(h("caption", { class: "sr-only" }, "Pipelines, the ones that need attention first"), h("thead", {}, this.head), this.body);
  }

  sort(id) {
    this.sorted = { by: id, reverse: this.sorted.by === id && !this.sorted.reverse };
    this.render(this.status);
  }

  render(status) {
    if (!status) return;
    this.status = status;
    const rows = status.pipelines.map((pipeline) => {
      const { evidence } = pipeline;
      const fraction = evidence && isKnown(pipeline) && evidence.capacity_rps > 0 ? evidence.demand_fast_rps / evidence.capacity_rps : 0;
      return { pipeline, fraction, state: pipelineState(pipeline) };
    });
    const { by, reverse } = this.sorted;
    const value = VALUES[by];
    const compare = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
    rows.sort((a, b) => (reverse ? -compare(a, b) : compare(a, b)) || (a.pipeline.name < b.pipeline.name ? -1 : 1));
    for (const cell of this.head.children) cell.setAttribute("aria-sort", cell.dataset.id === by ? (reverse ? "descending" : "ascending") : "none");
    reconcile(this.body, rows, (row) => row.pipeline.name, (row) => this.create(row), (element, row) => this.update(element, row));
    show(this.table, rows.length > 0);
    show(byId("glance-empty"), rows.length === 0);
    const bad = rows.filter((row) => row.state.rank <= 1).length;
    const spent = rows.filter(({ pipeline }) => pipeline.slo_day.budget_left < 0).length;
    setText(byId("glance-note"), `${f.plural(rows.length, "pipeline")}, ${bad === 0 ? "none needs attention" : `${bad} need${bad === 1 ? "s" : ""} attention`}${spent === 0 ? "" : `; ${spent} spent the error budget of 24 h`}`);
  }

  create({ pipeline }) {
    const cell = (id, number, label, extra = "") => h("td", { class: `${number ? "num" : ""} ${extra}`.trim(), data: { id, label } });
    const load = cell("load", false, "Demand of capacity", "full");
    load.append(h("div", { class: "load" }, h("div", { class: "bar", "aria-hidden": "true" }, h("i")), h("span")));
    const state = cell("state", false, "State", "head");
    state.append(h("span", { class: "state" }));
    return h("tr", {}, state, h("th", { scope: "row", data: { id: "name" } }, h("button", { type: "button", class: "link", title: "Show in the timeline", onclick: () => this.onSelect(pipeline.name) }, pipeline.name)),
      cell("rate", true, "Rate /s"), load, cell("p50", true, "p50 ms"), cell("p99", true, "p99 ms"), cell("slo", true, "SLO ms"), cell("minute", true, "In SLO, 1 min"), cell("hour", true, "In SLO, 1 h"), cell("day", true, "In SLO, 24 h"), cell("budget", true, "Budget, 24 h"), cell("servers", true, "Servers"));
  }

  update(element, { pipeline, state, fraction }) {
    const cells = Object.fromEntries([...element.children].map((cell) => [cell.dataset.id, cell]));
    const { estimate, evidence } = pipeline;
    stateMark(cells.state.firstChild, state.level, state.word);
    setText(cells.rate, f.rate(estimate?.recent_rps));
    const [bar, text] = cells.load.firstChild.children;
    bar.firstChild.style.width = `${Math.min(100, 100 * fraction).toFixed(1)}%`;
    bar.dataset.level = fraction > 1 ? "bad" : fraction > 0.85 ? "warn" : "good";
    const capacity = evidence && isKnown(pipeline) ? f.rate(evidence.capacity_rps) : f.NONE;
    setText(text, evidence ? `${f.rate(evidence.demand_fast_rps)} of ${capacity}/s` : f.NONE);
    setText(cells.p50, f.ms(pipeline.p50_ms));
    setText(cells.p99, f.ms(estimate?.p99_ms));
    cells.p99.classList.toggle("late", pipeline.slo_violated === true);
    setText(cells.slo, f.ms(pipeline.slo_ms));
    for (const [cell, window] of [[cells.minute, pipeline.slo_minute], [cells.hour, pipeline.slo_hour], [cells.day, pipeline.slo_day]]) {
      setText(cell, f.percent(window.attainment));
      const title = window.requests ? `${f.rate(window.late)} of ${f.plural(Math.round(window.requests), "request")} missed the SLO` : "no requests";
      if (cell.title !== title) cell.title = title;
    }
    setText(cells.budget, budgetWords(pipeline.slo_day));
    cells.budget.classList.toggle("late", (pipeline.slo_day.budget_left ?? 0) < 0);
    const counted = evidence ? (evidence.servers_now === evidence.servers_desired ? f.count(evidence.servers_now) : `${evidence.servers_now} → ${evidence.servers_desired}`) : f.NONE;
    setText(cells.servers, evidence && evidence.unit !== "server" ? `${counted} ${evidence.unit}s` : counted);
    element.setAttribute("aria-current", String(pipeline.name === this.selected));
  }
}
