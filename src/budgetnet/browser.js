"use strict";

const MODEL = JSON.parse(document.getElementById("model").textContent);
const MOST_BARS = 10;
const MOST_PIXELS = 2 ** 26; // as the command has it
const at = (id) => document.getElementById(id);
let session = null;
let asked = 0;

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
  at("status").hidden = !text;
}

/** Weights of the source pixels of each of `size` pixels, as Pillow's BILINEAR has them, in units of 2^-22. */
function weights(source, size) {
  const scale = source / size, support = Math.max(scale, 1), rows = [];
  for (let i = 0; i < size; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(source, Math.trunc(centre + support + 0.5));
    const parts = [];
    for (let j = first; j < end; j++) parts.push(Math.max(0, 1 - Math.abs((j - centre + 0.5) / support)));
    const sum = parts.reduce((one, other) => one + other, 0);
    rows.push([first, parts.map((part) => Math.trunc((part / sum) * 2 ** 22 + 0.5))]);
  }
  return rows;
}

/** One axis: `source` has `lines` lines of `length` pixels, of which each becomes `size`; steps are in numbers. */
function shrunk(source, lines, length, size, lineStep, pixelStep) {
  const rows = weights(length, size);
  const made = new Uint8ClampedArray(lines * size * 3);
  const [madeLine, madePixel] = lineStep > pixelStep ? [size * 3, 3] : [3, lines * 3];
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < size; i++) {
      const [first, parts] = rows[i];
      for (let channel = 0; channel < 3; channel++) {
        let sum = 2 ** 21;
        for (let j = 0; j < parts.length; j++) {
          sum += source[line * lineStep + (first + j) * pixelStep + channel] * parts[j];
        }
        made[line * madeLine + i * madePixel + channel] = Math.floor(sum / 2 ** 22);
      }
    }
  }
  return made;
}

/** Pixels (height, width, 4) as the network sees them: (size, size, 3), resized as the command does. */
function resized(pixels, width, height, size) {
  let found = new Uint8ClampedArray(width * height * 3);
  for (let i = 0; i < width * height; i++) {
    for (let channel = 0; channel < 3; channel++) found[3 * i + channel] = pixels[4 * i + channel];
  }
  if (width !== size) found = shrunk(found, height, width, size, 3 * width, 3);
  if (height !== size) found = shrunk(found, size, height, size, 3, 3 * size);
  return found;
}

function show(pixels, size) {
  const canvas = at("seen");
  canvas.width = canvas.height = size;
  const image = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    image.data.set([pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2], 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function element(kind, name, text = "") {
  const made = document.createElement(kind);
  made.className = name;
  made.textContent = text;
  return made;
}

function answer(probabilities, milliseconds) {
  const order = [...probabilities.keys()].sort((one, other) => probabilities[other] - probabilities[one]);
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  at("answer").textContent = `${MODEL.classes[order[0]]}, ${percent(probabilities[order[0]])}`;
  at("bars").replaceChildren(...order.slice(0, MOST_BARS).map((label) => {
    const row = element("li", ""), track = element("div", "track"), fill = element("div", "fill");
    fill.style.width = `${100 * probabilities[label]}%`;
    track.setAttribute("aria-hidden", "true");
    track.append(fill);
    const name = element("span", "name", MODEL.classes[label]);
    name.title = MODEL.classes[label];
    row.append(name, track, element("span", "value", percent(probabilities[label])));
    row.dataset.probability = probabilities[label];
    return row;
  }));
  const left = order.length - MOST_BARS;
  at("note").textContent = `${milliseconds.toFixed(1)} ms in this browser`
    + (left > 0 ? `; ${left} less probable classes are not shown` : "");
  at("result").hidden = false;
}

async function classify(file) {
  const turn = ++asked;
  if (!session) return;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    say("This is no picture that the browser can read.", true);
    return;
  }
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) {
    say(`The picture has ${width}×${height} pixels, more than this page takes: shrink it.`, true);
    return;
  }
  const canvas = at("picture");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { size } = MODEL;
  const pixels = resized(context.getImageData(0, 0, width, height).data, width, height, size);
  const input = new ort.Tensor("uint8", new Uint8Array(pixels), [1, size, size, 3]);
  const before = performance.now();
  const found = await session.run({ images: input });
  const took = performance.now() - before;
  if (turn !== asked) return; // another picture has come in the meantime
  show(pixels, size);
  say("");
  answer(Array.from(found.probabilities.data), took);
}

function listen() {
  at("choose").addEventListener("click", () => at("file").click());
  at("file").addEventListener("change", () => {
    if (at("file").files.length) classify(at("file").files[0]);
    at("file").value = "";
  });
  const over = (event) => { event.preventDefault(); document.body.classList.add("dragging"); };
  document.addEventListener("dragover", over);
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    if (event.dataTransfer.files.length) classify(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) classify(event.clipboardData.files[0]);
  });
}

async function begin() {
  listen();
  if (typeof ort === "undefined") {
    say("onnxruntime-web is not beside this page: run `npm install @runtime@` in its folder, and reload.", true);
    return;
  }
  ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
  try {
    session = await ort.InferenceSession.create(MODEL.file);
    const { size } = MODEL; // the first run is slower
    await session.run({ images: new ort.Tensor("uint8", new Uint8Array(3 * size * size), [1, size, size, 3]) });
    say("Ready: choose, drop or paste a picture.");
  } catch (error) {
    say(`The network cannot be loaded (${error.message}): serve this folder by \`python -m http.server\`.`, true);
  }
}

begin();
