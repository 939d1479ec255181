// What would run at another rate or SLO: each move of the slider asks the sidecar's solver.

import { get } from "./api.js";
import { Chart } from "./chart.js";
import { byId, h, setText, show } from "./dom.js";
import * as f from "./format.js";

const CURVE_POINTS = 40;
const BOUNDS = { latency: "latency", throughput: "throughput", memory: "device memory", devices: "the number of devices", bounds: "the settings' bounds" };

export class WhatIf {
  constructor() {
    this.pipelines = byId("whatif-pipeline");
    this.slider = byId("whatif-rate");
    this.number = byId("whatif-rate-number");
    this.slo = byId("whatif-slo");
    this.touched = false;
    this.near = false;
    this.seen = new IntersectionObserver(([entry]) => { if (entry.isIntersecting && !this.near) { this.near = true; this.askAll(); } }, { rootMargin: "200px" });
    byId("whatif-form").addEventListener("submit", (event) => event.preventDefault());
    this.slider.addEventListener("input", () => { this.touched = true; this.number.value = this.slider.value; this.ask(); });
    this.number.addEventListener("input", () => { this.touched = true; this.slider.value = this.number.value; this.ask(); });
    this.slo.addEventListener("input", () => { this.touched = true; this.ask(); this.askCurve(); });
    this.pipelines.addEventListener("change", () => this.setPipeline(this.pipelines.value));
    byId("whatif-reset").addEventListener("click", () => { this.touched = false; this.reset(); });
    this.curve = new Chart(byId("whatif-curve"), { title: "Over the rate", height: 130, x: (u, splits) => splits.map((value) => `${value}/s`), series: [
      { key: "instances", label: "instances", color: "--chart-2", width: 1.5, dash: [2, 3], stepped: true, format: f.count },
      { key: "cost", label: "cost", unit: "price units/s", color: "--chart-1", stepped: true, format: (value) => f.count(value && Math.round(10 * value) / 10) },
    ], describe: (data) => `Cost and instances of ${this.name} over the rate: from ${f.count(data.cost[0])} price units per second to ${f.count(data.cost.findLast((value) => value !== null) ?? 0)}.` });
  }

  themeChanged() { this.curve.rebuild(); if (this.curve.plot) this.curve.set(this.curve.data, this.curve.range); }

  setPipeline(name) {
    if (!this.status?.pipelines.some((pipeline) => pipeline.name === name)) return;
    this.name = name;
    this.touched = false;
    this.pipelines.value = name;
    this.reset();
  }

  take(status) {
    const first = !this.status;
    this.status = status;
    const names = status.pipelines.map((pipeline) => pipeline.name);
    if (this.pipelines.dataset.names !== names.join("\n")) {
      this.pipelines.dataset.names = names.join("\n");
      this.pipelines.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
      this.pipelines.value = this.name ?? names[0];
    }
    if (!this.name && names.length && first) this.setPipeline(names[0]);
    // The solver is asked once the section may be seen, which is known when the sections above it are drawn.
    if (first) requestAnimationFrame(() => requestAnimationFrame(() => this.seen.observe(byId("whatif"))));
  }

  reset() {
    const pipeline = this.status?.pipelines.find((each) => each.name === this.name);
    if (!pipeline) return;
    const rate = pipeline.evidence?.demand_fast_rps ?? pipeline.estimate?.recent_rps ?? 0;
    const largest = niceAbove(Math.max(10, 3 * rate, 3 * (pipeline.evidence?.capacity_rps ?? 0)));
    this.slider.max = largest;
    this.slider.step = largest / 200;
    this.slider.value = rate;
    this.number.value = Math.round(rate * 10) / 10;
    this.slo.value = pipeline.slo_ms;
    this.askAll();
  }

  askAll() {
    if (!this.near || !this.name) return;
    this.ask();
    this.askCurve();
  }

  parameters(rates) { return { pipeline: this.name, rate_rps: rates, slo_ms: this.slo.value || undefined }; }

