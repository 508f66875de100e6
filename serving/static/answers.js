// What the page shows of the answers.
import { distance, drawn, error, heat, mean, spread, urlOf } from "./pictures.js";

const find = (id) => document.getElementById(id);
const ROWS = ["draws", "together", "between", "inferred", "beside"];
const HEADINGS = {
  known: "known", draws: "completions", together: "together", between: "between two", inferred: "from z alone",
  beside: "baselines",
};

export class Answers {
  // choosable: told whether two completions are chosen.
  constructor(choosable) {
    this.choosable = choosable;
    this.clear();
    find("draw").addEventListener("input", () => this.enlarge());
  }

  clear() {
    this.rows = {};  // of [label, picture]
    this.draws = this.chosen = [];
    for (const id of ROWS) this.row(id, []);
    this.choosable(false);
  }

  // truth: the original, or null. known: the part of it that the draws complete.
  show(known, truth, draws) {
    this.clear();
    Object.assign(this, { truth, draws, known });
    this.rows.known = [["", known]];
    const heated = (label, values) => {
      const most = Math.max(...values);
      return [`${label}${most.toFixed(2)}`, heat(values, known.side, most)];
    };
    const middle = mean(draws);
    const together = [this.scored("mean of them", middle), heated("where they differ: up to ±", spread(draws))];
    if (truth) {
      together.push(heated("error of the mean: up to ", distance([middle], truth)), ["original", truth]);
    }
    this.row("draws", draws.map((picture, k) => this.scored(`draw ${k + 1}`, picture)), (k) => this.choose(k));
    this.row("together", together);
    find("draw").max = draws.length;
    this.enlarge();
  }

  // A label with the error of a picture, where there is an original.
  scored(label, picture) {
    const value = this.truth && error(picture, this.truth, this.known);
    return [value === null ? label : `${label}: ${value.toFixed(4)}`, picture];
  }

  // Pictures with their labels, in an element of the page. onPress: makes buttons of them.
  row(id, labelled, onPress = null) {
    this.rows[id] = labelled;
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

  choose(number) {
    const { chosen } = this;
    this.chosen = chosen.includes(number) ? chosen.filter((other) => other !== number) : [...chosen, number].slice(-2);
    [...find("draws").children].forEach((figure, k) => {
      figure.setAttribute("aria-pressed", String(this.chosen.includes(k)));
    });
    this.choosable(this.chosen.length === 2);
    find("draw").value = number + 1;
    this.enlarge();
  }

  enlarge() {
    const number = Number(find("draw").value) - 1;
    if (!this.rows.draws[number]) return;
    const [label, picture] = this.rows.draws[number];
    find("big").src = urlOf(picture);
    find("big").alt = `Completion ${number + 1} of ${this.draws.length}`;
    find("big-caption").textContent = label;
  }

  // All of it as one picture, a canvas.
  sheet() {
    const rows = Object.keys(HEADINGS).filter((id) => this.rows[id]?.length);
    const side = 96, left = 110, tall = side + 34, canvas = document.createElement("canvas");
    canvas.width = left + Math.max(this.draws.length, 1) * (side + 6);
    canvas.height = rows.length * tall + 6;
    const pen = canvas.getContext("2d");
    pen.fillStyle = "white";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.imageSmoothingEnabled = false;
    pen.fillStyle = "black";
    rows.forEach((id, r) => {
      pen.font = "13px sans-serif";
      pen.fillText(HEADINGS[id], 6, r * tall + side / 2, left - 10);
      pen.font = "10px sans-serif";
      this.rows[id].forEach(([label, picture], k) => {
        const x = left + k * (side + 6), y = r * tall + 6;
        pen.drawImage(drawn(id === "known" ? greyed(picture) : picture), x, y, side, side);
        const [first, second = ""] = label.split(": ");
        pen.fillText(first, x, y + side + 12, side);
        pen.fillText(second, x, y + side + 24, side);
      });
    });
    return canvas;
  }
}

function greyed(picture) {
  const rgb = picture.rgb.map((value, at) => (picture.known[Math.floor(at / 3)] ? value : 160));
  return { ...picture, rgb };
}
