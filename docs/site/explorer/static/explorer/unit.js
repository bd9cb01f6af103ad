"use strict";

// The brush over a unit's distribution: the patches below are those of the chosen range.
{
  const { make, round, url, readJson } = sightline;
  const { range, sheet, side, columns, rows } = readJson("data");
  const chart = document.getElementById("distribution");
  const brush = document.getElementById("brush");
  const caption = document.getElementById("range-caption");
  const list = document.getElementById("range-patches");
  const partButtons = [...document.querySelectorAll("[data-part]")];
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 600;
  const BASE = 120;
  const MAX_PATCHES = 12;
  const bins = range.counts.length;
  const chosen = { first: 0, end: bins };  // bins, the end exclusive

  const sum = (values, first, end) => values.slice(first, end).reduce((a, b) => a + b, 0);
  const edge = bin => range.low + (range.high - range.low) * bin / bins;

  // The class that drives the unit most, as a part of each bar.
  function drawOwnClass() {
    if (!range.classCounts.length) return;
    const most = Math.max(1, ...range.counts);
    const group = document.getElementById("own-class");
    range.classCounts.forEach((count, bin) => {
      if (!count) return;
      const bar = document.createElementNS(SVG, "rect");
      const height = Math.max(1, 116 * count / most);
      const attributes = { x: bin * WIDTH / bins, y: BASE - height, width: WIDTH / bins - 1, height };
      for (const [name, value] of Object.entries(attributes)) bar.setAttribute(name, value.toFixed(2));
      group.append(bar);
    });
  }

  function makeCell(number, name) {
    const cell = document.createElementNS(SVG, "svg");
    const picture = document.createElementNS(SVG, "image");
    const left = (number % columns) * side;
    const top = Math.floor(number / columns) * side;
    cell.setAttribute("class", "cell");
    cell.setAttribute("viewBox", `${left} ${top} ${side} ${side}`);
    cell.setAttribute("width", side);
    cell.setAttribute("height", side);
    cell.setAttribute("role", "img");
    cell.setAttribute("aria-label", name);
    picture.setAttribute("href", sheet);
    picture.setAttribute("width", columns * side);
    picture.setAttribute("height", rows * side);
    cell.append(picture);
    return cell;
  }

  function makePatch(number) {
    const [value, className, name, address] = range.cells[number];
    const cell = makeCell(number, className || name);
    const item = make("li");
    if (address) item.append(make("a", { href: url(address), title: name }, cell));
    else item.append(cell);
    item.append(make("span", { className: "value", textContent: round(value) }));
    item.append(make("span", { className: "of", textContent: className, title: className }));
    return item;
  }

  // At most twelve of the patches in the range, evenly spread over them, strongest first.
  function pickPatches(low, high, isLast) {
    const inside = [];
    range.cells.forEach(([value], number) => {
      if (value >= low && (value < high || isLast)) inside.push(number);
    });
    if (inside.length <= MAX_PATCHES) return inside;
    const step = (inside.length - 1) / (MAX_PATCHES - 1);
    return Array.from({ length: MAX_PATCHES }, (_, place) => inside[Math.round(place * step)]);
  }

  function describe(low, high) {
    const count = sum(range.counts, chosen.first, chosen.end);
    const share = Math.round(1000 * count / Math.max(1, range.images)) / 10;
    const parts = [`${count.toLocaleString("en")} of ${range.images.toLocaleString("en")} images (${share} %) lie between ${round(low)} and ${round(high)}.`];
    if (range.className) {
      const own = sum(range.classCounts, chosen.first, chosen.end);
      const ownShare = count ? Math.round(100 * own / count) : 0;
      parts.push(`${range.className}, the ${range.classNoun} that drives it most: ${own.toLocaleString("en")} of them (${ownShare} %).`);
    }
    return parts;
  }

  function show() {
    const low = edge(chosen.first);
    const high = edge(chosen.end);
    brush.setAttribute("x", chosen.first * WIDTH / bins);
    brush.setAttribute("width", (chosen.end - chosen.first) * WIDTH / bins);
    const [count, own] = describe(low, high);
    caption.replaceChildren(count);
    if (own) caption.append(" ", make("span", { className: "own-key" }), own);
    const patches = pickPatches(low, high, chosen.end === bins).map(makePatch);
    if (!patches.length) {
      patches.push(make("li", { className: "note", textContent: "No patch was kept of this part." }));
      patches[0].style.width = "auto";
    }
    list.replaceChildren(...patches);
  }

  function choose(first, end, part = "") {
    chosen.first = Math.max(0, Math.min(bins - 1, first));
    chosen.end = Math.max(chosen.first + 1, Math.min(bins, end));
    for (const button of partButtons) {
      button.setAttribute("aria-pressed", String(button.dataset.part === part));
    }
    show();
  }

  // The bins that hold the images between two shares of all, counted from the weakest.
  function chooseShares(low, high, part) {
    let below = 0;
    let first = 0;
    let end = bins;
    for (let bin = 0; bin < bins; bin++) {
      if (below <= low * range.images) first = bin;
      below += range.counts[bin];
      if (below >= high * range.images) {
        end = bin + 1;
        break;
      }
    }
    choose(first, end, part);
  }

  const PARTS = { strongest: [0.9, 1], middle: [0.4, 0.6], weakest: [0, 0.1], all: [0, 1] };
  for (const button of partButtons) {
    button.addEventListener("click", () => {
      const part = button.dataset.part;
      if (part === "all") choose(0, bins, part);
      else chooseShares(...PARTS[part], part);
    });
  }

  // ── dragging and keys ──
  function findBin(event) {
    const box = chart.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    return Math.max(0, Math.min(bins - 1, Math.floor(share * bins)));
  }

  let start = null;
  let shift = null;  // how far inside the selection it was pressed, to move it as a whole
  chart.addEventListener("pointerdown", event => {
    chart.setPointerCapture(event.pointerId);
    const bin = findBin(event);
    const isWhole = chosen.first === 0 && chosen.end === bins;
    const isInside = bin >= chosen.first && bin < chosen.end;
    shift = isInside && !isWhole ? bin - chosen.first : null;
    start = bin;
    if (shift === null) choose(bin, bin + 1);
  });
  chart.addEventListener("pointermove", event => {
    if (start === null) return;
    const bin = findBin(event);
    if (shift === null) {
      choose(Math.min(start, bin), Math.max(start, bin) + 1);
      return;
    }
    const width = chosen.end - chosen.first;
    const first = Math.max(0, Math.min(bins - width, bin - shift));
    choose(first, first + width);
  });
  for (const type of ["pointerup", "pointercancel"]) {
    chart.addEventListener(type, () => { start = null; });
  }
  chart.addEventListener("dblclick", () => choose(0, bins, "all"));
  chart.addEventListener("keydown", event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const isWhole = chosen.first === 0 && chosen.end === bins;
    const width = isWhole ? Math.ceil(bins / 10) : chosen.end - chosen.first;
    const first = isWhole ? (step > 0 ? 0 : bins - width) : chosen.first + step;
    const inside = Math.max(0, Math.min(bins - width, first));
    choose(inside, inside + width);
  });

  drawOwnClass();
  show();

  // ── patches or what drives the unit in them ──
  for (const button of document.querySelectorAll("[data-show]")) {
    button.addEventListener("click", () => {
      for (const other of document.querySelectorAll("[data-show]")) {
        const isShown = other === button;
        other.setAttribute("aria-pressed", String(isShown));
        document.getElementById(other.dataset.show).hidden = !isShown;
      }
    });
  }

  // ── where it counts ──
  const effect = document.getElementById("effect");

  function describeChanges({ strongest, ordinary }) {
    return `Without it the answer changes for ${strongest.changed} of the ${strongest.images} images on which it is ` +
      `strongest, and for ${ordinary.changed} of ${ordinary.images} ordinary ones.`;
  }

  function describeChance({ strongest, random }) {
    if (!random.units) return "";
    const others = random.units === 1 ? "another unit" : `one of ${random.units} random units`;
    return `Without ${others} of the layer instead: for ${round(random.changed)} of the ${strongest.images}${random.units === 1 ? "" : " on average"}. ` +
      `Scores move by ${round(strongest.size)} without it, and by ${round(random.size)} without a random one.`;
  }

  function makeEffectBar(value, limit) {
    const bar = document.createElementNS(SVG, "svg");
    bar.setAttribute("class", "bar-chart");
    bar.setAttribute("viewBox", "-100 0 200 12");
    bar.setAttribute("preserveAspectRatio", "none");
    const width = 100 * Math.abs(value) / limit;
    const shapes = [
      ["track", -100, 200],
      [value < 0 ? "against" : "fill", value < 0 ? -width : 0, width],
    ];
    for (const [name, x, length] of shapes) {
      const shape = document.createElementNS(SVG, "rect");
      const attributes = { class: name, x, width: length, height: 12 };
      for (const [key, number] of Object.entries(attributes)) shape.setAttribute(key, number);
      bar.append(shape);
    }
    return bar;
  }

  function showEffect(content) {
    if (content.missing || content.problem) {
      const reason = content.problem || "open this page with sightline explore, which measures it";
      effect.replaceChildren(make("p", { className: "note", textContent: `Not measured: ${reason}.` }));
      return;
    }
    const limit = Math.max(1e-6, ...content.classes.map(item => Math.abs(item.strongest)));
    const table = make("table", { className: "bar-table" });
    for (const item of content.classes) {
      const name = make("th", { scope: "row" }, make("a", { href: url(item.address), textContent: item.name }));
      const bar = make("td", { className: "chart-cell" }, makeEffectBar(item.strongest, limit));
      const number = make("td", { className: "number", textContent: round(item.strongest) });
      table.append(make("tr", {}, name, bar, number));
    }
    effect.replaceChildren(
      make("p", { className: "changes", textContent: `${describeChanges(content)} ${describeChance(content)}` }),
      table,
      make("p", { className: "caption", textContent: "Mean change of the class scores when the unit is set to zero, on the images on which it is strongest." }),
    );
  }

  if (effect) {
    sightline.load(effect.dataset.name).then(showEffect, () => {
      effect.replaceChildren(make("p", { className: "note", textContent: "Not measured: the file with the numbers is missing." }));
    });
  }
}
