"use strict";

// The live page: a picture of one's own, covered in part, with units switched off. The server
// answers one change at a time; of those that come meanwhile only the last is asked.
{
  const { make, url, round, readJson } = sightline;
  const settings = readJson("settings");
  const element = id => document.getElementById(id);
  const canvas = element("canvas");
  const pen = canvas.getContext("2d");
  const stage = element("stage");
  const status = element("status");
  const [height, width] = settings.size;
  stage.style.aspectRatio = `${width} / ${height}`;
  const COVER_COLOR = "rgb(128 128 128)";
  const MAX_SHOWN = 12;

  const state = { image: "", picture: null, off: {}, tool: "cover" };
  let edits = [];  // {box: [top, left, bottom, right]} or {path: [[x, y]…], size}
  let draft = null;  // the edit that is being drawn

  // ── asking ──
  let isAsking = false;
  let isWaiting = false;  // a change came while the last one was asked

  async function ask() {
    if (!state.image) return;
    if (isAsking) {
      isWaiting = true;
      return;
    }
    isAsking = true;
    status.textContent = "Asking …";
    const request = {
      image: state.image,
      cover: edits.filter(edit => edit.box).map(edit => edit.box),
      brush: encodeBrush(),
      off: state.off,
      layer: element("layer").value,
      units: MAX_SHOWN,
      attribution: element("attribution").value || null,
    };
    try {
      const answer = await send("api/answer", JSON.stringify(request), "application/json");
      status.textContent = `Answered in ${round(answer.seconds)} s.`;
      showAnswer(answer);
      showAttribution(answer.attribution);
      showUnits(answer);
    } catch (error) {
      status.textContent = error.message;
    }
    isAsking = false;
    if (isWaiting) {
      isWaiting = false;
      ask();
    }
  }

  async function send(address, body, type) {
    const response = await fetch(url(address), { method: "POST", body, headers: { "content-type": type } });
    const content = await response.json().catch(() => ({}));
    if (response.status === 429) {
      await new Promise(resolve => setTimeout(resolve, 1000 * Number(response.headers.get("retry-after") || 1)));
      return send(address, body, type);
    }
    if (!response.ok) throw new Error(content.error || `The server answered ${response.status}.`);
    return content;
  }

  // ── the picture ──
  function showPicture(address, name) {
    const picture = new Image();
    picture.onload = () => {
      Object.assign(state, { image: name, picture });
      edits = [];
      element("hint").hidden = true;
      draw();
      ask();
    };
    picture.onerror = () => { status.textContent = "The picture can't be shown."; };
    picture.src = address;
  }

  async function sendPicture(blob) {
    status.textContent = "Sending …";
    try {
      const sent = await send("api/images", blob, "application/octet-stream");
      showPicture(url(`api/images/${sent.image}.png`), sent.image);
    } catch (error) {
      status.textContent = error.message;
    }
  }

  function drawEdit(context, edit, color) {
    context.fillStyle = color;
    context.strokeStyle = color;
    if (edit.box) {
      const [top, left, bottom, right] = edit.box;
      context.fillRect(left, top, right - left, bottom - top);
      return;
    }
    context.lineWidth = edit.size;
    context.lineCap = "round";
    context.lineJoin = "round";
    context.beginPath();
    edit.path.forEach(([x, y]) => context.lineTo(x, y));
    const [x, y] = edit.path.at(-1);
    context.lineTo(x + 0.01, y);
    context.stroke();
  }

  function draw() {
    pen.clearRect(0, 0, width, height);
    if (state.picture) pen.drawImage(state.picture, 0, 0, width, height);
    for (const edit of [...edits, ...(draft ? [draft] : [])]) drawEdit(pen, edit, COVER_COLOR);
  }

  // The pixels under the brush as bits, the first the highest of its byte; null without a stroke.
  function encodeBrush() {
    const strokes = edits.filter(edit => edit.path);
    if (!strokes.length) return null;
    const mask = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    for (const stroke of strokes) drawEdit(mask, stroke, "#000000");
    const pixels = mask.getImageData(0, 0, width, height).data;
    const bytes = new Uint8Array(Math.ceil(height * width / 8));
    for (let pixel = 0; pixel < height * width; pixel++) {
      if (pixels[4 * pixel + 3] > 127) bytes[pixel >> 3] |= 128 >> (pixel & 7);
    }
    let text = "";
    for (const byte of bytes) text += String.fromCharCode(byte);
    return btoa(text);
  }

  // ── drawing on it ──
  function findPoint(event) {
    const box = canvas.getBoundingClientRect();
    const inside = (value, length) => Math.max(0, Math.min(length, value * length));
    return [
      inside((event.clientX - box.left) / box.width, width),
      inside((event.clientY - box.top) / box.height, height),
    ];
  }

  let corner = null;
  canvas.addEventListener("pointerdown", event => {
    if (!state.picture) return;
    canvas.setPointerCapture(event.pointerId);
    corner = findPoint(event);
    if (state.tool === "brush") draft = { path: [corner], size: Number(element("brush-size").value) * Math.min(height, width) / 224 };
  });
  canvas.addEventListener("pointermove", event => {
    if (!corner) return;
    const [x, y] = findPoint(event);
    if (state.tool === "brush") {
      draft.path.push([x, y]);
    } else {
      const edges = [Math.min(y, corner[1]), Math.min(x, corner[0]), Math.max(y, corner[1]), Math.max(x, corner[0])];
      draft = { box: edges.map(Math.round) };
    }
    draw();
  });
  for (const type of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(type, () => {
      corner = null;
      const isEmpty = !draft || draft.box && (draft.box[0] === draft.box[2] || draft.box[1] === draft.box[3]);
      if (!isEmpty) edits.push(draft);
      draft = null;
      draw();
      if (!isEmpty) ask();
    });
  }

  // ── what comes back ──
  function makeBar(share) {
    const SVG = "http://www.w3.org/2000/svg";
    const bar = document.createElementNS(SVG, "svg");
    bar.setAttribute("class", "bar-chart");
    bar.setAttribute("viewBox", "0 0 100 12");
    bar.setAttribute("preserveAspectRatio", "none");
    for (const [name, width] of [["track", 100], ["fill", Math.max(0.5, 100 * share)]]) {
      const shape = document.createElementNS(SVG, "rect");
      shape.setAttribute("class", name);
      shape.setAttribute("width", width);
      shape.setAttribute("height", 12);
      bar.append(shape);
    }
    return bar;
  }

  const percent = share => `${round(100 * share)} %`;

  function showAnswer({ answer, clean }) {
    const before = new Map(clean.map(item => [item.index, item.probability]));
    const table = make("table", { className: "bar-table" });
    for (const { index, label, probability } of answer) {
      const name = make("th", { scope: "row" }, make("a", { href: url(`classes/${index}.html`), textContent: label }));
      const bar = make("td", { className: "chart-cell" }, makeBar(probability));
      const number = make("td", { className: "number", textContent: percent(probability) });
      const was = before.get(index);
      const isChanged = was !== undefined && Math.abs(was - probability) > 0.005;
      const note = make("td", { className: "soft", textContent: isChanged ? `was ${percent(was)}` : "" });
      table.append(make("tr", {}, name, bar, number, note));
    }
    const children = [table];
    if (clean.length && answer.length && clean[0].index !== answer[0].index) {
      children.unshift(make("p", { textContent: `The answer has changed: it was ${clean[0].label}.` }));
    }
    if (!answer.length) children.push(make("p", { className: "note", textContent: "This network gives no classes." }));
    element("answer").replaceChildren(...children);
  }

  function showAttribution(map) {
    const box = element("attribution-map");
    if (!map) {
      box.replaceChildren();
      return;
    }
    const shown = { ...map, rows: map.height, columns: map.width };
    const canvasOfMap = make("canvas");
    painter.paint(canvasOfMap, shown);
    canvasOfMap.setAttribute("role", "img");
    canvasOfMap.setAttribute("aria-label", `Attribution of ${map.label}`);
    box.replaceChildren(canvasOfMap, painter.makeColorBar(shown), make("p", { className: "caption", textContent: `Attribution of ${map.label}.` }));
  }

  function isOff(layer, unit) {
    return (state.off[layer] || []).includes(unit);
  }

  function toggleUnit(layer, unit) {
    const others = (state.off[layer] || []).filter(other => other !== unit);
    const units = isOff(layer, unit) ? others : [...others, unit];
    if (units.length) state.off[layer] = units;
    else delete state.off[layer];
    showOff();
    ask();
  }

  function makeUnitCard(unit, map) {
    const { layer, unit: number, value, share_of_max: share, link } = unit;
    const card = make("div", { className: "unit-card" });
    if (map) {
      const picture = make("canvas");
      const amounts = { ...map, signed: false, limit: map.high };
      painter.paint(picture, amounts);
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", `Activation map of unit ${number}`);
      card.append(picture);
    }
    card.append(make("a", { className: "name", href: url(link), textContent: `unit ${number}` }));
    card.append(make("span", { className: "soft", textContent: `${round(value)}, ${percent(share)} of its peak` }));
    const button = make("button", { type: "button", textContent: isOff(layer, number) ? "switch on" : "switch off" });
    button.addEventListener("click", () => toggleUnit(layer, number));
    card.append(button);
    if (isOff(layer, number)) card.classList.add("off");
    return card;
  }

  function showUnits({ units, maps }) {
    const mapOf = new Map(maps.map(map => [`${map.layer} ${map.unit}`, map]));
    const cards = units.map(unit => makeUnitCard(unit, mapOf.get(`${unit.layer} ${unit.unit}`)));
    element("units").replaceChildren(...cards);
  }

  function showOff() {
    const chips = [];
    for (const [layer, units] of Object.entries(state.off)) {
      for (const unit of units) {
        const chip = make("button", { type: "button", className: "chip", textContent: `${layer} · ${unit} is off ×` });
        chip.addEventListener("click", () => toggleUnit(layer, unit));
        chips.push(chip);
      }
    }
    element("off").replaceChildren(...chips);
  }

  // ── where pictures come from ──
  element("file").addEventListener("change", event => {
    const [file] = event.target.files;
    if (file) sendPicture(file);
    event.target.value = "";
  });
  document.addEventListener("paste", event => {
    const file = [...event.clipboardData.files].find(item => item.type.startsWith("image/"));
    if (file) sendPicture(file);
  });
  for (const type of ["dragover", "dragleave", "drop"]) {
    stage.addEventListener(type, event => {
      event.preventDefault();
      stage.classList.toggle("is-over", type === "dragover");
      const file = type === "drop" && event.dataTransfer.files[0];
      if (file) sendPicture(file);
    });
  }
  for (const button of document.querySelectorAll("[data-image]")) {
    button.addEventListener("click", () => {
      showPicture(button.querySelector("img").src, button.dataset.image);
    });
  }

  // ── camera ──
  const video = element("video");
  let stream = null;

  function stopCamera() {
    stream?.getTracks().forEach(track => track.stop());
    stream = null;
    video.hidden = true;
    element("shutter").hidden = true;
  }

  element("camera").addEventListener("click", async () => {
    if (stream) {
      stopCamera();
      return;
    }
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      video.srcObject = stream;
      video.hidden = false;
      element("shutter").hidden = false;
      element("hint").hidden = true;
      await video.play();
    } catch (error) {
      status.textContent = `The camera can't be used: ${error.message}`;
    }
  });
  element("shutter").addEventListener("click", () => {
    const shot = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    shot.getContext("2d").drawImage(video, 0, 0);
    stopCamera();
    shot.convertToBlob({ type: "image/jpeg", quality: 0.92 }).then(sendPicture);
  });

  // ── controls ──
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.addEventListener("click", () => {
      state.tool = button.dataset.tool;
      for (const other of document.querySelectorAll("[data-tool]")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
    });
  }
  element("undo").addEventListener("click", () => {
    edits.pop();
    draw();
    ask();
  });
  element("clear").addEventListener("click", () => {
    edits = [];
    draw();
    ask();
  });
  element("layer").addEventListener("change", ask);
  element("attribution").addEventListener("change", ask);
}
