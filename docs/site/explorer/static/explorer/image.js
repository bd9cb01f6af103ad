"use strict";

// An image's page: units at the place that is pointed at, and the attributions as they are computed.
{
  const { make, makeLayerName, url, load, showCell, readJson } = sightline;
  const settings = readJson("settings");

  // ── units that fire at a place ──
  const picture = document.getElementById("picture");
  const place = document.getElementById("place");
  const list = document.getElementById("places");
  let layers = [];
  let point = [0.5, 0.5];  // x and y, as shares of the picture

  function readLayer(layer) {
    const bytes = painter.decode(layer.units);
    return { ...layer, units: new Uint16Array(bytes.buffer), strengths: painter.decode(layer.strengths) };
  }

  function makeUnitLink(layer, unit, strength) {
    const name = layer.names[unit] ? `${unit} ${layer.names[unit]}` : `unit ${unit}`;
    const picture = make("span", { className: "cell" });
    showCell(picture, layer, unit, 44);
    const text = make("span", {}, make("span", { textContent: name }));
    text.append(make("small", { className: "soft", textContent: `${Math.round(100 * strength)} %` }));
    return make("a", { href: url(`${layer.folder}${unit}.html`), title: name }, picture, text);
  }

  function describeUnits(layer, row, column) {
    const first = (row * layer.columnCount + column) * layer.perPlace;
    const links = [];
    for (let rank = 0; rank < layer.perPlace; rank++) {
      const strength = layer.strengths[first + rank] / 255;
      if (strength >= 0.02) links.push(makeUnitLink(layer, layer.units[first + rank], strength));
    }
    return links.length ? links : [make("span", { className: "soft", textContent: "nothing" })];
  }

  function showPlace() {
    const rows = layers.map(layer => {
      const row = Math.min(layer.rowCount - 1, Math.floor(point[1] * layer.rowCount));
      const column = Math.min(layer.columnCount - 1, Math.floor(point[0] * layer.columnCount));
      const line = make("div", { className: "place-row" }, makeLayerName("b", layer.name));
      line.append(make("span", { className: "place-units" }, ...describeUnits(layer, row, column)));
      return line;
    });
    const note = make("p", { className: "caption", textContent: "The strongest units at this place, in percent of each one's strongest response in the whole scan." });
    list.replaceChildren(...rows, note);

    const deepest = layers.at(-1);
    const column = Math.min(deepest.columnCount - 1, Math.floor(point[0] * deepest.columnCount));
    const row = Math.min(deepest.rowCount - 1, Math.floor(point[1] * deepest.rowCount));
    Object.assign(place.style, {
      left: `${100 * column / deepest.columnCount}%`,
      top: `${100 * row / deepest.rowCount}%`,
      width: `${100 / deepest.columnCount}%`,
      height: `${100 / deepest.rowCount}%`,
    });
    place.hidden = false;
  }

  function startPlaces(content) {
    if (content.missing || content.problem || !content.layers.length) {
      let reason = content.problem || "no layer of the scan has a map";
      if (content.missing) reason = "open this page with sightline explore, which computes them";
      list.replaceChildren(make("p", { className: "note", textContent: `No activations at single places: ${reason}.` }));
      picture.closest("figure").querySelector("figcaption").hidden = true;
      return;
    }
    layers = content.layers.map(readLayer);
    picture.tabIndex = 0;
    picture.setAttribute("aria-label", "Place in the image; arrow keys move it");
    picture.addEventListener("pointermove", event => {
      const box = picture.getBoundingClientRect();
      const inside = value => Math.max(0, Math.min(0.999, value));
      point = [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
      showPlace();
    });
    picture.addEventListener("keydown", event => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      point = point.map((value, axis) => Math.max(0, Math.min(0.999, value + step[axis] / 14)));
      showPlace();
    });
    showPlace();
  }

  if (settings.places) {
    load(settings.places.name).then(startPlaces, () => startPlaces({ missing: true }));
  }

  // ── attributions, one after the other ──
  const matrix = document.getElementById("matrix");

  function makeTrustTable(rows) {
    const table = make("table");
    table.append(make("tr", {}, make("th", { textContent: "Test" }), make("th", { textContent: "this" }), make("th", { textContent: "chance" })));
    for (const { test, good, value, chance } of rows) {
      const name = make("th", { scope: "row", textContent: `${test} (${good})` });
      const numbers = [value, chance || "–"].map(text => make("td", { className: "number", textContent: text }));
      table.append(make("tr", {}, name, ...numbers));
    }
    return table;
  }

  function explainMissing(content) {
    const reason = content.problem || "open this page with sightline explore";
    return make("p", { className: "note", textContent: `Not computed: ${reason}.` });
  }

  function showAttribution(item, content) {
    const body = item.querySelector(".map");
    if (!content.map) {
      body.replaceChildren(explainMissing(content));
      return;
    }
    const canvas = make("canvas");
    painter.paint(canvas, content.map);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", item.querySelector("h3").textContent);
    body.replaceChildren(canvas, painter.makeColorBar(content.map));
  }

  function showTest(item, content) {
    const body = item.querySelector(".test");
    if (!content.rows) {
      body.replaceChildren(explainMissing(content));
      return;
    }
    const chip = make("span", { className: `trust-chip ${content.level}`, textContent: content.word });
    const details = make("details", {}, make("summary", { textContent: "Its test" }));
    details.append(make("p", { textContent: content.sentence }), makeTrustTable(content.rows));
    body.replaceChildren(make("p", {}, chip), details);
  }

  // First all maps, then their tests, which take longer.
  async function showMatrix() {
    const items = settings.attributions.map(({ title, kind }) => {
      const heading = make("h3", { textContent: kind ? `${title}: ${kind}` : title });
      const map = make("div", { className: "map" }, make("p", { className: "note", textContent: "Computing …" }));
      return make("section", { className: "matrix-item" }, heading, map, make("div", { className: "test" }));
    });
    matrix.replaceChildren(...items);
    const hasMap = [];
    for (const [number, { map }] of settings.attributions.entries()) {
      const content = await load(map).catch(() => ({ missing: true }));
      showAttribution(items[number], content);
      hasMap.push(Boolean(content.map));
      if (content.map) {
        const waiting = make("p", { className: "note", textContent: "Not tested yet …" });
        items[number].querySelector(".test").append(waiting);
      }
    }
    if (!hasMap.some(Boolean) && items.every(item => item.textContent.includes("sightline explore"))) {
      matrix.replaceChildren(make("p", { className: "note", textContent: "Not computed: open this page with sightline explore, which computes them when they are looked at." }));
      return;
    }
    for (const [number, { test }] of settings.attributions.entries()) {
      if (!hasMap[number]) continue;
      items[number].querySelector(".test p").textContent = "Testing …";
      showTest(items[number], await load(test).catch(() => ({ missing: true })));
    }
  }

  if (matrix) {
    // Only when they come into view: they take seconds.
    new IntersectionObserver((entries, observer) => {
      if (!entries.some(entry => entry.isIntersecting)) return;
      observer.disconnect();
      showMatrix();
    }, { rootMargin: "200px" }).observe(matrix);
  }
}
