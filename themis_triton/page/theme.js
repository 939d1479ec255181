// Sets the theme before the first paint. "auto" follows the system.
"use strict";
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
