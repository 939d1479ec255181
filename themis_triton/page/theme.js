// Before anything else: the theme, so that the first paint has it, and the request for the statuses, which the rest of the page waits for.
"use strict";
(() => {
  const control = new AbortController();
  let token = "";
  try { token = sessionStorage.getItem("themis-token") || ""; } catch { /* there is none */ }
  const response = fetch("v1/events", { headers: token ? { Authorization: `Bearer ${token}` } : {}, signal: control.signal, cache: "no-store" });
  response.catch(() => { /* told where it is read */ });
  window.themisEvents = { response, control };
})();
(() => {
  const key = "themis-theme";
  const read = () => { try { return localStorage.getItem(key) || "auto"; } catch { return "auto"; } };
  const apply = (choice) => {
    if (choice === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
  };
  apply(read());
  window.themisTheme = {
    read,
    set(choice) { try { localStorage.setItem(key, choice); } catch { /* a private window keeps it for this page only */ } apply(choice); },
  };
})();
