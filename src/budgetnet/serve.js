"use strict";

const MOST_BARS = 12; // of more classes, only the most probable are shown

const TITLES = { noise: "Noise", blur: "Blur", brightness: "Brightness", rotation: "Rotation" };
const UNITS = {
  noise: (value) => (value === 0 ? "none" : `severity ${value} of 5`),
  blur: (value) => (value === 0 ? "none" : `severity ${value} of 5`),
  brightness: (value) => (value === 0 ? "as it is" : `${signed(value)} ${Math.abs(value) === 1 ? "stop" : "stops"}`),
  rotation: (value) => (value === 0 ? "upright" : `${signed(value)}°`),
};

const at = (id) => document.getElementById(id);
const signed = (value) => (value > 0 ? `+${value}` : `−${Math.abs(value)}`);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

let about; // what the server says of its model
let picture = null; // of the size that the network takes, as a file, without corruption
let clean = null; // what the network says of it
let curves = {};

// Requests

async function ask(path, body) {
  let response;
  try {
    response = await fetch(path, body ? { method: "POST", body } : {});
  } catch {
    throw new Error("The server does not answer: has it been stopped?");
  }
  const found = await response.json().catch(() => ({ error: `status ${response.status}` }));
  if (!response.ok) throw new Error(found.error);
  return found;
}

// Only the newest of the calls that come in while one is at work is made next.
function newest(work) {
  let next = null;
  let running = false;
  return async (...call) => {
    next = call;
    if (running) return;
    running = true;
    try {
      while (next) {
        const now = next;
        next = null;
        await work(...now).catch((error) => complain(error.message));
      }
    } finally {
      running = false;
    }
  };
}

function settings() {
  const found = new URLSearchParams();
  for (const input of document.querySelectorAll("#sliders input")) {
    if (Number(input.value) !== 0) found.set(input.name, input.value);
  }
  return found;
}

async function fileOf(url) {
  const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}

// A new picture

const openPicture = newest(async (file) => {
  complain("");
  if (file.size > about.most_bytes) {
    throw new Error(`The picture has ${megabytes(file.size)}, expected at most ${megabytes(about.most_bytes)}.`);
  }
  at("answer-card").setAttribute("aria-busy", "true");
  try {
    const started = performance.now();
    const found = await ask("/api/predict", file).catch((error) => {
      throw new Error(error.message.replace(/^the file:/, `${file.name ?? "The picture"}:`));
    });
    const took = performance.now() - started;
    picture = await fileOf(found.picture);
    clean = found;
    curves = {};
    for (const input of document.querySelectorAll("#sliders input")) input.value = 0;
    showSettings();
    showAnswer(found, took);
    explain("");
    const answer = await ask("/api/curves", picture);
    curves = answer.curves;
    at("curves-note").textContent = `How sure the network stays of “${answer.class}” as each alone grows (0 to 100 %):`;
    drawCurves();
  } finally {
    at("answer-card").removeAttribute("aria-busy");
  }
});

