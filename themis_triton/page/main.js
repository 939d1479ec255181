// Starts the page: one stream of statuses, and every section drawn from it.

import { follow, token } from "./api.js";
import { Controls } from "./controls.js";
import { DecisionDialog } from "./decision.js";
import { byId, h, MARKS, reconcile, setText, show } from "./dom.js";
import { Fleet } from "./fleet.js";
import * as f from "./format.js";
import { Glance } from "./glance.js";
import { NodeTypes } from "./nodes.js";
import { conditions, headline, pipelineState } from "./state.js";
import { Timeline } from "./timeline.js";
import { WhatIf } from "./whatif.js";

const LATE_S = 3.5;
const MAX_SENTENCE_PIPELINES = 3;

const decisions = new DecisionDialog();
const timeline = new Timeline((id) => decisions.open(id));
const whatif = new WhatIf();
const fleet = new Fleet();
const nodeTypes = new NodeTypes();
const controls = new Controls();
const glance = new Glance((name) => { select(name); byId("timeline").scrollIntoView(); });
timeline.onSelect = select;

let status = null;
let receivedMs = 0;
let lost = null;
let announced = "";

function select(name) {
  glance.selected = name;
  timeline.setPipeline(name);
  whatif.setPipeline(name);
  glance.render(status);
}

function take(next) {
  const first = status === null;
  status = next;
  receivedMs = performance.now();
  if (lost !== null) { lost = null; document.body.classList.remove("gone"); timeline.refresh(); }
  whatif.take(status);
  if (first && status.pipelines.length) select([...status.pipelines].sort((a, b) => pipelineState(a).rank - pipelineState(b).rank)[0].name);
  glance.render(status);
  fleet.render(status);
  nodeTypes.render(status);
  timeline.take(status);
  controls.take(status);
  summary();
  freshness();
}

function summary() {
  const text = headline(status);
  setText(byId("headline"), text);
  const many = status.pipelines.length > MAX_SENTENCE_PIPELINES;
  const sentence = status.tick_error ?? (many ? "" : f.capital(status.sentence));
  setText(byId("why"), sentence);
  show(byId("why"), Boolean(sentence) && !status.tick_error);
  const found = conditions(status);
  reconcile(byId("banners"), found, (each) => `${each.level}${each.text.replaceAll(/[\d.]+/g, "#")}`, (each) => h("li", { data: { level: each.level } }, h("span", { class: "mark", "aria-hidden": "true" }, MARKS[each.level]), h("span", {})), (element, each) => setText(element.lastChild, each.text));
  const mode = byId("mode");
  setText(mode, status.paused ? "Paused" : f.capital(status.mode));
  mode.dataset.level = status.paused ? "warn" : status.mode === "active" ? "good" : "info";
  show(mode, true);
  setText(byId("policy"), `policy ${status.policy}`);
  setText(byId("version"), `Themis for Triton ${status.version}`);
  figures();
  const bad = status.pipelines.filter((pipeline) => pipelineState(pipeline).rank <= 1).length;
  document.title = bad ? `▲ ${bad} – Themis` : "Themis";
  announce(`${text.replaceAll(/\d+/g, "")}|${status.paused}|${status.faults.length}`, `${text}. ${status.paused ? "Paused. " : ""}${status.faults.join(". ")}`);
}

/** Say a change of the situation once, and never a changed number. */
function announce(kind, text) {
  if (kind === announced) return;
  announced = kind;
  setText(byId("announcer"), text);
}

function figures() {
  const sum = (value) => status.pipelines.reduce((all, pipeline) => all + (value(pipeline) ?? 0), 0);
  const inside = status.pipelines.filter((pipeline) => pipeline.slo_violated === false).length;
  const busy = status.pipelines.filter((pipeline) => pipeline.slo_violated !== null).length;
  const only = status.pipelines.length === 1 ? status.pipelines[0] : null;
  const p99 = only?.estimate?.p99_ms ?? null;
  const rows = [
    ["Requests", f.rate(sum((pipeline) => pipeline.estimate?.recent_rps)), "per second"],
    only ? ["p99 latency", f.ms(p99), p99 === null ? "no traffic" : `ms of ${f.ms(only.slo_ms)}`] : ["Inside SLO now", `${inside}`, `of ${busy} with traffic`],
    ["Servers", f.count(status.servers.length), `${status.servers.filter((server) => server.phase === "serving").length} serving`],
    ["Instances", f.count(status.servers.reduce((all, server) => all + Object.values(server.models).reduce((own, state) => own + state.instances, 0), 0)), "of models"],
    ["Cost", f.count(Math.round(10 * status.cost_per_s) / 10), "price units/s"],
    ...((status.price_per_hour ?? null) === null ? [] : [["Price", f.price(status.price_per_hour), "per hour"]]),
  ];
  const list = byId("figures");
  reconcile(list, rows, ([label]) => label, ([label]) => h("div", {}, h("dt", {}, label), h("dd", {}, h("span", {}), " ", h("small", {}))), (element, [, value, unit]) => {
    setText(element.lastChild.firstChild, value);
    setText(element.lastChild.lastChild, unit);
  });
  show(list, true);
}

function connectionLost(error) {
  if (lost === null) lost = { sinceMs: performance.now() };
  lost.error = error;
  freshness();
}

/** How old the data are; never a spinner, always a time. */
function freshness() {
  const place = byId("fresh");
  const sinceS = status ? (performance.now() - receivedMs) / 1000 : 0;
  const age = sinceS;
  if (lost !== null && (status === null || sinceS > LATE_S)) {
    const needsToken = lost.error.status === 401 || lost.error.status === 403;
    document.body.classList.toggle("gone", true);
    place.dataset.level = "bad";
    setText(place, status ? `data ${f.ago(age)}` : "no connection");
    const since = status ? `The data on this page are from ${f.moment(status.at_s ?? status.started_at_s, Date.now() / 1000)}, ${f.ago(age)}.` : "";
    setText(byId("headline"), needsToken ? "This sidecar asks for its token" : status ? "The sidecar does not answer" : "No connection to the sidecar");
    setText(byId("why"), needsToken ? `Enter the token under Controls. ${since}`.trim() : `${f.capital(lost.error.message)}. ${since} Servers and the proxy go on serving without it. Trying again every few seconds; “themis run” starts it.`.replaceAll("  ", " "));
    show(byId("why"), true);
    announce("lost", byId("headline").textContent);
    if (needsToken && !token.read() && document.activeElement === document.body) byId("token").focus();
    return;
  }
  if (!status) return;
  place.dataset.level = age > LATE_S ? "bad" : age < 2.5 ? "live" : "";
  setText(place, age > LATE_S ? `data ${f.ago(age)}` : age < 2.5 ? "live" : `updated ${f.ago(age)}`);
}

const THEMES = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" };
function showTheme() { setText(byId("theme"), THEMES[window.themisTheme.read()]); }
byId("theme").addEventListener("click", () => {
  const order = Object.keys(THEMES);
  window.themisTheme.set(order[(order.indexOf(window.themisTheme.read()) + 1) % order.length]);
  showTheme();
  repaint();
});
function repaint() { timeline.themeChanged(); whatif.themeChanged(); }
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

showTheme();
setInterval(freshness, 1000);
follow(take, connectionLost);
