// Charts of the timeline on one axis of time, with decisions as lines and actions as bars. Values stand beside the charts as text.

import { h, setText } from "./dom.js";

const colors = new Map();
/** A colour of the theme. Reading one has the page laid out, so each is read once, until a chart is rebuilt for another theme. */
function css(name) {
  if (!colors.has(name)) colors.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  return colors.get(name);
}
const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';
const time = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const withSeconds = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

function timeLabels(u, splits, axis, space, step) {
  const format = step < 60 ? withSeconds : step >= 86400 ? day : time;
  return splits.map((at) => format.format(new Date(1000 * at)));
}

/** A sample of a line, for the key: colour and dash together name a series. */
function swatch(series) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 22 10");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [name, value] of Object.entries({ x1: 0, x2: 22, y1: 5, y2: 5, "stroke-width": series.width ?? 2, "stroke-dasharray": (series.dash ?? []).join(" ") })) line.setAttribute(name, value);
  line.style.stroke = `var(${series.color})`;
  svg.append(line);
  return svg;
}

/** One chart: `series` are {key, label, color, unit, dash?, fill?, stepped?, format}; data are columns by key, and `at_s`. */
export class Chart {
  constructor(parent, { title, series, height = 150, sync = null, marks = false, onPick = null, describe, x = null }) {
    Object.assign(this, { series, height, sync, marks, onPick, describe, x });
    this.keys = series.map((each) => {
      const value = h("b", {}, "–");
      const key = h("span", { class: "key" }, swatch(each), `${each.label} `, value, each.unit ? ` ${each.unit}` : "");
      return { key, value };
    });
    this.place = h("div", { class: "plot", role: "img", "aria-label": title });
    this.element = h("div", { class: "chart" }, h("div", { class: "chart-head" }, h("h3", {}, title), this.keys.map((each) => each.key)), this.place);
    parent.append(this.element);
    this.title = title;
    this.data = null;
    this.events = { decisions: [], actions: [] };
    this.width = 0;
    this.observer = new ResizeObserver(([entry]) => { this.width = Math.floor(entry.contentRect.width); this.resize(); });
    this.observer.observe(this.place);
    this.visible = true;
    this.seen = new IntersectionObserver(([entry]) => { this.visible = entry.isIntersecting; if (this.visible && this.data) this.draw(); }, { rootMargin: "200px" });
    this.seen.observe(this.place);
  }

  columns(data) {
    return [data.at_s, ...this.series.map((each) => data[each.key])];
  }

  set(data, { from, until, events } = {}) {
    this.data = data;
    this.range = { from, until };
    if (events) this.events = events;
    if (!this.plot) this.build();
    if (this.visible) this.draw();
  }

  /** Draw what is known; not while the chart is scrolled out of sight. */
  draw() {
    if (!this.plot) return;
    this.plot.setData(this.columns(this.data), false);
    this.plot.setScale("x", { min: this.range.from, max: this.range.until });
    this.showValues(null);
    this.place.setAttribute("aria-label", this.describe(this.data));
  }

  build() {
    const { width } = this; // as observed: to ask for it here would have the page laid out for each chart
    if (!width || !this.data) return;
    const axis = { stroke: css("--muted"), font: FONT, grid: { stroke: css("--chart-grid"), width: 1 }, ticks: { show: false } };
    const options = {
      width, height: this.height, padding: [10, 20, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { setScale: false, x: false }, points: { show: false }, ...(this.sync ? { sync: { key: this.sync } } : {}) },
      scales: { x: { time: !this.x, range: (u, min, max) => (this.range ? [this.range.from, this.range.until] : [min, max]) }, y: { range: (u, min, max) => [0, Math.max(1, (max ?? 0) * 1.1)] } },
      axes: [{ ...axis, size: 28, space: 70, values: this.x ?? timeLabels }, { ...axis, size: 46, space: 26, values: (u, splits) => splits.map((value) => (value >= 10000 ? `${value / 1000}k` : String(value))) }],
      series: [{}, ...this.series.map((each) => ({
        stroke: css(each.color), width: each.width ?? 2, dash: each.dash, fill: each.fill ? css(each.fill) : undefined, points: { show: false }, spanGaps: false,
        paths: each.stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
      }))],
      hooks: { setCursor: [(u) => this.showValues(u.cursor.idx)], draw: [(u) => this.drawMarks(u)] },
    };
    this.plot = new uPlot(options, this.columns(this.data), this.place);
    if (this.onPick) this.plot.over.addEventListener("click", (event) => this.pick(event));
  }

  rebuild() {
    colors.clear();
    if (this.plot) this.plot.destroy();
    this.plot = null;
    this.build();
  }

  resize() {
    if (!this.plot) { this.build(); if (this.plot) this.showValues(null); return; }
    const { width } = this;
    if (width && width !== this.plot.width) this.plot.setSize({ width, height: this.height });
  }

  showValues(index) {
    if (!this.data) return;
    this.series.forEach((each, place) => {
      const values = this.data[each.key];
      let at = index ?? values.length - 1;
      if (index === null || index === undefined) while (at > 0 && values[at] === null) at -= 1;
      setText(this.keys[place].value, each.format(values[at]));
    });
  }

  drawMarks(u) {
    if (!this.marks && this.cursorX === undefined) return;
    const { ctx, bbox } = u;
    const ratio = window.devicePixelRatio || 1;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top - 8 * ratio, bbox.width, bbox.height + 8 * ratio);
    ctx.clip();
    if (this.cursorX !== undefined) {
      const x = Math.round(u.valToPos(this.cursorX, "x", true));
      ctx.strokeStyle = css("--text");
      ctx.lineWidth = 1.5 * ratio;
      ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
    }
    const [line, text] = [css("--strong-line"), css("--text")];
    for (const decision of this.events.decisions) {
      const x = Math.round(u.valToPos(decision.at_s, "x", true));
      ctx.strokeStyle = line;
      ctx.globalAlpha = 0.5;
      ctx.setLineDash([3 * ratio, 3 * ratio]);
      ctx.lineWidth = ratio;
      ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
      ctx.globalAlpha = 1;
      ctx.fillStyle = text;
      ctx.beginPath(); ctx.moveTo(x - 4 * ratio, bbox.top - 7 * ratio); ctx.lineTo(x + 4 * ratio, bbox.top - 7 * ratio); ctx.lineTo(x, bbox.top); ctx.fill();
    }
    ctx.setLineDash([]);
    if (this.marks === "actions") {
      const bottom = bbox.top + bbox.height;
      for (const action of this.events.actions) {
        const from = u.valToPos(action.started_at_s, "x", true);
        const to = Math.max(from + 3 * ratio, u.valToPos(action.started_at_s + action.duration_s, "x", true));
        ctx.fillStyle = css(action.outcome === "done" ? "--accent" : "--bad");
        ctx.fillRect(from, bottom - 6 * ratio, to - from, 5 * ratio);
      }
    }
    ctx.restore();
  }

  pick(event) {
    const { left } = this.plot.over.getBoundingClientRect();
    const x = event.clientX - left;
    let best = null;
    for (const decision of this.events.decisions) {
      const away = Math.abs(this.plot.valToPos(decision.at_s, "x") - x);
      if (away <= 12 && (best === null || away < best.away)) best = { away, decision };
    }
    if (best) this.onPick(best.decision);
  }
}
