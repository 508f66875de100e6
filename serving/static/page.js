// What the page asks of the service, and what it shows of the answers.
import { Editor } from "./editor.js";
import { copy, decode, distance, drawn, empty, error, heat, maskUrl, mean, spread, urlOf } from "./pictures.js";

const DRAWS = 8, INFERRED = 4, WAIT_MS = 3000;
const find = (id) => document.getElementById(id);

let models = {}, offered = {};
let name = "";
let asked = 0;  // the number of the newest question: answers to older ones are dropped
let seed = 0;
let shown = {};  // what stands on the page now: draws, and rows of [label, picture]
let chosen = [];

const editor = new Editor(find("editor"), brush, () => ask(), sayWhere);

function brush() {
  const colour = find("colour").value;
  return {
    tool: document.querySelector("input[name=tool]:checked").value,
    size: Number(find("size").value),
    whole: find("whole").checked,
    colour: [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)),
  };
}

function sayWhere([column, row], known) {
  find("cursor").textContent = `Row ${row + 1}, column ${column + 1}: ${known ? "known" : "erased"}`;
}

function say(text, isWrong = false) {
  find("message").textContent = text;
  find("message").classList.toggle("wrong", isWrong);
}

// What waits for an answer is counted on the page.
async function post(question, content) {
  const { dataset } = document.body;
  dataset.asks = Number(dataset.asks ?? 0) + 1;
  try {
    return await answerTo(question, content);
  } finally {
    dataset.asks -= 1;
  }
}

async function answerTo(question, content) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) };
  let response;
  try {
    response = await fetch(`/v1/${question}`, options);
  } catch {
    throw new Error("the service does not answer: is it still running?");
  }
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status });
  return { ...answer, pictures: answer.images ? await Promise.all(answer.images.map(decode)) : [] };
}

// Ask again for what is hidden now. said: what a person should read first.
async function ask(said = []) {
  const mine = ++asked, known = copy(editor.now), model = models[name];
  const content = {
    model: name, image: urlOf(known), mask: maskUrl(known), observed: find("any").checked ? "any" : "all",
  };
  const isOld = () => mine !== asked;
  try {
    const inpainted = await post("inpaint", { ...content, draws: DRAWS, seed });
    if (isOld()) return;
    show(known, inpainted.pictures);
    say([...said, ...inpainted.notes].join("; "));
    const inferred = await post("infer", { ...content, draws: INFERRED, seed });
    if (isOld()) return;
    row("inferred", inferred.pictures.map((picture, k) => [`draw ${k + 1}`, picture]));
    await showBeside(content, model, isOld);
  } catch (fault) {
    if (!isOld()) say(fault.message, true);
  }
}

function show(known, draws) {
  const truth = editor.isOriginal ? editor.truth : null;
  const scored = (label, picture) => {
    const value = truth && error(picture, truth, known);
    return [value === null ? label : `${label}: ${value.toFixed(4)}`, picture];
  };
  const heated = (label, values) => {
    const most = Math.max(...values);
    return [`${label}${most.toFixed(2)}`, heat(values, known.side, most)];
  };
  const middle = mean(draws);
  const together = [scored("mean of the eight", middle), heated("where they differ: up to ±", spread(draws))];
  if (truth) {
    together.push(heated("error of the mean: up to ", distance([middle], truth)), ["original", truth]);
  }
  shown = { scored, draws, rows: {} };
  chosen = [];
  row("draws", draws.map((picture, k) => scored(`draw ${k + 1}`, picture)), choose);
  row("together", together);
  row("between", []);
  find("interpolate").disabled = true;
  enlarge();
}

// Pictures with their labels, in an element of the page. onPress: makes buttons of them.
function row(id, labelled, onPress = null) {
  shown.rows[id] = labelled;
  find(id).replaceChildren(...labelled.map(([label, picture], number) => {
    const figure = document.createElement(onPress ? "button" : "figure"), image = new Image();
    image.src = urlOf(picture);
    image.alt = "";  // the text below says it
    figure.className = "picture";
    figure.append(image, label);
    if (onPress) {
      figure.setAttribute("aria-pressed", "false");
      figure.addEventListener("click", () => onPress(number));
    }
    return figure;
  }));
}

