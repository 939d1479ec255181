// Calls that change the sidecar. Each is confirmed, needs the token, and its answer is said in words.

import { post, token } from "./api.js";
import { byId, h, setText } from "./dom.js";

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
    this.pause = h("button", { type: "button", onclick: () => this.togglePause() }, "Pause");
    const reload = h("button", { type: "button", onclick: () => this.call("Reload the settings?", "The settings file is read again. What cannot change while the sidecar runs is named and stays as it is.", "Reload", "v1/reload", () => "The settings are read again; the outcome is under Decisions and changes.") }, "Reload settings");
    byId("control-buttons").append(this.pause, reload);
    this.paused = false;
  }

  take(status) {
    this.paused = status.paused;
    setText(this.pause, status.paused ? "Resume" : "Pause");
  }

  togglePause() {
    if (this.paused) return this.call("Resume?", "From the next tick on, Themis carries its decisions out again.", "Resume", "v1/resume", () => "Resumed: decisions are carried out from the next tick on.");
    return this.call("Pause Themis?", "It goes on observing and shows what it would do, and changes nothing until it is resumed. Servers go on serving; requests beyond their capacity wait.", "Pause", "v1/pause", () => "Paused: nothing is changed from the next tick on.");
  }

  async call(title, text, action, path, done) {
    if (!token.read()) {
      this.say("bad", "Refused: enter the token first.");
      byId("token").focus();
      return;
    }
    if (!(await confirmed(title, text, action, false))) return;
    this.say("", `${action}…`);
    try {
      await post(path);
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
