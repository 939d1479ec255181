// Calls that change the sidecar. Each is confirmed, needs the token, and its answer is said in words.

import { post, token } from "./api.js";
import { byId, h, reconcile, setText } from "./dom.js";
import * as f from "./format.js";
import { pinWords } from "./state.js";

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
    this.models = byId("pin-model");
    byId("pin-button").addEventListener("click", () => this.pin());
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
    const names = [...new Set(status.pipelines.flatMap((pipeline) => pipeline.stages))].sort();
    if (this.models.dataset.names !== names.join("\n")) {
      this.models.dataset.names = names.join("\n");
      this.models.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    }
    reconcile(byId("pins"), status.overrides.pins, (pin) => pin.model, (pin) => h("li", {}, h("span", {}), h("button", { type: "button", onclick: () => this.unpin(pin.model) }, `Unpin ${pin.model}`)), (element, pin) => setText(element.firstChild, `${pinWords(pin)}, for ${f.duration(pin.until_s - status.at_s)} more`));
  }

  pin() {
    const [model, instances, seconds] = [this.models.value, Number(byId("pin-instances").value), Number(byId("pin-for").value)];
    const count = f.plural(instances, "instance");
    return this.call(`Pin ${model}?`, `It keeps ${count} on each server for ${f.duration(seconds)}, whatever the demand. Servers are scaled on.`, "Pin", "v1/pin", () => `${model} is pinned at ${count} from the next tick on.`, { model, instances, for_s: seconds });
  }

  unpin(model) {
    return this.call(`Unpin ${model}?`, "From the next tick on, plans choose its instances again.", "Unpin", "v1/unpin", () => `${model} is no longer pinned.`, { model });
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

  async call(title, text, action, path, done, body = {}) {
    if (!token.read()) {
      this.say("bad", "Refused: enter the token first.");
      byId("token").focus();
      return;
    }
    if (!(await confirmed(title, text, action, false))) return;
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
