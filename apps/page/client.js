// Asking the server: JSON, streams of events, and what the browser keeps.
export const access = { key: "", model: "", stop: null };

export class Refused extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

export async function ask(path, body, method = "POST") {
  const headers = { ...(body ? { "content-type": "application/json" } : {}), ...(access.key ? { authorization: "Bearer " + access.key } : {}) };
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal: access.stop?.signal });
  if (answer.ok) return answer;
  const found = await answer.json().catch(() => null);
  throw new Refused(found?.error?.message || answer.statusText, answer.status);
}

export const get = async path => (await ask(path, null, "GET")).json();
const meant = () => access.model ? "?model=" + encodeURIComponent(access.model) : "";
export const list = () => "/v1/sessions" + meant();
export const at = session => "/v1/sessions/" + encodeURIComponent(session) + meant();

export async function* events(path, body) {  // server-sent events, whole lines at a time
  const answer = await ask(path, { ...body, model: access.model, stream: true });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const found = JSON.parse(line.slice(6));
      if (found.error) throw new Refused(found.error.message);
      yield found;
    }
  }
}

export const store = {  // a private window keeps nothing
  get(name) { try { return JSON.parse(localStorage.getItem(name)); } catch { return null; } },
  set(name, value) { try { localStorage.setItem(name, JSON.stringify(value)); return true; } catch { return false; } },
  remove(name) { try { localStorage.removeItem(name); } catch { /* there was none */ } } };
