// Calls that change the sidecar. Each is confirmed, needs the token, and its answer is said in words.

import { post, token } from "./api.js";
import { byId, h, reconcile, setText } from "./dom.js";
import * as f from "./format.js";
import { boundsWords, drainWords } from "./state.js";

const NAME = "themis-name";

function confirmed(title, text, action, danger) {
  const dialog = byId("confirm");
  setText(byId("confirm-title"), title);
  setText(byId("confirm-text"), text);
  const yes = byId("confirm-yes");
  setText(yes, action);
  yes.className = danger ? "danger" : "primary";
  return new Promise((resolve) => {
    const end = (answer) => { dialog.close(); resolve(answer); };
    yes.onclick = () => end(true);
    byId("confirm-no").onclick = () => end(false);
    dialog.oncancel = () => resolve(false);
    dialog.showModal();
    byId("confirm-no").focus();
  });
}

/** Choices of a list, made anew only where they changed, so that what is chosen stays. */
function options(list, key, create) {
  if (list.dataset.shown === key) return;
  const chosen = list.value;
  list.dataset.shown = key;
  list.replaceChildren(...create());
  if ([...list.options].some((option) => option.value === chosen)) list.value = chosen;
}

export class Controls {
  constructor() {
    const field = byId("token");
    field.value = token.read();
    field.addEventListener("input", () => token.set(field.value));
    byId("token-clear").addEventListener("click", () => { token.set(""); field.value = ""; this.say("good", "The token is forgotten."); field.focus(); });
    byId("controls-form").addEventListener("submit", (event) => event.preventDefault());
    this.by = byId("control-by");
    try { this.by.value = localStorage.getItem(NAME) ?? ""; } catch { /* a private window */ }
    this.by.addEventListener("input", () => { try { localStorage.setItem(NAME, this.by.value); } catch { /* a private window */ } });
    this.what = byId("pin-what");
    byId("pin-button").addEventListener("click", () => this.pin());
    for (const id of ["pin-min", "pin-max"]) byId(id).addEventListener("input", () => setText(byId("pin-button"), this.isPin() ? "Pin" : "Bound"));
    this.servers = byId("drain-server");
    byId("drain-button").addEventListener("click", () => this.drain());
    this.pause = h("button", { type: "button", onclick: () => this.togglePause() }, "Pause");
    const reload = h("button", { type: "button", onclick: () => this.call("Reload the settings?", "The settings file is read again. What cannot change while the sidecar runs is named and stays as it is.", "Reload", "v1/reload", () => "The settings are read again; the outcome is under Decisions and changes.") }, "Reload settings");
    this.mode = h("button", { type: "button", onclick: () => this.switchMode() }, "Switch the mode");
    byId("control-buttons").append(this.pause, this.mode, reload);
    this.paused = false;
  }

  /** Who does it, and why, for the journal. */
  said() { return { by: this.by.value, why: byId("control-why").value }; }

  take(status) {
    this.paused = status.paused;
    setText(this.pause, status.paused ? "Resume" : "Pause");
    this.target = status.overrides.mode ? "settings" : status.mode === "active" ? "advisory" : "active";
    setText(this.mode, this.target === "settings" ? "Mode of the settings" : `Switch to ${this.target}`);
    const models = [...new Set(status.pipelines.flatMap((pipeline) => pipeline.stages))].sort();
    const groups = [["Instances a server", "instances", models], ["Servers", "servers", status.pipelines.map((pipeline) => pipeline.name)]];
    options(this.what, JSON.stringify(groups), () => groups.map(([label, counted, names]) => h("optgroup", { label }, names.map((name) => h("option", { value: `${counted}:${name}` }, name)))));
    const drained = new Set(status.overrides.drains.map((drain) => drain.server));
    const servers = status.servers.filter((server) => server.phase === "serving" && !drained.has(server.name)).map((server) => server.name);
    options(this.servers, JSON.stringify(servers), () => servers.map((name) => h("option", { value: name }, name)));
    byId("drain-button").disabled = servers.length === 0;
    const item = (undo, label) => h("li", {}, h("span", {}), h("button", { type: "button", onclick: undo }, label));
    reconcile(byId("pins"), status.overrides.bounds, (each) => `${each.counted} ${each.name}`, (each) => item(() => this.unpin(each.name), `Unpin ${each.name}`), (element, each) => setText(element.firstChild, `${boundsWords(each)}, for ${f.duration(each.until_s - status.at_s)} more`));
    reconcile(byId("drains"), status.overrides.drains, (each) => each.server, (each) => item(() => this.undrain(each.server), `Undrain ${each.server}`), (element, each) => setText(element.firstChild, drainWords(each)));
  }