function choose(number) {
  chosen = chosen.includes(number) ? chosen.filter((other) => other !== number) : [...chosen, number].slice(-2);
  [...find("draws").children].forEach((figure, k) => figure.setAttribute("aria-pressed", String(chosen.includes(k))));
  find("interpolate").disabled = chosen.length !== 2;
  find("draw").value = number + 1;
  enlarge();
}

function enlarge() {
  const number = Number(find("draw").value) - 1, [label, picture] = shown.rows.draws[number];
  find("big").src = urlOf(picture);
  find("big").alt = `Completion ${number + 1} of ${DRAWS}`;
  find("big-caption").textContent = label;
}

async function interpolate() {
  const [image, other] = chosen.map((number) => urlOf(shown.draws[number])), mine = asked;
  try {
    const { pictures } = await post("interpolate", { model: name, image, other, steps: DRAWS });
    if (mine !== asked) return;
    row("between", pictures.map((picture, k) => [`${Math.round(100 * k / (DRAWS - 1))}%`, picture]));
  } catch (fault) {
    say(fault.message, true);
  }
}

// What needs no network, and what joint VAEs of such images do.
async function showBeside(content, model, isOld) {
  const others = Object.keys(models).filter((other) => other !== name && !models[other].is_conditional
    && models[other].image_size === model.image_size && models[other].source === model.source);
  const fills = [name, ...others].filter((one) => models[one].fills);
  const words = find("beside-words");
  if (!fills.length) words.textContent = "The training images are not here, so there is nothing to compare with.";
  const found = new Map();
  for (const one of fills) {
    let answer = null;
    while (!answer) {
      try {
        answer = await post("fill", { ...content, model: one });
      } catch (fault) {
        if (fault.status !== 503) throw fault;
        if (!found.size) words.textContent = "The training images are being read, for the mean image and the Gaussian …";
        await new Promise((resolve) => setTimeout(resolve, WAIT_MS));
      }
      if (isOld()) return;
    }
    answer.names.forEach((way, at) => {
      const label = one === name || found.has(way) ? way : `joint VAE, ${way}`;
      if (!found.has(way)) found.set(way, shown.scored(label, answer.pictures[at]));
    });
    words.textContent = "";
    row("beside", [...found.values()]);
  }
}

async function openImage(content) {
  try {
    const answer = await post("read", { ...content, model: name });
    const [picture] = answer.pictures;
    if (find("as-second").checked) {
      editor.second = picture;
      find("second-image").src = urlOf(picture);
      find("second-shown").hidden = false;
      const tool = document.querySelector("input[value=second]");
      tool.disabled = false;
      tool.checked = true;
      say(["Paint its parts into the image.", ...answer.notes].join(" "));
    } else {
      open(picture);
      await ask(answer.notes);
    }
  } catch (fault) {
    say(fault.message, true);
  }
}

function open(picture) {
  find("any").checked = false;
  editor.open(picture, models[name].patch_size);
}

async function upload() {
  const [file] = find("upload").files;
  if (!file) return;
  find("upload").value = "";
  if (file.size > 2 ** 22) {
    say("This file has more than 4 MB: give a smaller one", true);
    return;
  }
  const bytes = new Uint8Array(await file.arrayBuffer()), letters = [];
  for (const byte of bytes) letters.push(String.fromCharCode(byte));
  await openImage({ image: btoa(letters.join("")) });
}

function blank() {
  open(empty(models[name].image_size));
  document.querySelector("input[value=draw]").checked = true;
  find("any").checked = true;
  ask(["draw strokes on the image"]);
}

