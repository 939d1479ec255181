// Calls of the status API. The token is kept for this tab only.

const TOKEN = "themis-token";
let memory = "";

export const token = {
  read() { try { return sessionStorage.getItem(TOKEN) || memory; } catch { return memory; } },
  set(value) {
    memory = value.trim();
    try { memory ? sessionStorage.setItem(TOKEN, memory) : sessionStorage.removeItem(TOKEN); } catch { /* kept in memory */ }
  },
};

export class ApiError extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

const headers = () => (token.read() ? { Authorization: `Bearer ${token.read()}` } : {});

async function failure(response) {
  let reason = "";
  try { reason = (await response.json()).error; } catch { /* not JSON */ }
  return new ApiError(reason || `HTTP ${response.status}`, response.status);
}

export async function get(path, parameters = {}, signal = undefined) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) for (const each of [value].flat()) if (each !== undefined) query.append(name, each);
  const response = await fetch(`${path}?${query}`, { headers: headers(), signal, cache: "no-store" });
  if (!response.ok) throw await failure(response);
  return response.json();
}

export async function post(path, body = {}) {
  const response = await fetch(path, { method: "POST", headers: { ...headers(), "Content-Type": "application/json" }, body: JSON.stringify(body) });
  if (!response.ok) throw await failure(response);
  return response.json();
}

/** The status once a tick, for as long as the page is open. `onStatus(status)`, `onLost(error)`; reconnects by itself. */
export async function follow(onStatus, onLost) {
  let waitMs = 500;
  for (;;) {
    try {
      await readStream((status) => { waitMs = 500; onStatus(status); });
      onLost(new ApiError("the sidecar ended the connection", 0));
    } catch (error) {
      onLost(error instanceof ApiError ? error : new ApiError("the sidecar does not answer", 0));
    }
    await new Promise((resolve) => { setTimeout(resolve, waitMs); });
    waitMs = Math.min(5000, 2 * waitMs);
  }
}

const SILENT_MS = 40000;

async function readStream(onStatus) {
  const begun = window.themisEvents;
  window.themisEvents = null;
  const control = begun ? begun.control : new AbortController();
  let timer = setTimeout(() => control.abort(), SILENT_MS);
  try {
    const response = await (begun ? begun.response : fetch("v1/events", { headers: headers(), signal: control.signal, cache: "no-store" }));
    if (!response.ok) throw await failure(response);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => control.abort(), SILENT_MS);
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      const messages = blocks.map((block) => block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n"));
      const last = messages.filter(Boolean).pop();
      if (last) onStatus(JSON.parse(last));
    }
  } finally {
    clearTimeout(timer);
    control.abort();
  }
}
