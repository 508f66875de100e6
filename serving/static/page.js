// What a person does on the page, and what it asks of the service.
import { Answers } from "./answers.js";
import { Editor } from "./editor.js";
import { copy, decode, empty, maskUrl, urlOf } from "./pictures.js";
import { post } from "./service.js";

const DRAWS = 8, INFERRED = 4, WAIT_MS = 3000;
const TOOLS = { e: "erase", r: "restore", d: "draw", s: "second" };
const find = (id) => document.getElementById(id);
const toolOf = (value) => document.querySelector(`input[value=${value}]`);

let models = {}, offered = {};
let name = "";  // of the model that is asked
let seed = 0;
let next = null;  // what is to be said with the answer to the next question; null: nothing waits to be asked
let isAsking = false;
let opened = 0;  // the number of the newest image that was asked for

const editor = new Editor(find("editor"), brush, () => ask(), sayWhere);
const answers = new Answers((areTwo) => { find("interpolate").disabled = !areTwo; });

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

// Ask what becomes of the image as it is now. One question at a time: of those that come meanwhile only the newest is
// asked. said: what a person should read with the answer.
async function ask(said = []) {
  next = said;
  if (isAsking) return;
  isAsking = true;
  while (next) {
    const words = next;
    next = null;
    try {
      await answer(words);
    } catch (fault) {
      if (!next) say(fault.message, true);
    }
  }
  isAsking = false;
  find("answers").removeAttribute("aria-busy");
}

async function answer(said) {
  find("answers").setAttribute("aria-busy", "true");
  const known = copy(editor.now), truth = editor.isOriginal ? editor.truth : null;
  const rule = find("any").checked ? "any" : "all";
  const content = { model: name, image: urlOf(known), mask: maskUrl(known), observed: rule };
  const inpainted = await post("inpaint", { ...content, draws: DRAWS, seed });
  if (next) return;
  answers.show(known, truth, inpainted.pictures);
  find("answers").removeAttribute("aria-busy");
  say([...new Set([...said, ...inpainted.notes])].join("; ") || `${DRAWS} completions`);
  const inferred = await post("infer", { ...content, draws: INFERRED, seed });
  if (next) return;
  answers.row("inferred", inferred.pictures.map((picture, k) => [`draw ${k + 1}`, picture]));
  await compare(content);
}

// What needs no network, and what joint VAEs of such images do.
async function compare(content) {
  const like = ({ image_size, source, data_checksum }) => [image_size, source, data_checksum].join();
  const others = Object.keys(models).filter((one) => !models[one].is_conditional && like(models[one]) === like(models[name]));
  const found = [], words = find("beside-words"), fillers = [name, ...others].filter((one) => models[one].fills);
  words.textContent = fillers.length ? "" : "The training images are not here, so there is nothing to compare with.";
  for (const one of fillers) {
    while (true) {
      try {
        const { names, pictures } = await post("fill", { ...content, model: one });
        if (next) return;
        names.forEach((way, k) => found.push(answers.scored(one === name ? way : `${one}, ${way}`, pictures[k])));
        answers.row("beside", found);
        words.textContent = "";
        break;
      } catch (fault) {
        words.textContent = fault.message;
        if (fault.status !== 503) break;
        await new Promise((resolve) => setTimeout(resolve, WAIT_MS));
        if (next) return;
      }
    }
  }
}

async function interpolate() {
  const { draws } = answers, [image, other] = answers.chosen.map((number) => urlOf(draws[number]));
  try {
    const { pictures } = await post("interpolate", { model: name, image, other, steps: DRAWS });
    if (answers.draws !== draws) return;
    answers.row("between", pictures.map((picture, k) => [`${Math.round(100 * k / (DRAWS - 1))}%`, picture]));
  } catch (fault) {
    say(fault.message, true);
  }
}

// Take an image file, in base64, as the first image or as the second.
async function openImage(image) {
  const mine = ++opened;
  try {
    const { pictures: [picture], notes } = await post("read", { image, model: name });
    if (mine !== opened) return;
    if (find("as-second").checked) {
      editor.second = picture;
      find("second-image").src = urlOf(picture);
      find("second-shown").hidden = false;
      toolOf("second").disabled = false;
      toolOf("second").checked = true;
      say(["paint its parts into the image", ...notes].join("; "));
    } else {
      open(picture);
      ask(notes);
    }
  } catch (fault) {
    if (mine === opened) say(fault.message, true);
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
    say("this file has more than 4 MB: give a smaller one", true);
    return;
  }
  const bytes = new Uint8Array(await file.arrayBuffer()), letters = [];
  for (const byte of bytes) letters.push(String.fromCharCode(byte));
  await openImage(btoa(letters.join("")));
}

function blank() {
  opened += 1;
  open(empty(models[name].image_size));
  toolOf("draw").checked = true;
  find("any").checked = true;
  ask(["draw strokes on the image"]);
}

function download() {
  const link = document.createElement("a");
  link.download = "completions.png";
  link.href = answers.sheet().toDataURL("image/png");
  link.click();
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
  toolOf("second").disabled = true;
  toolOf("erase").checked = true;
  find("as-second").checked = false;
  answers.clear();
  const images = offered[name] ?? [], mine = ++opened;
  find("offered").replaceChildren(...images.map((image, number) => {
    const button = document.createElement("button"), picture = new Image();
    picture.src = `data:image/png;base64,${image}`;
    picture.alt = `Test image ${number + 1}`;
    button.append(picture);
    button.addEventListener("click", () => openImage(image));
    return button;
  }));
  if (!images.length) {
    blank();
    return;
  }
  const picture = await decode(images[0]);
  if (mine !== opened) return;
  open(picture);
  editor.eraseHalf();
}

async function begin() {
  const pressed = {
    "undo": () => editor.undo(),
    "restore-all": () => editor.restoreAll(),
    "erase-half": () => editor.eraseHalf(),
    "erase-all": () => editor.eraseAll(),
    "blank": blank,
    "again": () => { seed += 1; ask(); },
    "interpolate": interpolate,
    "download": download,
  };
  for (const [id, act] of Object.entries(pressed)) find(id).addEventListener("click", act);
  find("model").addEventListener("change", useModel);
  find("any").addEventListener("change", () => ask());
  find("whole").addEventListener("change", () => editor.draw());
  find("upload").addEventListener("change", upload);
  find("editor").addEventListener("keydown", ({ key, ctrlKey, metaKey }) => {
    const tool = TOOLS[key.toLowerCase()] && toolOf(TOOLS[key.toLowerCase()]);
    if (!tool || tool.disabled || ctrlKey || metaKey) return;
    tool.checked = true;
    find("cursor").textContent = `Tool: ${tool.parentElement.textContent.trim()}`;
  });
  try {
    ({ models } = await (await fetch("/v1/models")).json());
    ({ images: offered } = await (await fetch("/page/images")).json());
  } catch {
    say("the service does not answer: is it still running?", true);
    return;
  }
  find("model").append(...Object.keys(models).filter((one) => models[one].is_conditional).map((one) => new Option(one)));
  find("main").inert = false;
  await useModel();
}

begin();
