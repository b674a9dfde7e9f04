// Drawing what was measured: text by surprise, curves, moves of levels, distances.
const SVG = "http://www.w3.org/2000/svg", $ = id => document.getElementById(id);
export const average = numbers => numbers.reduce((a, b) => a + b, 0) / (numbers.length || 1);

function make(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export function element(name, attributes = {}, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}

// Text ---------------------------------------------------------------------------------------------------------------

export class Letters {  // bytes with their bits → letters with theirs
  constructor() { this.decoder = new TextDecoder(); this.bits = 0; }
  feed(bytes, bits) {
    const found = [];
    bytes.forEach((byte, i) => {
      this.bits += bits[i] ?? 0;
      const letter = this.decoder.decode(Uint8Array.of(byte), { stream: true });
      if (letter) { found.push([letter, +this.bits.toFixed(1)]); this.bits = 0; }
    });
    return found;
  }
}

export function paint(box, letters) {
  for (const [letter, bits] of letters) {
    const span = element("span", { class: "h" + Math.min(5, Math.round(bits / 2)), title: bits + " bits" }, letter);
    box.append(span);
  }
}

// Names --------------------------------------------------------------------------------------------------------------

export function levelName(model, chunk) {  // [plain, the paper's]
  const rank = model.chunks.indexOf(chunk), last = model.chunks.length - 1;
  const plain = last < 1 ? "level" : rank === 0 ? "fast level" : rank === last ? "slow level" : last === 2 ? "middle level" : `level ${rank + 1}`;
  return [plain, `moves every ${(chunk * model.tick).toLocaleString("en")} ${model.unit}s, C = ${chunk}`];
}

const NAMES = { memory: ["main memory", "M_mem"], k: ["what is looked up by: keys", "M_k"], v: ["what is found: values", "M_v"],
  q: ["what is asked: queries", "M_q"], eta: ["how strongly it writes", "M_η"], alpha: ["how much it keeps", "M_α"],
  cell: ["the cell’s vectors", "m"], weights: ["generated weights", "W"] };

function memoryName(model, name) {
  if (name.startsWith("level ")) return levelName(model, +name.slice(6));
  if (name.startsWith("bank ")) return ["bank", `moves every ${name.slice(5)} ${model.unit}s`];
  return NAMES[name] || [name, ""];
}

const colour = (model, chunk) => `var(--level${Math.min(model.chunks.indexOf(chunk), 4)})`;

// Pictures -----------------------------------------------------------------------------------------------------------

function room(svg, height) {  // a unit is a sixteenth of the text's size, however wide the picture is
  const unit = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16, width = Math.max(240, (svg.clientWidth || 480) / unit);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return width - 6;
}

const PARTS = { answer: ["▶ the model goes on", "yours", "its own"], reading: ["the second reading", "the first reading", "the second"] };

export function drawCurve(bits, begin, kind) {  // begin: where the second part begins, an answer or a second reading; or -1
  const curve = $("curve"), left = 34, right = room(curve, 190), top = 22, bottom = 150;
  const most = Math.max(8, Math.ceil(Math.max(...bits, 0))), x = i => left + i * (right - left) / Math.max(bits.length - 1, 1), y = b => bottom - (bottom - top) * b / most;
  curve.replaceChildren(make("text", { x: 0, y: 12, class: "small" }, "bits per byte"));
  for (const b of [0, most / 2, most]) curve.append(make("line", { x1: left, x2: right, y1: y(b), y2: y(b), class: b ? "grid" : "axis" }),
    make("text", { x: left - 6, y: y(b) + 4, "text-anchor": "end", class: "small" }, b));
  if (!bits.length) return;
  const path = values => values.map((b, i) => `${x(i).toFixed(1)},${y(b).toFixed(1)}`).join(" ");
  const near = bits.map((_, i) => average(bits.slice(Math.max(0, i - 7), i + 8)));
  curve.append(make("polyline", { points: path(bits), class: "dot" }), make("polyline", { points: path(near), class: "mean" }));
  for (const i of [0, Math.floor(bits.length / 2), bits.length - 1])
    curve.append(make("text", { x: x(i), y: bottom + 15, "text-anchor": i ? (i === bits.length - 1 ? "end" : "middle") : "start", class: "small" }, i + 1));
  curve.append(make("text", { x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle", class: "small" }, "byte of the text (thick: mean of 15)"));
  if (begin > 0 && begin < bits.length) curve.append(make("line", { x1: x(begin), x2: x(begin), y1: top - 6, y2: bottom, class: "begin" }),
    make("text", { x: x(begin) + (begin > bits.length / 2 ? -4 : 4), y: top - 8, "text-anchor": begin > bits.length / 2 ? "end" : "start", class: "small" }, PARTS[kind][0]));
  const told = begin > 0 ? `${PARTS[kind][1]} ${average(bits.slice(0, begin)).toFixed(2)}, ${PARTS[kind][2]} ${average(bits.slice(begin)).toFixed(2)} bits per byte` : `${average(bits).toFixed(2)} bits per byte`;
  $("mean").textContent = `${bits.length} bytes: ${told}.`;
  curve.setAttribute("aria-label", `Surprise of the last ${bits.length} bytes: ${told}`);
}

export function drawMoves(model, moves) {  // one list of chunk sizes for every segment that was learned from
  const raster = $("raster"), high = 50, height = high * model.chunks.length, right = room(raster, height + 22), left = 0;
  const shown = moves.slice(-48), width = (right - left) / 48;
  raster.replaceChildren();
  model.chunks.forEach((chunk, row) => {
    const [plain, small] = levelName(model, chunk), y = high * row;
    const name = make("text", { x: 0, y: y + 14 }, plain + " ");
    name.append(make("tspan", { class: "small" }, small));
    raster.append(name, make("line", { x1: left, x2: right, y1: y + 31, y2: y + 31, class: "grid" }));
    shown.forEach((moved, i) => { if (moved.includes(chunk)) raster.append(make("rect", { class: "move", "data-chunk": chunk,
      x: left + i * width, y: y + 22, width: width - 1, height: 18, rx: 1, fill: colour(model, chunk) })); });
  });
  raster.append(make("line", { x1: left, x2: right, y1: height, y2: height, class: "axis" }),
                make("text", { x: left, y: height + 14, class: "small" }, `segments of ${model.tick} ${model.unit}s that it learned from →`));
  const times = model.chunks.map(chunk => `${levelName(model, chunk)[0]} ${shown.filter(moved => moved.includes(chunk)).length} times`);
  $("moved").textContent = shown.length ? `In the last ${shown.length} segments: ${times.join(", ")}.` : "No level has moved yet: they do where it learns.";
  raster.setAttribute("aria-label", $("moved").textContent);
}

export function drawDrift(model, drift) {
  const entries = Object.entries(drift), most = Math.max(...entries.map(([, value]) => value), 1e-9);
  if (!entries.some(([, value]) => value)) {
    $("drift").replaceChildren(element("tr", {}, element("td", { class: "soft" }, "Nothing has moved yet.")));
    return;
  }
  $("drift").replaceChildren(...entries.map(([name, value]) => {
    const [plain, small] = memoryName(model, name), bar = element("span", { class: "bar" });
    bar.style.width = 100 * value / most + "%";
    if (name.startsWith("level ")) bar.style.background = colour(model, +name.slice(6));
    const head = element("th", { scope: "row" }, plain, element("small", {}, small)), wide = element("td", {}, bar);
    wide.style.width = "45%";
    return element("tr", {}, head, wide, element("td", { class: "number" }, (100 * value).toFixed(2) + " %"));
  }));
}

export function drawLesson(result) {  // {on: [before, after], off: [before, after]} in bits per byte
  const most = Math.max(...result.on, ...result.off), box = $("result");
  box.replaceChildren(...[["learning on", result.on], ["learning off", result.off]].map(([name, [before, after]]) => {
    const saved = 100 * (1 - after / before), bars = [["first reading", before, "bar was"], ["second reading", after, "bar"]].map(([label, bits, kind]) => {
      const bar = element("span", { class: kind });
      bar.style.width = 100 * bits / most + "%";
      return element("div", {}, element("span", { class: "soft" }, `${label}: ${bits.toFixed(2)} bits per byte`), bar);
    });
    return element("div", { "data-on": name === "learning on" }, element("h3", {}, name), ...bars,
      element("div", { class: "saved" }, `${saved < 0 ? "costs" : "saves"} ${Math.abs(saved).toFixed(Math.abs(saved) < 10 ? 1 : 0)} %`));
  }));
  box.hidden = false;
}