function download() {
  const rows = Object.entries({
    "known": [["", editor.now]], "completions": shown.rows.draws, "together": shown.rows.together,
    "between two": shown.rows.between, "from z alone": shown.rows.inferred ?? [], "beside it": shown.rows.beside ?? [],
  }).filter(([, labelled]) => labelled.length);
  const side = 96, left = 110, tall = side + 34, canvas = document.createElement("canvas");
  canvas.width = left + DRAWS * (side + 6);
  canvas.height = rows.length * tall + 6;
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingEnabled = false;
  pen.fillStyle = "black";
  rows.forEach(([heading, labelled], r) => {
    pen.font = "13px sans-serif";
    pen.fillText(heading, 6, r * tall + side / 2, left - 10);
    pen.font = "10px sans-serif";
    labelled.forEach(([label, picture], k) => {
      const x = left + k * (side + 6), y = r * tall + 6;
      pen.drawImage(drawn(heading === "known" ? greyed(picture) : picture), x, y, side, side);
      const [first, second = ""] = label.split(": ");
      pen.fillText(first, x, y + side + 12, side);
      pen.fillText(second, x, y + side + 24, side);
    });
  });
  const link = document.createElement("a");
  link.download = "completions.png";
  link.href = canvas.toDataURL("image/png");
  link.click();
}

function greyed(picture) {
  const rgb = picture.rgb.map((value, at) => (picture.known[Math.floor(at / 3)] ? value : 160));
  return { ...picture, rgb };
}

async function useModel() {
  name = find("model").value;
  const { method, source, images_seen, image_size, patch_size } = models[name];
  find("facts").textContent = `${method} of ${source}, ${image_size}×${image_size} pixels in patches of `
    + `${patch_size}×${patch_size}, after ${images_seen.toLocaleString("en")} images`;
  find("size").max = image_size / 2;
  find("size").value = patch_size;
  editor.second = null;
  find("second-shown").hidden = true;
  document.querySelector("input[value=second]").disabled = true;
  document.querySelector("input[value=erase]").checked = true;
  find("as-second").checked = false;
  const images = offered[name] ?? [];
  find("offered").replaceChildren(...images.map((image, number) => {
    const button = document.createElement("button"), picture = new Image();
    picture.src = `data:image/png;base64,${image}`;
    picture.alt = `Test image ${number + 1}`;
    button.append(picture);
    button.addEventListener("click", () => openImage({ image }));
    return button;
  }));
  if (images.length) {
    open(await decode(images[0]));
    editor.eraseHalf();
  } else {
    blank();
  }
}

async function begin() {
  find("model").addEventListener("change", useModel);
  find("undo").addEventListener("click", () => editor.undo());
  find("restore-all").addEventListener("click", () => editor.restoreAll());
  find("erase-half").addEventListener("click", () => editor.eraseHalf());
  find("erase-all").addEventListener("click", () => editor.eraseAll());
  find("blank").addEventListener("click", blank);
  find("any").addEventListener("change", () => ask());
  find("upload").addEventListener("change", upload);
  find("again").addEventListener("click", () => { seed += 1; ask(); });
  find("interpolate").addEventListener("click", interpolate);
  find("download").addEventListener("click", download);
  find("draw").addEventListener("input", enlarge);
  const tools = { e: "erase", r: "restore", d: "draw", s: "second" };
  find("editor").addEventListener("keydown", ({ key, ctrlKey, metaKey }) => {
    const tool = tools[key.toLowerCase()] && document.querySelector(`input[value=${tools[key.toLowerCase()]}]`);
    if (tool && !tool.disabled && !ctrlKey && !metaKey) tool.checked = true;
  });
  try {
    ({ models } = await (await fetch("/v1/models")).json());
    ({ images: offered } = await (await fetch("/page/images")).json());
  } catch {
    say("the service does not answer: is it still running?", true);
    return;
  }
  find("model").append(...Object.keys(models).filter((one) => models[one].is_conditional).map((one) => new Option(one)));
  await useModel();
}

begin();
