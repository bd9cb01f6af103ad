"use strict";

// The sheet of a layer's units. Only the cells in view are in the document, however many units
// there are.
{
  const { make, round, url, showCell, readJson } = sightline;
  const settings = readJson("settings");
  const element = id => document.getElementById(id);
  const sheet = element("sheet");
  const tip = element("tip");
  const status = element("status");

  const GAP = 8;
  const LABEL_HEIGHT = 16;
  const MAX_CELLS = 300;
  const SPARE_ROWS = 1;  // above and below what is in view

  let units = null;  // the numbers of the layer, as arrays
  let order = [];  // the units that are shown, in their order
  let columns = 1;
  const cells = new Map();  // unit → its element

  // ── what is shown, and in which order ──
  const state = new Proxy(new URLSearchParams(location.hash.slice(1)), {
    get: (query, name) => query.get(name) || "",
    set: (query, name, value) => {
      if (value) query.set(name, value);
      else query.delete(name);
      const text = query.toString();
      history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
      return true;
    },
  });

  function restoreControls() {
    for (const id of ["picture", "sort", "size", "filter"]) {
      const control = element(id);
      if (!control || !state[id]) continue;
      const isOption = control.tagName !== "SELECT" || [...control.options].some(option => option.value === state[id]);
      if (isOption) control.value = state[id];
    }
  }

  function isMatch(unit, text) {
    if (/^\d+$/.test(text)) return String(unit).startsWith(text);
    const name = units.names[unit] || "";
    const className = units.class ? units.class[unit] : "";
    return name.toLowerCase().includes(text) || className.toLowerCase().includes(text);
  }

  function compareUnits(key) {
    if (key === "name") {
      // Units without a name come last.
      return (a, b) => (units.names[a] || "\uffff").localeCompare(units.names[b] || "\uffff") || a - b;
    }
    const values = units[key];
    if (!values) return (a, b) => a - b;
    return (a, b) => (values[b] ?? -Infinity) - (values[a] ?? -Infinity) || a - b;
  }

  function updateOrder() {
    const text = element("filter").value.toLowerCase().trim();
    order = [];
    for (let unit = 0; unit < units.count; unit++) {
      if (!text || isMatch(unit, text)) order.push(unit);
    }
    order.sort(compareUnits(element("sort").value));
    status.textContent = text ? `${order.length.toLocaleString("en")} of ${units.count.toLocaleString("en")} units` : "";
    for (const cell of cells.values()) cell.remove();
    cells.clear();
    draw();
  }

  // ── cells ──
  const cellSize = () => Number(element("size").value);

  function placePicture(picture, unit, size) {
    const kind = element("picture")?.value || "patch";
    showCell(picture, { ...units, sheets: units.sheets[kind] }, unit, size);
    picture.style.imageRendering = kind === "filter" ? "pixelated" : "auto";
  }

  const isDead = unit => units.dead?.includes(unit) || false;
  const describe = unit => units.names[unit] ? `${unit} ${units.names[unit]}` : String(unit);

  function makeCell(unit, size) {
    const picture = make("span");
    placePicture(picture, unit, size);
    const cell = make("a", { href: url(`${units.folder}${unit}.html`) }, picture);
    cell.append(make("b", { textContent: describe(unit) }));
    cell.setAttribute("aria-label", `Unit ${describe(unit)}`);
    cell.dataset.unit = unit;
    if (isDead(unit)) cell.classList.add("dead");
    return cell;
  }

  function draw() {
    if (!units || sheet.hidden) return;
    const size = cellSize();
    const width = sheet.clientWidth;
    columns = Math.max(1, Math.floor((width + GAP) / (size + GAP)));
    const rowHeight = size + LABEL_HEIGHT + GAP;
    const rowCount = Math.ceil(order.length / columns);
    sheet.style.height = `${Math.max(1, rowCount) * rowHeight}px`;

    const top = sheet.getBoundingClientRect().top;
    const firstVisible = Math.floor(-top / rowHeight) - SPARE_ROWS;
    const visibleRows = Math.ceil(innerHeight / rowHeight) + 2 * SPARE_ROWS;
    const maxRows = Math.max(1, Math.floor(MAX_CELLS / columns));
    const firstRow = Math.max(0, firstVisible);
    const lastRow = Math.min(rowCount, firstVisible + visibleRows, firstRow + maxRows);

    const wanted = new Set();
    for (let place = firstRow * columns; place < Math.min(order.length, lastRow * columns); place++) {
      const unit = order[place];
      wanted.add(unit);
      let cell = cells.get(unit);
      if (!cell) {
        cell = makeCell(unit, size);
        cells.set(unit, cell);
        sheet.append(cell);
      }
      cell.style.left = `${(place % columns) * (size + GAP)}px`;
      cell.style.top = `${Math.floor(place / columns) * rowHeight}px`;
      cell.style.width = `${size}px`;
    }
    for (const [unit, cell] of cells) {
      if (wanted.has(unit)) continue;
      cell.remove();
      cells.delete(unit);
    }
  }

  let isPending = false;
  function requestDraw() {
    if (isPending) return;
    isPending = true;
    requestAnimationFrame(() => {
      isPending = false;
      draw();
    });
  }

  // ── tip ──
  const SVG = "http://www.w3.org/2000/svg";

  function makeSvg(tag, attributes) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }

  // How the responses lie between the least and the largest: a bar for each tenth of the images.
  function drawQuantiles(steps) {
    const chart = makeSvg("svg", { viewBox: "0 0 180 34" });
    for (let tenth = 0; tenth < 10; tenth++) {
      const left = steps[tenth] * 180 / 99;
      const width = Math.max(1, (steps[tenth + 1] - steps[tenth]) * 180 / 99);
      const height = Math.min(32, 160 / width);
      chart.append(makeSvg("rect", { class: "spread", x: left, y: 33 - height, width, height }));
    }
    const middle = steps[5] * 180 / 99;
    chart.append(makeSvg("path", { class: "middle", d: `M${middle} 2V34` }));
    return chart;
  }

  function showTip(unit, x, y) {
    const lines = [`strongest response ${round(units.peak[unit] ?? 0)}`];
    if (units.frequency) lines.push(`responds to ${round(100 * units.frequency[unit])} % of the images`);
    if (units.selectivity && units.selectivity[unit] !== null) {
      lines.push(`selectivity ${round(units.selectivity[unit])}${units.class[unit] ? `: ${units.class[unit]}` : ""}`);
    }
    if (units.readability && units.readability[unit] !== null) {
      lines.push(`readability ${round(units.readability[unit])}`);
    }
    if (isDead(unit)) lines.push("dead: it responds to none of the images");
    if (units.duplicateOf && units.duplicateOf[unit] >= 0) lines.push(`does the same as unit ${units.duplicateOf[unit]}`);
    tip.replaceChildren(make("b", { textContent: `Unit ${describe(unit)}` }));
    for (const line of lines) tip.append(make("div", { textContent: line }));
    if (units.quantiles) tip.append(drawQuantiles(units.quantiles[unit]));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${y + box.height + 24 > innerHeight ? y - box.height - 14 : y + 18}px`;
  }

  sheet.addEventListener("pointermove", event => {
    const cell = event.target.closest("a");
    if (cell && event.pointerType === "mouse") showTip(Number(cell.dataset.unit), event.clientX, event.clientY);
    else tip.hidden = true;
  });
  sheet.addEventListener("pointerleave", () => { tip.hidden = true; });

  // ── map ──
  const mapBox = element("unit-map");
  const canvas = mapBox.querySelector("canvas");
  const pen = canvas.getContext("2d");
  const images = new Map();  // address → image
  let map = null;
  let view = { zoom: 1, x: 0, y: 0 };

  function getSheetImage(address) {
    let image = images.get(address);
    if (!image) {
      image = new Image();
      image.onload = requestMap;
      image.src = url(address);
      images.set(address, image);
    }
    return image;
  }

  const place = unit => {
    // Wider than high, as the canvas is: the axes have no meaning of their own.
    const height = Math.max(60, canvas.height - 80 * devicePixelRatio);
    const width = Math.max(60, Math.min(canvas.width - 80 * devicePixelRatio, 1.8 * height));
    return [
      canvas.width / 2 + (map.x[unit] - 0.5) * width * view.zoom + view.x,
      canvas.height / 2 + (map.y[unit] - 0.5) * height * view.zoom + view.y,
    ];
  };

  function drawMap() {
    if (!map || mapBox.hidden) return;
    const ratio = devicePixelRatio;
    const width = Math.round(canvas.clientWidth * ratio);
    const height = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    pen.clearRect(0, 0, width, height);
    const kind = element("picture")?.value || "patch";
    const crowding = Math.sqrt(500 / Math.max(60, units.count));
    const size = Math.min(96, Math.max(12, 26 * crowding * Math.sqrt(view.zoom))) * ratio;
    const shown = new Set(order);
    for (let unit = 0; unit < units.count; unit++) {
      const [x, y] = place(unit);
      if (x < -size || y < -size || x > width + size || y > height + size) continue;
      const image = getSheetImage(units.sheets[kind][Math.floor(unit / units.perSheet)]);
      if (!image.complete || !image.naturalWidth) continue;
      const number = unit % units.perSheet;
      pen.globalAlpha = shown.has(unit) ? 1 : 0.12;
      pen.drawImage(
        image, (number % units.columns) * units.side, Math.floor(number / units.columns) * units.side,
        units.side, units.side, Math.round(x - size / 2), Math.round(y - size / 2), size, size,
      );
    }
    pen.globalAlpha = 1;
  }

  let isMapPending = false;
  function requestMap() {
    if (isMapPending) return;
    isMapPending = true;
    requestAnimationFrame(() => {
      isMapPending = false;
      drawMap();
    });
  }

  function findUnit(event) {
    if (!map) return -1;
    const ratio = devicePixelRatio;
    let nearest = -1;
    let least = (24 * ratio) ** 2;
    for (let unit = 0; unit < units.count; unit++) {
      const [x, y] = place(unit);
      const square = (x - event.offsetX * ratio) ** 2 + (y - event.offsetY * ratio) ** 2;
      if (square < least) {
        least = square;
        nearest = unit;
      }
    }
    return nearest;
  }

  function zoomMap(factor, x, y) {
    const zoom = Math.min(40, Math.max(0.8, view.zoom * factor));
    const change = zoom / view.zoom;
    const left = x - canvas.width / 2;
    const top = y - canvas.height / 2;
    view = { zoom, x: left - (left - view.x) * change, y: top - (top - view.y) * change };
    requestMap();
  }

  let pressed = null;
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    zoomMap(Math.exp(-event.deltaY * 0.0016), event.offsetX * devicePixelRatio, event.offsetY * devicePixelRatio);
  }, { passive: false });
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    pressed = { x: event.clientX, y: event.clientY, moved: false };
  });
  canvas.addEventListener("pointermove", event => {
    if (pressed) {
      const moveX = event.clientX - pressed.x;
      const moveY = event.clientY - pressed.y;
      pressed.moved ||= Math.hypot(moveX, moveY) > 4;
      if (!pressed.moved) return;
      view.x += moveX * devicePixelRatio;
      view.y += moveY * devicePixelRatio;
      Object.assign(pressed, { x: event.clientX, y: event.clientY });
      requestMap();
      return;
    }
    const unit = findUnit(event);
    if (unit < 0) tip.hidden = true;
    else showTip(unit, event.clientX, event.clientY);
  });
  canvas.addEventListener("pointerup", event => {
    const wasClick = pressed && !pressed.moved;
    pressed = null;
    const unit = wasClick ? findUnit(event) : -1;
    if (unit >= 0) location.href = url(`${units.folder}${unit}.html`);
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("keydown", event => {
    const factor = { "+": 1.25, "=": 1.25, "-": 0.8 }[event.key];
    if (factor) zoomMap(factor, canvas.width / 2, canvas.height / 2);
    if (event.key === "0") {
      view = { zoom: 1, x: 0, y: 0 };
      requestMap();
    }
  });

  function showView(isMap) {
    sheet.hidden = isMap;
    mapBox.hidden = !isMap;
    element("as-sheet").setAttribute("aria-pressed", String(!isMap));
    element("as-map").setAttribute("aria-pressed", String(isMap));
    state.view = isMap ? "map" : "";
    if (!isMap) {
      draw();
      return;
    }
    const caption = element("map-caption");
    if (!map) caption.textContent = "Loading the map …";
    sightline.load(settings.map).then(content => {
      map = content;
      caption.textContent =
        `Units whose responses go together lie together: ${map.method} of the correlations over ` +
        `${map.images.toLocaleString("en")} images. Distances between groups mean little. ` +
        "Wheel to zoom, drag to move, click to open a unit.";
      requestMap();
    }, () => { caption.textContent = "The map can't be loaded."; });
  }

  // ── begin ──
  element("controls").addEventListener("submit", event => event.preventDefault());
  element("controls").addEventListener("input", event => {
    const control = event.target;
    state[control.id] = control.value;
    updateOrder();
    requestMap();
  });
  element("as-sheet").addEventListener("click", () => showView(false));
  element("as-map").addEventListener("click", () => showView(true));
  addEventListener("scroll", requestDraw, { passive: true });
  new ResizeObserver(() => {
    requestDraw();
    requestMap();
  }).observe(document.documentElement);

  sightline.load(settings.units, true).then(content => {
    units = content;
    restoreControls();
    updateOrder();
    if (state.view === "map" && settings.mapScript) showView(true);
  });
}
