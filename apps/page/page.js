// The page: continue a text or chat, teach, sessions. All that is shown is kept in the browser, by session.
import { Refused, access, ask, at, events, get, list, store } from "/page/client.js";
import { Letters, average, drawCurve, drawDrift, drawLesson, drawMoves, element, paint } from "/page/draw.js";

const $ = id => document.getElementById(id);
const LESSON = "The grellip sings in spring, and the miller keeps the coins in a blue jar. ".repeat(4).trim();
const fresh = () => ({ entries: [], messages: [], bits: [], begin: -1, kind: "answer", moves: [], drift: {}, result: null, last: "", text: "", paste: "" });
let session = store.get("session") || "visitor " + Math.random().toString(36).slice(2, 7);
let model = null, kept = fresh(), running = false;

const place = () => `hope ${access.model} ${session}`;  // where the browser keeps what was done with this model here

// What is kept ---------------------------------------------------------------------------------------------------------

function keep() {
  kept.text = $("text").value; kept.paste = $("paste").value;
  kept.entries = kept.entries.slice(-30);
  while (!store.set(place(), kept) && kept.entries.length) kept.entries.shift();  // a full store lets the oldest go
}

function openSession(name) {
  session = name;
  store.set("session", name);
  kept = { ...fresh(), ...store.get(place()) };
  $("text").value = kept.text; $("paste").value = kept.paste; $("named").textContent = $("whose").textContent = name;
  $("log").replaceChildren();
  for (const entry of kept.entries) showEntry(entry);
  $("result").hidden = !kept.result;
  $("step").textContent = "";
  if (kept.result) drawLesson(kept.result);
  draw();
}

// Showing --------------------------------------------------------------------------------------------------------------

let waiting = false;
function draw() {
  if (waiting || !model) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; drawCurve(kept.bits, kept.begin, kept.kind); drawMoves(model, kept.moves); drawDrift(model, kept.drift); });
}

function measured(seen, shown = true) {  // what the server tells of a piece
  if (shown) kept.bits.push(...seen.bits.map(b => b ?? 0));
  if (seen.moved && seen.learning) kept.moves.push(seen.moved);
  if (kept.bits.length > 1200) { kept.begin = Math.max(-1, kept.begin - kept.bits.length + 1200); kept.bits = kept.bits.slice(-1200); }
  kept.moves = kept.moves.slice(-48);
  if (seen.drift) kept.drift = seen.drift;
  draw();
}

function showEntry(entry) {  // {chat, yours: letters, its: letters}
  const yours = element("div", { class: "text yours" }), its = entry.chat ? element("div", { class: "text its" }) : yours;
  const box = element("div", { class: "entry" });
  if (entry.chat) box.append(element("b", {}, "you"), yours, element("b", {}, "model"), its);
  else box.append(yours);
  const shown = { box, yours, its, begin() {
    its.append(element("span", { class: "mark", role: "img", "aria-label": "here the model goes on" }, "▶"));
  } };
  paint(yours, entry.yours);
  if (entry.its.length || entry.done) shown.begin();
  paint(its, entry.its);
  shown.end = () => {
    if (entry.chat) return;
    const go = element("button", { type: "button", class: "small" }, "take this as the text");
    go.addEventListener("click", () => { $("text").value = [...entry.yours, ...entry.its].map(([letter]) => letter).join(""); keep(); $("text").focus(); });
    box.append(go);
  };
  if (entry.done) shown.end();
  $("log").append(box);
  $("log").scrollTop = $("log").scrollHeight;
  return shown;
}

const BUSY = ["go", "teach-it", "reset", "undo", "new", "sessions", "models", "learn"];
async function busy(work) {  // one thing at a time; what goes wrong is said
  if (running) return;
  running = true;
  access.stop = new AbortController();
  $("problem").textContent = "";
  for (const id of BUSY) $(id).disabled = true;
  $("stop").disabled = false;
  try { await work(); } catch (error) { say(error); } finally {
    $("stop").disabled = true;
    access.stop = null;
    keep();
    await about();
    running = false;
    for (const id of BUSY) $(id).disabled = false;
  }
}

function say(error) {
  if (error.name === "AbortError") return;
  if (error.status === 401) $("locked").hidden = false;
  $("problem").textContent = error instanceof Refused ? error.message : `The server does not answer (${error.message}).`;
}

function chooseModel(name) {
  access.model = name;
  store.set("model", name);
  $("examples").replaceChildren();
}

