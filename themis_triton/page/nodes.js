// The table of node types: price, slots, and what the engine last said is free on their nodes.

import { byId, h, reconcile, setText, show, stateMark } from "./dom.js";
import * as f from "./format.js";
import { nodeTypeCells, nodeTypeState, nodesNote } from "./state.js";

const TITLES = ["State", "Node type", "Price per hour", "Slots used", "Nodes", "Free devices", "More servers fit"];

export class NodeTypes {
  constructor() {
    this.table = byId("node-types");
    this.table.classList.add("cards");
    this.body = h("tbody");
    this.table.replaceChildren(h("caption", { class: "sr-only" }, "Node types, in the order in which launches take them"), h("thead", {}, h("tr", {}, TITLES.map((title) => h("th", { scope: "col" }, title)))), this.body);
  }

  render(status) {
    const nodes = status.nodes ?? null;
    show(byId("node-types-part"), nodes !== null);
    if (nodes === null) return;
    const note = byId("node-types-note");
    setText(note, nodesNote(nodes, status.at_s));
    reconcile(this.body, nodes.node_types, (each) => each.node_type, (each) => this.create(each), (element, each) => this.update(element, each));
  }

  create(each) {
    const state = h("td", { class: "head", data: { label: TITLES[0] } }, h("span", { class: "state" }));
    return h("tr", {}, state, h("th", { scope: "row", class: "tight" }, each.node_type), TITLES.slice(2).map((label) => h("td", { class: "tight", data: { label } })));
  }

  update(element, each) {
    const { level, word } = nodeTypeState(each);
    stateMark(element.firstChild.firstChild, level, word);
    nodeTypeCells(each).forEach((text, index) => setText(element.children[index + 2], text));
  }
}