const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MB`;

function complain(message) {
  at("error").textContent = message;
  at("error").hidden = !message;
  if (message) press(null);
}

// The same picture, corrupted otherwise

const change = newest(async () => {
  if (!picture) return;
  complain("");
  const wanted = settings().toString();
  const started = performance.now();
  const found = await ask(`/api/predict?${wanted}`, picture);
  showAnswer(found, performance.now() - started);
  explain(wanted);
});

const explain = newest(async (wanted) => {
  const found = await ask(`/api/attention?${wanted}`, picture);
  if (settings().toString() === wanted) showAttention(found);
});

// What is seen

function showAnswer(found, took) {
  at("seen").src = found.picture;
  at("seen").alt = `The picture as the network sees it, ${about.image_size} by ${about.image_size} pixels`;
  at("seen").hidden = false;
  clearAttention();
  const ranked = [...found.probabilities].sort((one, other) => other.probability - one.probability);
  const second = ranked[1] ? `then ${ranked[1].class}, ${percent(ranked[1].probability)}` : "";
  const changed = found.class === clean.class ? "" : ` (${clean.class} before corruption)`;
  at("answer").replaceChildren(`${found.class}, ${percent(ranked[0].probability)}`, element("small", {}, second + changed));
  showBars(found);
  const { reading, corrupting, network } = found.milliseconds;
  const parts = [`network ${network.toFixed(1)} ms`, `reading ${reading.toFixed(1)} ms`];
  if (corrupting >= 0.05) parts.push(`corrupting ${corrupting.toFixed(1)} ms`);
  at("latency").textContent = `${parts.join(", ")}; there and back ${took.toFixed(0)} ms`;
}

function showBars(found) {
  const before = new Map(clean.probabilities.map((one, label) => [label, one.probability]));
  let rows = found.probabilities.map((one, label) => ({ ...one, label }));
  if (rows.length > MOST_BARS) {
    rows = rows.sort((one, other) => other.probability - one.probability).slice(0, MOST_BARS);
  }
  const corrupted = settings().size > 0;
  const bars = rows.map((one) => {
    const fill = element("div", { class: "fill" });
    fill.style.width = percent(one.probability).replace(" ", "");
    const track = element("div", { class: "track", "aria-hidden": "true" }, fill);
    if (corrupted) {
      const mark = element("div", { class: "mark" });
      mark.style.left = percent(before.get(one.label)).replace(" ", "");
      track.append(mark);
    }
    return element(
      "li",
      { class: one.label === found.label ? "first" : "" },
      element("span", { class: "name", title: one.class }, one.class),
      track,
      element("span", { class: "value" }, percent(one.probability)),
    );
  });
  at("bars").replaceChildren(...bars);
  const notes = [];
  if (corrupted) notes.push(element("span", { class: "mark-key", "aria-hidden": "true" }), "without corruption");
  const left = found.probabilities.length - rows.length;
  if (left) notes.push(`${corrupted ? "; " : ""}${left} less probable classes are not shown`);
  at("bars-note").replaceChildren(...notes);
  at("bars-note").hidden = notes.length === 0;
}

function clearAttention() {
  const canvas = at("heat");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

function showAttention(found) {
  const side = found.falls.length;
  const canvas = at("heat");
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(side, side);
  const values = found.falls.flat();
  const largest = Math.max(...values.map(Math.abs));
  // A map of changes that hardly matter stays pale.
  const scale = Math.max(largest, 0.05);
  values.forEach((value, i) => {
    const colour = value > 0 ? [240, 124, 18] : [122, 91, 214];
    pixels.data.set([...colour, 150 * Math.sqrt(Math.abs(value) / scale)], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
  const peak = values.indexOf(Math.max(...values));
  const points = Math.round(100 * values[peak]);
  at("where").textContent =
    points < 1
      ? `Hiding any one part hardly changes the ${percent(found.probability)} of “${found.class}”.`
      : `“${found.class}” depends most on ${part(peak, side)}: hiding it costs ${points} ${points === 1 ? "point" : "points"} of ${percent(found.probability)}.`;
}

function part(place, side) {
  const third = (position) => Math.min(2, Math.floor((3 * position) / side));
  const row = ["top", "middle", "bottom"][third(Math.floor(place / side))];
  const column = ["left", "middle", "right"][third(place % side)];
  if (row === "middle" && column === "middle") return "the middle";
  if (row === "middle") return `the ${column}`;
  if (column === "middle") return `the ${row}`;
  return `the ${row} ${column}`;
}

// Sliders, and how the answer goes along each

function makeSliders() {
  const made = Object.entries(about.sliders).map(([name, { low, high, step }]) => {
    const input = element("input", { type: "range", id: name, name, min: low, max: high, step, value: 0 });
    const words = element("span", { id: `${name}-value`, "aria-hidden": "true" }); // which the slider says itself
    input.addEventListener("input", () => {
      showSettings();
      change();
    });
    const curve = vector("svg", { id: `${name}-curve`, viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img" });
    return element("div", { class: "slider" }, element("label", { for: name }, TITLES[name]), words, curve, input);
  });
  at("sliders").replaceChildren(...made);
  if (!about.sliders.noise) {
    at("sliders-note").textContent =
      `Noise and blur are defined for pictures of 32 by 32 pixels, and this network takes ${about.image_size}.`;
    at("sliders-note").hidden = false;
  }
  showSettings();
}

function showSettings() {
  for (const input of document.querySelectorAll("#sliders input")) {
    const words = UNITS[input.name](Number(input.value));
    at(`${input.name}-value`).textContent = words;
    input.setAttribute("aria-valuetext", words);
  }
  drawCurves();
}

function drawCurves() {
  for (const [name, { low, high }] of Object.entries(about.sliders)) {
    const drawing = at(`${name}-curve`);
    // The knob's middle goes from 8 pixels after the slider's left end to 8 before its right one.
    const inset = drawing.clientWidth ? (8 / drawing.clientWidth) * 100 : 3;
    const x = (value) => inset + ((100 - 2 * inset) * (value - low)) / (high - low);
    const y = (probability) => 38 - 36 * probability;
    const shapes = [0, 1].map((level) => vector("line", { class: "axis", x1: 0, x2: 100, y1: y(level), y2: y(level) }));
    const found = curves[name];
    if (found) {
      const points = found.settings.map((value, i) => `${x(value)},${y(found.probabilities[i])}`);
      shapes.push(vector("polyline", { class: "curve", points: points.join(" ") }));
      const last = found.settings.length - 1;
      const ends = [0, last].map((i) => `${percent(found.probabilities[i])} at ${found.settings[i]}`);
      const lowest = percent(Math.min(...found.probabilities));
      drawing.setAttribute("aria-label", `Probability of ${clean.class}: ${ends.join(", ")}, lowest ${lowest}`);
    } else {
      drawing.setAttribute("aria-label", "Not measured yet");
    }
    const now = x(Number(at(name).value));
    shapes.push(vector("line", { class: "now", x1: now, x2: now, y1: y(0), y2: y(1) }));
    drawing.replaceChildren(...shapes);
  }
}

// Examples

function makeExamples() {
  const made = about.examples.map((name, number) => {
    const address = `/api/examples/${number}`;
    const button = element(
      "button",
      { type: "button", title: name, "aria-pressed": "false" },
      element("img", { src: address, alt: `Example ${number + 1}: ${name}` }),
    );
    button.addEventListener("click", async () => {
      press(button);
      const response = await fetch(address).catch(() => null);
      if (response?.ok) openPicture(await response.blob());
      else complain("The server does not answer: has it been stopped?");
    });
    return button;
  });
  at("examples").replaceChildren(...made);
  at("examples-title").textContent =
    about.examples_from === "drawn" ? "Drawn examples, which show none of the classes" : `Test images of ${about.examples_from}`;
}

function press(button) {
  for (const other of at("examples").children) other.setAttribute("aria-pressed", String(other === button));
}

// Small things

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function vector(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function take(files) {
  const [file] = files;
  if (!file) return;
  press(null);
  openPicture(file);
}

function listen() {
  at("choose").addEventListener("click", () => at("file").click());
  at("file").addEventListener("change", () => {
    take(at("file").files);
    at("file").value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) take(event.clipboardData.files);
    else complain("What was pasted is no picture: copy a picture, not its address.");
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files);
    else complain("What was dropped is no file: save the picture first, and drop the file.");
  });
  at("show-heat").addEventListener("change", () => {
    at("heat").hidden = !at("show-heat").checked;
  });
  at("reset").addEventListener("click", () => {
    for (const input of document.querySelectorAll("#sliders input")) input.value = 0;
    showSettings();
    change();
  });
  window.addEventListener("resize", drawCurves);
}

async function begin() {
  try {
    about = await ask("/api/model");
  } catch (error) {
    complain(error.message);
    return;
  }
  const count = (number) => number.toLocaleString("en");
  at("about").textContent =
    `${about.model}: ${count(about.parameters)} parameters, ${about.classes.length} classes, ` +
    `${about.image_size}×${about.image_size} pixels, computed by ${about.engine}`;
  document.title = `${about.model} – budgetnet`;
  at("command").textContent = `curl --data-binary @picture.jpg ${location.origin}/api/predict`;
  makeSliders();
  makeExamples();
  listen();
  at("examples").querySelector("button")?.click();
}

begin();
