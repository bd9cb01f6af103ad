"use strict";

// What every page of the explorer does: data that comes as scripts, search, and keys.
// Classic scripts, since browsers load no modules and fetch nothing from disk.

// ── data ──
const sightline = (() => {
  const root = document.currentScript.dataset.root;
  const received = new Map();  // name of a script's data → what it holds
  const waiting = new Map();  // name → functions to call with it

  // Called by the scripts in `data/`.
  function receive(name, content) {
    received.set(name, content);
    for (const [resolve] of waiting.get(name) || []) resolve(content);
    waiting.delete(name);
  }

  // The content of a script, which is loaded once. `isHere`: the page has its script element.
  function load(name, isHere = false) {
    if (received.has(name)) return Promise.resolve(received.get(name));
    return new Promise((resolve, reject) => {
      const others = waiting.get(name);
      if (others) {
        others.push([resolve, reject]);
        return;
      }
      waiting.set(name, [[resolve, reject]]);
      if (isHere) return;
      const script = document.createElement("script");
      script.src = `${root}data/${name}.js`;
      script.onerror = () => {
        for (const [, fail] of waiting.get(name) || []) fail(new Error(`${name} can't be loaded`));
        waiting.delete(name);
      };
      document.head.append(script);
    });
  }

  const url = address => root + address;

  // An element with properties and children; texts become text, never markup.
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    Object.assign(element, properties);
    element.append(...children);
    return element;
  }

  // The name of a layer in an element, where it may be broken between modules and not in a word.
  function makeLayerName(tag, name) {
    const element = make(tag);
    for (const part of name.split(/(?<=[./])/)) element.append(part, make("wbr"));
    return element;
  }

  // A number in three digits, with a minus sign as in the page's own text.
  function round(value) {
    const text = Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 });
    return text.replace("-", "−");
  }

  // Shows a unit's cell of its layer's sheets as the background of an element: rows of `columns`
  // cells, `perSheet` on each sheet, of `count` units.
  function showCell(element, { sheets, count, columns, perSheet }, unit, size) {
    const first = unit - unit % perSheet;
    const rows = Math.ceil(Math.min(perSheet, count - first) / columns);
    const left = (unit - first) % columns;
    const top = Math.floor((unit - first) / columns);
    Object.assign(element.style, {
      width: `${size}px`,
      height: `${size}px`,
      backgroundImage: `url("${url(sheets[first / perSheet])}")`,
      backgroundSize: `${columns * size}px ${rows * size}px`,
      backgroundPosition: `${-left * size}px ${-top * size}px`,
    });
  }

  const readJson = id => JSON.parse(document.getElementById(id).textContent);

  return { receive, load, url, make, makeLayerName, round, showCell, readJson };
})();

// ── search ──
{
  const MAX_RESULTS = 12;
  const input = document.getElementById("search");
  const list = document.getElementById("search-results");
  let index = null;
  let chosen = -1;

  function* findMatches(text) {
    const words = text.toLowerCase().trim().split(/[\s:·]+/).filter(Boolean);
    const last = words.at(-1);
    const isNumber = /^\d+$/.test(last);
    const layerText = isNumber ? words.slice(0, -1).join(" ") : words.join(" ");
    for (const layer of index.layers) {
      const isLayer = layer.name.toLowerCase().includes(layerText);
      if (!isNumber && isLayer) yield { text: layer.name, note: "layer", address: layer.address };
      if (isNumber && layerText && isLayer && Number(last) < layer.count) {
        const unit = Number(last);
        const address = `${layer.folder}${unit}.html`;
        yield { text: `${layer.name} · ${unit}`, note: layer.names[unit] || "unit", address };
      }
    }
    const whole = text.toLowerCase().trim();
    for (let label = 0; label < index.classes.length; label++) {
      if (!index.classes[label].toLowerCase().includes(whole)) continue;
      yield { text: index.classes[label], note: "class", address: `classes/${label}.html` };
    }
    for (const layer of index.layers) {
      for (const [unit, name] of Object.entries(layer.names)) {
        if (!name.toLowerCase().includes(whole)) continue;
        const address = `${layer.folder}${unit}.html`;
        yield { text: name, note: `${layer.name} · ${unit}`, address };
      }
    }
  }

  function show() {
    const text = input.value.trim();
    chosen = -1;
    list.hidden = !text;
    input.setAttribute("aria-expanded", String(!list.hidden));
    if (!text) return;
    if (!index) {
      list.replaceChildren(sightline.make("li", {}, sightline.make("p", { textContent: "Loading …" })));
      return;
    }
    const results = [];
    for (const match of findMatches(text)) {
      results.push(match);
      if (results.length === MAX_RESULTS) break;
    }
    const rows = results.map(({ text: name, note, address }, number) => {
      const link = sightline.make("a", { href: sightline.url(address), tabIndex: -1 });
      link.append(sightline.make("span", { textContent: name }), sightline.make("small", { textContent: note }));
      const row = sightline.make("li", { id: `result-${number}` }, link);
      row.setAttribute("role", "option");
      return row;
    });
    if (!rows.length) {
      rows.push(sightline.make("li", {}, sightline.make("p", { textContent: "Nothing of this name." })));
    }
    list.replaceChildren(...rows);
  }

  function choose(step) {
    const rows = [...list.querySelectorAll("[role=option]")];
    if (!rows.length) return;
    chosen = (chosen + step + rows.length) % rows.length;
    rows.forEach((row, number) => row.setAttribute("aria-selected", String(number === chosen)));
    rows[chosen].scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", rows[chosen].id);
  }

  function open() {
    if (index) return;
    sightline.load("index").then(content => {
      index = content;
      show();
    }, () => {
      list.replaceChildren(sightline.make("li", {}, sightline.make("p", { textContent: "The index can't be loaded." })));
    });
  }

  input.addEventListener("focus", open);
  input.addEventListener("input", show);
  input.addEventListener("keydown", event => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      choose(event.key === "ArrowDown" ? 1 : -1);
    } else if (event.key === "Enter") {
      const rows = list.querySelectorAll("[role=option] a");
      const link = rows[Math.max(0, chosen)];
      if (link) location.href = link.href;
    } else if (event.key === "Escape") {
      input.value = "";
      show();
      input.blur();
    }
  });
  document.addEventListener("click", event => {
    if (event.target.closest(".search")) return;
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
  });
}

// ── keys: / searches, ← and → go to the neighbours ──
document.addEventListener("keydown", event => {
  const isTyping = event.target.closest("input, select, textarea, [tabindex]");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    event.preventDefault();
    document.getElementById("search").focus();
    return;
  }
  const relation = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  const link = relation && document.querySelector(`.pager [rel=${relation}]`);
  if (link) location.href = link.href;
});
