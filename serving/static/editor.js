// The image that is erased and drawn on, with a brush of the mouse, a finger or the keyboard.
import { copy, drawn, empty } from "./pictures.js";

const SCALE_TO = 528, MOST_UNDONE = 50;

export class Editor {
  // changed: called after each stroke. moved: told where the keyboard is.
  constructor(canvas, brush, changed, moved) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.brush = brush;  // () => {tool, size, whole, colour}
    this.changed = changed;
    this.moved = moved;
    this.now = this.truth = this.second = null;
    this.before = [];
    this.at = [0, 0];  // a pixel, where the keyboard is
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.go(event));
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => this.end(event));
    canvas.addEventListener("keydown", (event) => this.key(event));
    for (const kind of ["focus", "blur"]) canvas.addEventListener(kind, () => this.draw());
  }

  // picture: to begin with, and to restore.
  open(picture, patch) {
    this.patch = patch;
    this.truth = picture;
    this.now = copy(picture);
    this.before = [];
    this.at = [0, 0];
    this.pixel = Math.max(1, Math.floor(SCALE_TO / picture.side));
    this.canvas.width = this.canvas.height = picture.side * this.pixel;
    this.draw();
  }

  // Whether there is an original: all of it known, and what is known now as it was in it.
  get isOriginal() {
    const { now, truth } = this;
    return truth.known.every(Boolean) && now.known.every((known, pixel) => !known
      || [0, 1, 2].every((c) => now.rgb[3 * pixel + c] === truth.rgb[3 * pixel + c]));
  }

  change(how) {
    this.remember();
    how();
    this.draw();
    this.changed();
  }

  eraseAll() { this.change(() => { this.now = empty(this.now.side); }); }

  restoreAll() { this.change(() => { this.now = copy(this.truth); }); }

  eraseHalf() {
    this.change(() => {
      const across = this.now.side / this.patch, patches = [...Array(across * across).keys()];
      for (let last = patches.length - 1; last > 0; last--) {
        const other = Math.floor(Math.random() * (last + 1));
        [patches[last], patches[other]] = [patches[other], patches[last]];
      }
      const half = new Set(patches.slice(0, patches.length / 2));
      this.now = copy(this.truth);
      this.now.known.forEach((_, pixel) => { if (half.has(this.patchOf(pixel))) this.set(pixel, "erase"); });
    });
  }

  undo() {
    if (!this.before.length) return;
    this.now = this.before.pop();
    this.draw();
    this.changed();
  }

  remember() {
    this.before.push(copy(this.now));
    if (this.before.length > MOST_UNDONE) this.before.shift();
  }

  patchOf(pixel) {
    const { side } = this.now;
    return Math.floor(Math.floor(pixel / side) / this.patch) * (side / this.patch) + Math.floor(pixel % side / this.patch);
  }

  begin(event) {
    if (!this.now || event.button || !event.isPrimary) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.remember();
    this.last = null;
    this.isPainting = true;
    this.go(event);
  }

  go(event) {
    if (!this.isPainting || !event.isPrimary) return;
    const box = this.canvas.getBoundingClientRect();
    const here = [event.clientX - box.left, event.clientY - box.top].map((x) => x / box.width * this.now.side);
    const from = this.last ?? here, steps = Math.ceil(2 * Math.hypot(here[0] - from[0], here[1] - from[1])) || 1;
    for (let step = 1; step <= steps; step++) {
      this.paint(from[0] + (here[0] - from[0]) * step / steps, from[1] + (here[1] - from[1]) * step / steps);
    }
    this.last = here;
    this.draw();
  }

  end(event) {
    if (!this.isPainting || !event.isPrimary) return;
    this.isPainting = false;
    this.changed();
  }

  // What the brush touches at x, y, in pixels of the image.
  paint(x, y) {
    const { tool, size, whole, colour } = this.brush(), { side } = this.now, touched = new Set();
    const clamp = (value) => Math.min(side - 1, Math.max(0, value));
    for (let row = clamp(Math.floor(y - size / 2)); row <= clamp(y + size / 2); row++) {
      for (let column = clamp(Math.floor(x - size / 2)); column <= clamp(x + size / 2); column++) {
        const isNear = Math.hypot(column + 0.5 - x, row + 0.5 - y) <= size / 2;
        const isUnder = row === Math.floor(y) && column === Math.floor(x);
        if (isNear || isUnder) touched.add(row * side + column);
      }
    }
    const patches = new Set([...touched].map((pixel) => this.patchOf(pixel)));
    for (let pixel = 0; pixel < side * side; pixel++) {
      if (whole && tool !== "draw" ? patches.has(this.patchOf(pixel)) : touched.has(pixel)) this.set(pixel, tool, colour);
    }
  }

  set(pixel, tool, colour) {
    const { now } = this, source = { restore: this.truth, second: this.second }[tool];
    now.known[pixel] = tool === "erase" ? 0 : source ? source.known[pixel] : 1;
    for (let c = 0; c < 3; c++) {
      const at = 3 * pixel + c;
      now.rgb[at] = tool === "draw" ? colour[c] : source ? source.rgb[at] : 0;
    }
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!this.now || (event.ctrlKey || event.metaKey) !== (event.key === "z")) return;
    const [column, row, wide] = this.cursor;
    if (step) {
      const most = this.now.side / wide - 1;
      this.at = [column, row].map((place, axis) => wide * Math.min(most, Math.max(0, place + step[axis])));
    } else if (event.key === " ") {
      if (!event.repeat) this.change(() => this.paint((column + 0.5) * wide, (row + 0.5) * wide));
    } else if (event.key === "z") {
      this.undo();
    } else {
      return;
    }
    event.preventDefault();
    this.draw();
    const [x, y, cell] = this.cursor, middle = Math.floor(cell / 2);
    this.moved([x, y], this.now.known[(y * cell + middle) * this.now.side + x * cell + middle]);
  }

  // Where the keyboard is: column, row, and the pixels that one of them is wide, a patch or a pixel.
  get cursor() {
    const wide = this.brush().whole ? this.patch : 1;
    return [...this.at.map((pixel) => Math.floor(pixel / wide)), wide];
  }

  draw() {
    const { context, now, pixel, patch } = this;
    if (!now) return;
    const length = now.side * pixel;
    context.imageSmoothingEnabled = false;
    context.drawImage(drawn(now), 0, 0, length, length);
    now.known.forEach((known, at) => { if (!known) this.hatch(at % now.side, Math.floor(at / now.side)); });
    context.strokeStyle = "rgba(128, 128, 128, 0.45)";
    context.lineWidth = 1;
    for (let line = patch * pixel; line < length; line += patch * pixel) {
      context.strokeRect(line - 0.5, -1, 0, length + 2);
      context.strokeRect(-1, line - 0.5, length + 2, 0);
    }
    if (document.activeElement === this.canvas && this.canvas.matches(":focus-visible")) {
      const [column, row, cell] = this.cursor, wide = cell * pixel;
      context.strokeStyle = "#ff7a00";
      context.lineWidth = 4;
      context.strokeRect(column * wide, row * wide, wide, wide);
    }
  }

  // A pixel of which nothing is known.
  hatch(column, row) {
    const { context, pixel } = this, half = pixel / 2;
    context.fillStyle = "#b9c2cf";
    context.fillRect(column * pixel, row * pixel, pixel, pixel);
    context.fillStyle = "#d7dde6";
    context.fillRect(column * pixel, row * pixel, half, half);
    context.fillRect(column * pixel + half, row * pixel + half, half, half);
  }
}