  /** One question at a time: while one is answered only the newest next one is kept. */
  async ask() {
    if (this.asking) { this.again = true; return; }
    this.asking = true;
    try {
      do {
        this.again = false;
        const slow = setTimeout(() => setText(byId("whatif-answer"), "Asking the solver…"), 400);
        try { this.show(await get("v1/plan", this.parameters([this.number.value || "0"]))); } catch (error) { this.fail(error); }
        clearTimeout(slow);
      } while (this.again);
    } finally { this.asking = false; }
  }

  fail(error) {
    setText(byId("whatif-answer"), "No answer");
    setText(byId("whatif-more"), error.message);
    show(byId("whatif-stages"), false);
  }

  show(answer) {
    const plan = answer.plans[0];
    const servers = Math.max(...plan.stages.map((stage) => stage.servers));
    const instances = instancesOf(plan);
    const cost = Math.round(100 * plan.cost) / 100;
    const p99 = plan.predicted_p99_ms === null ? "unbounded" : `${f.ms(plan.predicted_p99_ms)} ms`;
    const at = `At ${f.rate(plan.rate_rps)}/s`;
    setText(byId("whatif-answer"), plan.feasible ? `${at}: ${f.plural(servers, "server")}, ${f.plural(instances, "instance")}, p99 ${p99}, cost ${f.count(cost)} price units per second` : `${at}: no plan. At most ${f.rate(plan.carried_rps)}/s fit inside ${f.ms(answer.slo_ms)} ms`);
    const other = plan.runner_up;
    const parts = [`SLO ${f.ms(answer.slo_ms)} ms`, `${plan.feasible ? "bound" : "limited"} by ${BOUNDS[plan.binding] ?? plan.binding}`, `the fleet now costs ${f.count(Math.round(100 * this.status.cost_per_s) / 100)}`];
    if (other) parts.push(`next best: ${f.plural(other.servers, "server")} at ${f.count(Math.round(100 * other.cost) / 100)}, p99 ${f.ms(other.predicted_p99_ms)} ms`);
    setText(byId("whatif-more"), `${parts.join("; ")}.`);
    const titles = [["Stage"], ["Servers", 1], ["Instances each", 1], ["Batch up to", 1], ["Service ms", 1], ["Wait ms", 1], ["Capacity /s", 1]];
    const rows = plan.stages.map((stage) => [stage.name, f.count(stage.servers), stage.extra_instance_servers ? `${stage.instances}, on ${stage.extra_instance_servers} one more` : f.count(stage.instances), f.count(stage.batch), f.ms(stage.latency_ms), f.ms(stage.queueing_ms), f.rate(stage.capacity_rps)]);
    const stages = byId("whatif-stages");
    stages.replaceChildren(h("caption", { class: "sr-only" }, "The plan by stage"), h("thead", {}, h("tr", {}, titles.map(([title, number]) => h("th", { scope: "col", class: number ? "num" : undefined }, title)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, place) => h(place ? "td" : "th", { scope: place ? undefined : "row", class: place ? "num" : undefined }, cell))))));
    show(stages, true);
    this.curve.cursorX = plan.rate_rps;
    this.curve.plot?.redraw(false);
  }

  async askCurve() {
    clearTimeout(this.later);
    this.later = setTimeout(async () => {
      const name = this.name;
      const largest = Number(this.slider.max);
      const rates = Array.from({ length: CURVE_POINTS }, (_, place) => (largest * (place + 1)) / CURVE_POINTS);
      try {
        const answer = await get("v1/plan", this.parameters(rates));
        if (name !== this.name) return;
        const data = { at_s: rates, cost: answer.plans.map((plan) => (plan.feasible ? plan.cost : null)), instances: answer.plans.map((plan) => (plan.feasible ? instancesOf(plan) : null)) };
        this.curve.set(data, { from: 0, until: largest });
      } catch { /* the answer above says why */ }
    }, 250);
  }
}

const instancesOf = (plan) => plan.stages.reduce((sum, stage) => sum + stage.servers * stage.instances + stage.extra_instance_servers, 0);

function niceAbove(value) {
  const magnitude = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 3, 4, 5, 6, 8, 10].map((factor) => factor * magnitude).find((nice) => nice >= value);
}
