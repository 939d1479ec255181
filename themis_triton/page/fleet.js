// The table of servers: state, device, instances, memory, and what is under way; the ones that need attention first.

import { byId, h, reconcile, setText, show, stateMark } from "./dom.js";
import * as f from "./format.js";
import { serverNotes, serverState } from "./state.js";

export class Fleet {
  constructor() {
    this.table = byId("servers");
    this.table.classList.add("cards");
    this.body = h("tbody");
    const titles = ["State", "Server", "Device", "Instances", "Free memory", "Under way"];
    this.table.replaceChildren(h("caption", { class: "sr-only" }, "Servers, the ones that need attention first"), h("thead", {}, h("tr", {}, titles.map((title) => h("th", { scope: "col" }, title)))), this.body);
  }

  render(status) {
    const rows = status.servers.map((server) => ({ server, state: serverState(server, status), notes: serverNotes(server, status) }));
    rows.sort((a, b) => a.state.rank - b.state.rank || (a.server.name < b.server.name ? -1 : 1));
    const memory = Object.fromEntries(status.devices.map((device) => [device.device, device]));
    reconcile(this.body, rows, (row) => row.server.name, (row) => this.create(row), (element, row) => this.update(element, row, memory));
    show(this.table, rows.length > 0);
    show(byId("fleet-empty"), rows.length === 0);
    setText(byId("fleet-empty"), status.tick ? "No server is known. Adopted servers appear once they answer; launched ones as soon as they start." : "No data yet.");
    const serving = rows.filter((row) => row.server.phase === "serving").length;
    const instances = status.servers.reduce((sum, server) => sum + Object.values(server.models).reduce((all, state) => all + state.instances, 0), 0);
    setText(byId("fleet-note"), `${serving} of ${f.plural(rows.length, "server")} serving, ${f.plural(instances, "instance")}, cost ${f.count(Math.round(10 * status.cost_per_s) / 10)} price units per second`);
  }

  create({ server }) {
    const cell = (label, extra = "") => h("td", { class: extra || undefined, data: { label } });
    const state = cell("State", "head");
    state.append(h("span", { class: "state" }));
    return h("tr", {}, state, h("th", { scope: "row", class: "tight" }, server.name, h("span", { class: "quiet" }, server.launched ? " launched" : " adopted")), cell("Device", "tight"), cell("Instances", "full"), cell("Free memory", "tight"), cell("Under way", "full"));
  }

  update(element, { server, state, notes }, memory) {
    const [mark, , device, models, free, note] = element.children;
    stateMark(mark.firstChild, state.level, state.word);
    setText(device, [server.device, ...server.reach].join(", "));
    const text = JSON.stringify(server.models);
    if (models.dataset.shown !== text) {
      models.dataset.shown = text;
      models.replaceChildren(h("div", { class: "models" }, Object.entries(server.models).sort().map(([name, state]) => h("span", {}, `${name} `, h("b", {}, `× ${state.instances}`)))));
    }
    const reading = memory[server.device];
    setText(free, reading?.memory_total_bytes ? f.part(reading.memory_free_bytes, reading.memory_total_bytes) : "not measured");
    free.classList.toggle("quiet", !reading?.memory_total_bytes);
    setText(note, notes.join("; ") || "nothing");
    note.classList.toggle("quiet", notes.length === 0);
  }
}