async function about() {
  try {
    const models = (await get("/v1/models")).data, found = models.find(one => one.id === access.model) || models[0];
    if (found.id !== access.model) { chooseModel(found.id); openSession(session); }
    $("models-label").hidden = models.length < 2;
    $("models").replaceChildren(...models.map(one => element("option", { value: one.id, ...(one === found ? { selected: "" } : {}) }, one.id)));
    const all = (await get(list())).data;
    const here = all.find(one => one.id === session), trained = found.hope.trained;
    model = found.hope;
    $("about").textContent = `${found.id}: ${model.parameters.toLocaleString("en")} parameters${trained.sentence ? ", trained for " + trained.sentence : ""}.${model.taught ? "" : " It continues texts; it was not taught to converse."}`;
    $("unit").textContent = `length in ${model.unit}s`;
    $("learned").textContent = here?.learned ? `${here.learned.toLocaleString("en")} bytes learned` : "nothing learned yet";
    $("undo").disabled = !here;
    const names = [...new Set([session, ...all.map(one => one.id)])].slice(0, 100);
    $("sessions").replaceChildren(...names.map(name => element("option", { value: name, ...(name === session ? { selected: "" } : {}) }, name)));
    if (!$("examples").children.length) $("examples").append(...trained.examples.map(text => {
      const button = element("button", { type: "button", class: "example" }, text.trim());
      button.addEventListener("click", () => { $("text").value = text; choose("continue"); $("form").requestSubmit(); });
      return button;
    }));
    if (here) kept.drift = (await get(at(session))).drift;
    draw();
  } catch (error) { say(error); }
}

// Writing --------------------------------------------------------------------------------------------------------------

const mode = () => document.querySelector("input[name=mode]:checked").value;
function choose(wanted) {
  for (const radio of document.querySelectorAll("input[name=mode]")) radio.checked = radio.value === wanted;
  const chat = wanted === "chat";
  $("h-write").textContent = chat ? "Chat" : "Continue a text";
  $("go").textContent = chat ? "Send" : "Continue";
  $("text-label").textContent = chat ? "Message" : "Text to continue";
  $("text").placeholder = chat ? "Say something. Enter sends, Shift+Enter begins a new line." : "Begin a text, and let it go on. Ctrl+Enter sends.";
}

async function write() {
  const said = $("text").value, chat = mode() === "chat", learning = $("learn").checked;
  const common = { trace: true, max_tokens: +$("length").value, temperature: +$("temperature").value, top_p: .95, user: session, learn: learning };
  const messages = [...kept.messages, { role: "user", content: said }];
  const entry = { chat, yours: [], its: [], done: false }, shown = showEntry(entry);
  const size = new TextEncoder().encode(said).length, read = { bytes: [], bits: [] }, its = new Letters();
  let begun = false;
  kept.bits = []; kept.begin = -1; kept.kind = "answer";
  function begin() {  // the prompt was read: its last bytes are the text, in a chat with the model's turn behind it
    if (begun) return;
    begun = true;
    const behind = chat ? model.tail : 0, end = read.bytes.length - behind, start = Math.max(0, end - size);
    entry.yours = new Letters().feed(read.bytes.slice(start, end), read.bits.slice(start, end));
    kept.begin = kept.bits.length;
    paint(shown.yours, entry.yours);
    shown.begin();
  }
  try {
    const [path, body] = chat ? ["/v1/chat/completions", { messages }] : ["/v1/completions", { prompt: said }];
    for await (const found of events(path, { ...body, ...common })) {
      const seen = found.hope;
      if (found.choices[0]?.finish_reason) entry.done = true;
      if (!seen?.bytes) continue;
      if (seen.from === "prompt") { read.bytes.push(...seen.bytes); read.bits.push(...seen.bits); }
      if (seen.from === "answer") {
        begin();
        const letters = its.feed(seen.bytes, seen.bits);
        entry.its.push(...letters);
        paint(shown.its, letters);
        $("log").scrollTop = $("log").scrollHeight;
      }
      measured({ ...seen, learning }, seen.from !== "learning");
    }
  } finally {
    const text = entry.its.map(([letter]) => letter).join("");
    if (read.bytes.length || entry.its.length) {
      begin();
      entry.done = true;
      kept.entries.push(entry);
      shown.end();
      if (learning) kept.last = chat ? "chat" : "text";
      if (chat) { kept.messages = [...messages, { role: "assistant", content: text }]; $("text").value = ""; }
      $("spoken").textContent = "The model writes: " + text;
    } else shown.box.remove();
  }
}

// Teaching -------------------------------------------------------------------------------------------------------------

async function reading(text, learn, shown = () => {}) {
  const found = [];
  for await (const piece of events("/v1/read", { text, learn, user: session })) {
    if (piece.bits) { found.push(...piece.bits.map(b => b ?? 0)); shown({ ...piece, learning: learn }); }
  }
  return found;
}