  isPin() { return byId("pin-min").value === byId("pin-max").value; }

  pin() {
    const [counted, ...rest] = this.what.value.split(":");
    const [name, min, max, seconds] = [rest.join(":"), Number(byId("pin-min").value), Number(byId("pin-max").value), Number(byId("pin-for").value)];
    const body = { [counted === "instances" ? "model" : "pipeline"]: name, for_s: seconds };
    const verb = this.isPin() ? "Pin" : "Bound";
    const words = boundsWords({ counted, name, min, max });
    const others = counted === "instances" ? "Servers are scaled on." : "Instances are scaled on.";
    return this.call(`${verb} ${name}?`, `${words} for ${f.duration(seconds)}, whatever the demand. ${others}`, verb, this.isPin() ? "v1/pin" : "v1/bounds", () => `${words} from the next tick on.`, { ...body, ...(this.isPin() ? { [counted]: min } : { min, max }) });
  }

  unpin(name) {
    return this.call(`Unpin ${name}?`, "From the next tick on, plans choose its numbers again.", "Unpin", "v1/unpin", () => `${name} is no longer pinned or bounded.`, { name });
  }

  drain() {
    const [server, force] = [this.servers.value, byId("drain-force").checked];
    const when = force ? "From the next plan on it gets no new requests, whether or not the others carry the load." : "It gets no new requests once the others carry its load, with a replacement where a slot is free.";
    return this.call(`Drain ${server}?`, `${when} An adopted server runs on, a launched one retires.`, "Drain", "v1/drain", () => `${server} is to be drained; the fleet shows when it is.`, { server, force }, force);
  }

  undrain(server) {
    return this.call(`Undrain ${server}?`, "From the next tick on, requests are routed to it again.", "Undrain", "v1/undrain", () => `${server} is no longer drained.`, { server });
  }

  switchMode() {
    const mode = this.target;
    const texts = { active: "From the next tick on, decisions are carried out.", advisory: "From the next tick on, Themis shows what it would do and changes nothing; no requests are refused.", settings: "The mode is again that of the settings file." };
    return this.call(mode === "settings" ? "Use the mode of the settings?" : `Switch to ${mode} mode?`, texts[mode], "Switch", "v1/mode", () => (mode === "settings" ? "The mode is that of the settings." : `The mode is ${mode}, also after a restart.`), { mode });
  }

  togglePause() {
    if (this.paused) return this.call("Resume?", "From the next tick on, Themis carries its decisions out again.", "Resume", "v1/resume", () => "Resumed: decisions are carried out from the next tick on.");
    return this.call("Pause Themis?", "It goes on observing and shows what it would do, and changes nothing until it is resumed. Servers go on serving; requests beyond their capacity wait.", "Pause", "v1/pause", () => "Paused: nothing is changed from the next tick on.");
  }

  async call(title, text, action, path, done, body = {}, danger = false) {
    if (!token.read()) {
      this.say("bad", "Refused: enter the token first.");
      byId("token").focus();
      return;
    }
    if (!(await confirmed(title, text, action, danger))) return;
    this.say("", `${action}…`);
    try {
      await post(path, { ...this.said(), ...body });
      this.say("good", done());
    } catch (error) {
      this.say("bad", error.status ? `Refused: ${error.message}` : "The sidecar does not answer; nothing is known to have changed.");
    }
  }

  say(level, text) {
    const place = byId("control-result");
    place.dataset.level = level;
    setText(place, text);
  }
}
