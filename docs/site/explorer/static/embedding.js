"use strict";

// The map of images: shows `data` in the page's elements of these names. In a page of one file it is
// included, and in the explorer a script of its own.
function showMap(data) {
  // ── data ──
  const element = id => document.getElementById(id);

  function decodeBytes(text) {
    return Uint8Array.from(atob(text), character => character.charCodeAt(0)).buffer;
  }

  const positions = new Float32Array(decodeBytes(data.positions));  // in [−1, 1], image by image
  const dimensions = data.dimensions;
  const count = positions.length / dimensions;
  const groups = data.groups.map(group => ({ ...group, of: new Uint16Array(decodeBytes(group.of)) }));
  // Whether an image has a page of its own, and where; only in the explorer.
  const hasPage = data.linked ? new Uint8Array(decodeBytes(data.linked)) : [];
  const findPage = id => hasPage[id] ? `${data.folder}${id}.html` : "";
  const thumbnailOf = new Int32Array(count).fill(-1);  // its number among all thumbnails; −1 for none
  new Uint32Array(decodeBytes(data.pictured)).forEach((id, number) => { thumbnailOf[id] = number; });

  const map = element("map");
  const pen = map.getContext("2d");
  const tip = element("tip");
  const readToken = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const OUTLINE_COLOR = readToken("--accent");
  const OTHER_COLOR = readToken("--category-other");
  // For the largest groups; the rest is gray. The first seven colours are those of Okabe and Ito, safe
  // for colour blindness; the three after them differ from these in lightness.
  const CATEGORY_COLORS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].map(
    number => readToken(`--category-${number}`));

  // ── state ──
  const screenX = new Float32Array(count);
  const screenY = new Float32Array(count);
  const hidden = new Set();  // indices of names of the group that are not shown
  let group = groups[0];  // what the images are coloured by
  let namePositions = [];  // where the names of the largest groups stand, in the map's coordinates
  let palette = [];  // CSS colour of each name of the group
  let inks = new Uint32Array();  // the same as pixels of the canvas
  let zoom = 1;
  let shiftX = 0;
  let shiftY = 0;
  let turn = [0.6, 0.4];  // angles in three dimensions
  let pixelRatio = 1;
  let pointField;  // the pixels that points are drawn into
  let lassoPath = null;
  let chosen = [];  // ids inside the last lasso
  let isDrawPending = false;
  let isolated = -1;  // the index of the name that alone is shown; −1 for all

  function isHidden(id) {
    const index = group.of[id];
    return isolated >= 0 ? index !== isolated : hidden.has(index);
  }

  // Draws at the next frame, however often it is called before.
  function requestDraw() {
    if (isDrawPending) return;
    isDrawPending = true;
    requestAnimationFrame(draw);
  }

  // ── thumbnails ──
  // Sheets arrive one by one; the map is drawn again for each.
  const sheets = data.sheets.map(source => {
    const sheet = new Image();
    sheet.onload = requestDraw;
    sheet.src = source;
    return sheet;
  });
  const side = data.thumbnailSide;
  const thumbnailsPerSheet = data.sheetColumns ** 2;

  // Returns whether the image has a thumbnail that has arrived.
  function drawThumbnail(context, id, x, y, size) {
    const number = thumbnailOf[id];
    if (number < 0) return false;
    const sheet = sheets[Math.floor(number / thumbnailsPerSheet)];
    if (!sheet.complete || !sheet.naturalWidth) return false;
    const cell = number % thumbnailsPerSheet;
    const sheetX = cell % data.sheetColumns * side;
    const sheetY = Math.floor(cell / data.sheetColumns) * side;
    context.drawImage(sheet, sheetX, sheetY, side, side, x, y, size, size);
    return true;
  }

  function makeThumbnail(id, size) {
    const canvas = document.createElement("canvas");
    canvas.width = size;
    canvas.height = size;
    return drawThumbnail(canvas.getContext("2d"), id, 0, 0, size) ? canvas : null;
  }

  // ── colours ──
  // The indices of the group's names that images have, those of the most images first.
  function rankNames() {
    const imageCounts = new Uint32Array(group.names.length);
    for (const index of group.of) imageCounts[index]++;
    const order = [...imageCounts.keys()]
      .filter(index => imageCounts[index])
      .sort((a, b) => imageCounts[b] - imageCounts[a]);
    return { imageCounts, order };
  }

  // The median of each coordinate of the images with one name.
  function findMiddle(index) {
    const middle = [];
    for (let dimension = 0; dimension < dimensions; dimension++) {
      const numbers = [];
      for (let id = 0; id < count; id++) {
        if (group.of[id] === index) numbers.push(positions[id * dimensions + dimension]);
      }
      middle.push(Float32Array.from(numbers).sort()[numbers.length >> 1]);
    }
    return middle;
  }

  function updateColors() {
    palette = group.colors || group.names.map(() => OTHER_COLOR);
    const { imageCounts, order } = rankNames();
    const largest = order.slice(0, CATEGORY_COLORS.length);
    if (!group.colors) {
      largest.forEach((index, rank) => { palette[index] = CATEGORY_COLORS[rank]; });
    }
    namePositions = largest
      .filter(index => imageCounts[index] > 1)
      .map(index => ({ index, middle: findMiddle(index) }));
    const probe = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    inks = new Uint32Array(palette.map(color => {
      probe.fillStyle = color;
      probe.fillRect(0, 0, 1, 1);
      return new Uint32Array(probe.getImageData(0, 0, 1, 1).data.buffer)[0];
    }));
  }

  // ── drawing ──
  // The pixel of a point of two or three coordinates.
  function projectPoint([x, y, z]) {
    const scale = zoom * Math.min(map.width, map.height) * 0.46;
    if (dimensions === 3) {
      const depth = -Math.sin(turn[0]) * x + Math.cos(turn[0]) * z;
      x = Math.cos(turn[0]) * x + Math.sin(turn[0]) * z;
      y = Math.cos(turn[1]) * y - Math.sin(turn[1]) * depth;
    }
    return [map.width / 2 + shiftX + scale * x, map.height / 2 + shiftY - scale * y];
  }

  function project() {
    const scale = zoom * Math.min(map.width, map.height) * 0.46;
    const centerX = map.width / 2 + shiftX;
    const centerY = map.height / 2 + shiftY;
    const [cosA, sinA] = [Math.cos(turn[0]), Math.sin(turn[0])];
    const [cosB, sinB] = [Math.cos(turn[1]), Math.sin(turn[1])];
    for (let id = 0, j = 0; id < count; id++, j += dimensions) {
      let x = positions[j];
      let y = positions[j + 1];
      if (dimensions === 3) {
        const z = positions[j + 2];
        const depth = -sinA * x + cosA * z;
        x = cosA * x + sinA * z;
        y = cosB * y - sinB * depth;
      }
      screenX[id] = centerX + scale * x;
      screenY[id] = centerY - scale * y;
    }
  }

  function drawPoints() {
    const { width, height } = map;
    const pixels = new Uint32Array(pointField.data.buffer);
    pixels.fill(0);
    const radius = (count > 20000 ? 1 : 2) * pixelRatio * Math.min(2, Math.sqrt(zoom));
    const reach = Math.max(1, Math.round(radius));
    const pointSide = 2 * reach;
    const rowSpan = (pointSide + 1) * width;
    for (let id = 0; id < count; id++) {
      const x = Math.round(screenX[id]);
      const y = Math.round(screenY[id]);
      const isOutside = x < reach || y < reach || x >= width - reach || y >= height - reach;
      if (isOutside || isHidden(id)) continue;
      const ink = inks[group.of[id]];
      const first = (y - reach) * width + x - reach;
      for (let row = first; row < first + rowSpan; row += width) {
        // Faster than fill() for so few pixels.
        for (let pixel = row; pixel <= row + pointSide; pixel++) pixels[pixel] = ink;
      }
    }
    pen.putImageData(pointField, 0, 0);
  }

  // One image for each square of the map, so that a frame's time does not grow with their number.
  function pickPictures(size) {
    // The squares move with the map, or pictures would flicker.
    const left = (map.width / 2 + shiftX) % size - size;
    const top = (map.height / 2 + shiftY) % size - size;
    const columns = Math.ceil((map.width - left) / size) + 1;
    const rows = Math.ceil((map.height - top) / size) + 1;
    const isTaken = new Uint8Array(columns * rows);
    const ids = [];
    for (let id = 0; id < count; id++) {
      const x = screenX[id];
      const y = screenY[id];
      const isOutside = x < 0 || y < 0 || x >= map.width || y >= map.height;
      if (thumbnailOf[id] < 0 || isOutside || isHidden(id)) continue;
      const cell = Math.floor((y - top) / size) * columns + Math.floor((x - left) / size);
      if (isTaken[cell]) continue;
      isTaken[cell] = 1;
      ids.push(id);
    }
    return ids;
  }

  // The names of the largest groups, each in the middle of its images.
  function drawGroupNames() {
    pen.font = `600 ${12 * pixelRatio}px ${getComputedStyle(document.body).fontFamily}`;
    pen.textAlign = "center";
    pen.lineWidth = 3 * pixelRatio;
    pen.strokeStyle = readToken("--page");
    pen.fillStyle = readToken("--ink");
    for (const { index, middle } of namePositions) {
      if (hidden.has(index) || (isolated >= 0 && isolated !== index)) continue;
      const [x, y] = projectPoint(middle);
      pen.strokeText(group.names[index], x, y);
      pen.fillText(group.names[index], x, y);
    }
    pen.lineWidth = 2 * pixelRatio;
  }

  function draw() {
    isDrawPending = false;
    project();
    const size = Math.round(Math.min(side, Math.max(14, 26 * Math.sqrt(zoom))) * pixelRatio);
    const pictured = element("pictures").checked ? pickPictures(size) : [];
    drawPoints();
    pen.lineWidth = 2 * pixelRatio;
    for (const id of pictured) {
      // On whole pixels: between them, a picture takes seven times as long.
      const x = Math.round(screenX[id] - size / 2);
      const y = Math.round(screenY[id] - size / 2);
      if (!drawThumbnail(pen, id, x, y, size)) continue;
      pen.strokeStyle = palette[group.of[id]];
      pen.strokeRect(x, y, size, size);
    }
    drawGroupNames();
    pen.strokeStyle = OUTLINE_COLOR;
    if (chosen.length < 5000) {
      const reach = 4 * pixelRatio;
      for (const id of chosen) {
        pen.strokeRect(screenX[id] - reach, screenY[id] - reach, 2 * reach, 2 * reach);
      }
    }
    if (lassoPath) {
      pen.beginPath();
      lassoPath.forEach(([x, y]) => pen.lineTo(x, y));
      pen.closePath();
      pen.stroke();
    }
  }

  // Setting a canvas's size clears it: it is drawn again at once, and an unchanged size is left alone.
  function resize() {
    const box = element("view").getBoundingClientRect();
    pixelRatio = devicePixelRatio || 1;
    const width = Math.max(1, Math.round(box.width * pixelRatio));
    const height = Math.max(1, Math.round(box.height * pixelRatio));
    if (pointField && width === map.width && height === map.height) return;
    map.width = width;
    map.height = height;
    pointField = pen.createImageData(width, height);
    draw();
  }

  // ── legend and tip ──
  const MAX_LEGEND_NAMES = 24;

  function describeImage(id) {
    return groups.map(({ label, names, of }) => `${label}: ${names[of[id]]}`).join("\n");
  }

  function showLegend() {
    const { imageCounts, order } = rankNames();
    const entries = order.slice(0, MAX_LEGEND_NAMES).map(index => {
      const button = document.createElement("button");
      const swatch = document.createElement("i");
      const number = document.createElement("small");
      button.type = "button";
      button.title = "Show or hide";
      swatch.style.background = palette[index];
      number.textContent = imageCounts[index];
      button.append(swatch, group.names[index], number);
      button.onpointerenter = () => isolate(index);
      button.onpointerleave = () => isolate(-1);
      button.onfocus = () => isolate(index);
      button.onblur = () => isolate(-1);
      button.onclick = () => {
        if (hidden.has(index)) hidden.delete(index);
        else hidden.add(index);
        button.classList.toggle("off");
        requestDraw();
      };
      return button;
    });
    if (order.length > MAX_LEGEND_NAMES) entries.push(`and ${order.length - MAX_LEGEND_NAMES} more`);
    element("names-of-group").replaceChildren(...entries);
  }

  // Shows the images of one name alone, as long as the legend's entry is pointed at; −1 for all.
  function isolate(index) {
    isolated = index;
    requestDraw();
  }

  // The image nearest to a pixel of the canvas, within 14 CSS pixels; −1 for none.
  function findNearest(x, y) {
    let nearest = -1;
    let leastSquare = (14 * pixelRatio) ** 2;
    for (let id = 0; id < count; id++) {
      const square = (screenX[id] - x) ** 2 + (screenY[id] - y) ** 2;
      if (square < leastSquare && !isHidden(id)) {
        leastSquare = square;
        nearest = id;
      }
    }
    return nearest;
  }

  function showTip(event) {
    const id = findNearest(event.offsetX * pixelRatio, event.offsetY * pixelRatio);
    tip.style.display = id < 0 ? "none" : "block";
    if (id < 0) return;
    const text = document.createElement("div");
    text.textContent = `${data.names[id]}\n${describeImage(id)}`;
    const thumbnail = makeThumbnail(id, 144);
    tip.replaceChildren(...(thumbnail ? [thumbnail] : []), text);

    const { clientWidth, clientHeight } = map;
    const isRight = event.offsetX > clientWidth - 180;
    const isLow = event.offsetY > clientHeight - 230;
    tip.style.left = isRight ? "auto" : `${event.offsetX + 14}px`;
    tip.style.right = isRight ? `${clientWidth - event.offsetX + 14}px` : "auto";
    tip.style.top = isLow ? "auto" : `${event.offsetY + 14}px`;
    tip.style.bottom = isLow ? `${clientHeight - event.offsetY + 14}px` : "auto";
  }

  // ── lasso ──
  const MAX_LISTED_IMAGES = 200;

  // Whether a ray to the right crosses the path an odd number of times.
  function isInsideLasso(x, y) {
    let isInside = false;
    let [previousX, previousY] = lassoPath[lassoPath.length - 1];
    for (const [cornerX, cornerY] of lassoPath) {
      if (cornerY > y !== previousY > y) {
        const crossing = (previousX - cornerX) * (y - cornerY) / (previousY - cornerY) + cornerX;
        if (x < crossing) isInside = !isInside;
      }
      previousX = cornerX;
      previousY = cornerY;
    }
    return isInside;
  }

  function findImagesInLasso() {
    const xs = lassoPath.map(point => point[0]);
    const ys = lassoPath.map(point => point[1]);
    const [minX, maxX] = [Math.min(...xs), Math.max(...xs)];
    const [minY, maxY] = [Math.min(...ys), Math.max(...ys)];
    const ids = [];
    for (let id = 0; id < count; id++) {
      const x = screenX[id];
      const y = screenY[id];
      if (x < minX || x > maxX || y < minY || y > maxY || isHidden(id)) continue;
      if (isInsideLasso(x, y)) ids.push(id);
    }
    return ids;
  }

  // The most frequent names of the group among the chosen images.
  function describeShares() {
    const imageCounts = new Map();
    for (const id of chosen) {
      const index = group.of[id];
      imageCounts.set(index, (imageCounts.get(index) || 0) + 1);
    }
    const largest = [...imageCounts].sort((a, b) => b[1] - a[1]).slice(0, 6);
    const shares = largest.map(([index, number]) => {
      return `${group.names[index]} ${Math.round(100 * number / chosen.length)} %`;
    });
    return `${group.label}: ${shares.join(", ")}`;
  }

  function showList() {
    chosen = findImagesInLasso();
    element("list").hidden = !chosen.length;
    const noun = chosen.length === 1 ? "image" : "images";
    element("count").textContent = `${chosen.length.toLocaleString("en")} ${noun}`;
    element("shares").textContent = describeShares();
    const rows = chosen.slice(0, MAX_LISTED_IMAGES).map(id => {
      const row = document.createElement("li");
      const page = findPage(id);
      const name = document.createElement(page ? "a" : "span");
      if (page) name.href = page;
      name.textContent = data.names[id];
      name.title = describeImage(id);
      const thumbnail = makeThumbnail(id, 40);
      row.append(...(thumbnail ? [thumbnail] : []), name);
      return row;
    });
    const unlisted = chosen.length - MAX_LISTED_IMAGES;
    if (unlisted > 0) rows.push(`and ${unlisted} more; “Save the list” has them all`);
    element("names").replaceChildren(...rows);
    resize();
  }

  element("save").onclick = () => {
    const text = chosen.map(id => data.names[id]).join("\n") + "\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = "images.txt";
    link.click();
    URL.revokeObjectURL(link.href);
  };
  element("close").onclick = () => {
    chosen = [];
    element("list").hidden = true;
    resize();
  };

  // ── moving ──
  function home() {
    zoom = 1;
    shiftX = 0;
    shiftY = 0;
    requestDraw();
  }

  // Zooms around a pixel of the canvas, which stays where it is.
  function zoomed(factor, x, y) {
    factor = Math.min(400 / zoom, Math.max(0.3 / zoom, factor));
    shiftX = x - map.width / 2 - (x - map.width / 2 - shiftX) * factor;
    shiftY = y - map.height / 2 - (y - map.height / 2 - shiftY) * factor;
    zoom *= factor;
    requestDraw();
  }

  let isClick = false;  // whether the pointer that is pressed has not moved
  let [pressedX, pressedY] = [0, 0];
  const pointers = new Map();  // the last event of each pressed pointer
  const canvasPoint = event => [event.offsetX * pixelRatio, event.offsetY * pixelRatio];

  // Zooms by how far two fingers have moved apart.
  function pinch(event, previous) {
    const fixed = [...pointers.values()].find(pointer => pointer.pointerId !== event.pointerId);
    const distance = ({ offsetX, offsetY }) => {
      return Math.hypot(offsetX - fixed.offsetX, offsetY - fixed.offsetY) || 1;
    };
    const middleX = (event.offsetX + fixed.offsetX) / 2 * pixelRatio;
    const middleY = (event.offsetY + fixed.offsetY) / 2 * pixelRatio;
    zoomed(distance(event) / distance(previous), middleX, middleY);
  }

  map.addEventListener("wheel", event => {
    event.preventDefault();
    zoomed(Math.exp(-event.deltaY * 0.0016), ...canvasPoint(event));
  }, { passive: false });

  map.addEventListener("pointerdown", event => {
    map.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event);
    const isLasso = event.shiftKey || element("lasso").ariaPressed === "true";
    if (event.button === 0 && pointers.size === 1 && isLasso) lassoPath = [canvasPoint(event)];
    isClick = event.button === 0 && pointers.size === 1 && !isLasso;
    [pressedX, pressedY] = [event.clientX, event.clientY];
  });

  map.addEventListener("pointermove", event => {
    const previous = pointers.get(event.pointerId);
    if (!previous) {
      showTip(event);
      return;
    }
    tip.style.display = "none";
    if (Math.hypot(event.clientX - pressedX, event.clientY - pressedY) > 4) isClick = false;
    const moveX = (event.offsetX - previous.offsetX) * pixelRatio;
    const moveY = (event.offsetY - previous.offsetY) * pixelRatio;
    const isTurn = dimensions === 3 && (event.buttons & 2 || event.altKey);
    if (lassoPath) {
      lassoPath.push(canvasPoint(event));
    } else if (pointers.size === 2) {
      pinch(event, previous);
    } else if (isTurn) {
      turn = [turn[0] + moveX * 0.008, turn[1] + moveY * 0.008];
    } else {
      shiftX += moveX;
      shiftY += moveY;
    }
    pointers.set(event.pointerId, event);
    requestDraw();
  });

  for (const type of ["pointerup", "pointercancel"]) {
    map.addEventListener(type, event => {
      pointers.delete(event.pointerId);
      if (lassoPath && lassoPath.length > 2) showList();
      lassoPath = null;
      const id = isClick && type === "pointerup" ? findNearest(...canvasPoint(event)) : -1;
      if (id >= 0 && findPage(id)) location.href = findPage(id);
      requestDraw();
    });
  }

  map.addEventListener("pointerleave", () => { tip.style.display = "none"; });
  map.addEventListener("contextmenu", event => event.preventDefault());
  map.addEventListener("dblclick", home);

  const KEY_ZOOMS = { "+": 1.25, "=": 1.25, "-": 0.8 };
  const KEY_STEPS = {
    ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40],
  };
  map.addEventListener("keydown", event => {
    const factor = KEY_ZOOMS[event.key];
    const step = KEY_STEPS[event.key];
    if (factor) {
      zoomed(factor, map.width / 2, map.height / 2);
    } else if (step) {
      shiftX += step[0] * pixelRatio;
      shiftY += step[1] * pixelRatio;
      requestDraw();
    } else if (event.key === "0") {
      home();
    }
  });

  // ── controls ──
  element("home").onclick = home;
  element("pictures").onchange = requestDraw;
  element("lasso").onclick = () => {
    const isOn = element("lasso").ariaPressed !== "true";
    element("lasso").ariaPressed = String(isOn);
    map.classList.toggle("lasso", isOn);
  };
  groups.forEach(({ label }, index) => element("by").add(new Option(label, index)));
  element("by").onchange = () => {
    group = groups[element("by").value];
    hidden.clear();
    isolated = -1;
    updateColors();
    showLegend();
    requestDraw();
  };

  element("legend").open = innerWidth > 640;
  updateColors();
  showLegend();
  resize();
  new ResizeObserver(resize).observe(element("view"));
}