async function teach() {
  const text = $("paste").value, size = new TextEncoder().encode(text).length;
  try {
    kept.bits = []; kept.begin = -1; kept.kind = "reading";
    $("step").textContent = "1 of 3: reading it twice, learning off…";
    const off = await reading(text + text, false);
    $("step").textContent = "2 of 3: reading it, learning on…";
    const first = await reading(text, true, measured);
    $("step").textContent = "3 of 3: reading it again…";
    kept.begin = kept.bits.length;
    const second = await reading(text, false, measured);
    kept.result = { on: [average(first), average(second)], off: [average(off.slice(0, size)), average(off.slice(size))] };
    kept.last = "lesson";
    drawLesson(kept.result);
    $("step").textContent = `Learned. The second reading takes ${average(second).toFixed(2)} bits per byte, after ${average(first).toFixed(2)} at first.`;
  } finally { if ($("step").textContent.endsWith("…")) $("step").textContent = ""; }
}

// What is done with buttons and keys -------------------------------------------------------------------------------------

const on = (id, what, act) => $(id).addEventListener(what, act);
on("form", "submit", event => { event.preventDefault(); if ($("text").value.trim()) busy(write); });
on("lesson", "submit", event => { event.preventDefault(); if ($("paste").value.trim()) busy(teach); });
on("made-up", "click", () => { $("paste").value = LESSON; keep(); });
on("text", "keydown", event => {
  if (event.key !== "Enter" || event.isComposing || event.shiftKey) return;
  if (mode() === "chat" || event.ctrlKey || event.metaKey) { event.preventDefault(); $("form").requestSubmit(); }
});
document.addEventListener("keydown", event => { if (event.key === "Escape" && !document.querySelector("dialog[open]")) access.stop?.abort(); });
on("stop", "click", () => access.stop?.abort());
for (const id of ["text", "paste"]) on(id, "input", keep);
for (const radio of document.querySelectorAll("input[name=mode]")) radio.addEventListener("change", () => { choose(radio.value); settings(); });
on("locked", "submit", event => { event.preventDefault(); access.key = $("key").value; $("locked").hidden = true; $("problem").textContent = ""; about(); });

on("models", "change", () => { keep(); chooseModel($("models").value); openSession(session); about(); });
on("sessions", "change", () => { keep(); openSession($("sessions").value); about(); });
on("new", "click", () => { $("name").value = ""; $("naming").showModal(); });
on("no-name", "click", () => $("naming").close());
on("name-form", "submit", event => { event.preventDefault(); $("naming").close(); keep(); openSession($("name").value.trim() || session); keep(); about(); });
on("undo", "click", () => busy(async () => {
  await ask(at(session), { reset: "last" });
  if (kept.last === "chat") { kept.messages.splice(-2); kept.entries.splice(kept.entries.findLastIndex(entry => entry.chat), 1); }
  if (kept.last === "lesson") kept.result = null;
  kept.drift = {}; kept.last = "";
  keep();
  openSession(session);
  $("step").textContent = "The last lesson is undone.";
}));
on("reset", "click", () => $("sure").showModal());
on("keep", "click", () => $("sure").close());
on("forget", "click", () => { $("sure").close(); busy(async () => {
  await ask(at(session), null, "DELETE").catch(error => { if (error.status !== 404) throw error; });
  store.set(place(), fresh());
  openSession(session);
  drawCurve([], -1, "answer");
  $("mean").textContent = "Nothing was read yet.";
}); });
on("export", "click", () => {
  const about = { session, model: $("about").textContent, ...kept, unit: "bits; text as [letter, bits]" };
  const link = element("a", { href: URL.createObjectURL(new Blob([JSON.stringify(about, null, 1)], { type: "application/json" })), download: `hope ${session}.json` });
  link.click();
  URL.revokeObjectURL(link.href);
});

function projector(wanted) {
  document.documentElement.classList.toggle("projector", wanted);
  $("projector").setAttribute("aria-pressed", wanted);
}
on("projector", "click", () => { projector($("projector").getAttribute("aria-pressed") !== "true"); settings(); });

function settings() {
  $("heat").textContent = $("temperature").value; $("bytes").textContent = $("length").value;
  store.set("settings", { mode: mode(), learn: $("learn").checked, temperature: $("temperature").value, length: $("length").value,
                          projector: $("projector").getAttribute("aria-pressed") === "true", tools: $("tools").open });
}
const before = store.get("settings") || {};
for (const id of ["temperature", "length"]) { if (before[id]) $(id).value = before[id]; on(id, "input", settings); }
$("learn").checked = !!before.learn;
on("learn", "change", settings);
$("tools").open = !!before.tools;
on("tools", "toggle", settings);
projector(!!before.projector);
choose(before.mode || "continue");
settings();
access.model = store.get("model") || "";
openSession(session);
about();
new ResizeObserver(draw).observe($("watch"));
