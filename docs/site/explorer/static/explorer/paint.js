"use strict";

// Maps that come as bytes, painted in the colours of the whole site: inferno for amounts, blue to red
// with white at zero for signed values.
const painter = (() => {
  const INFERNO = ["#000004", "#210c4a", "#57106e", "#8a226a", "#bc3754", "#e45a31", "#f98e09", "#f9cb35", "#fcffa4"];
  const SIGNED = ["#053061", "#2a71b2", "#6bacd1", "#c2ddec", "#f7f6f6", "#fbccb4", "#e48066", "#ba2832", "#67001f"];

  const parse = color => [1, 3, 5].map(start => parseInt(color.slice(start, start + 2), 16));

  // 256 colours between the given ones.
  function makeTable(colors) {
    const stops = colors.map(parse);
    return Array.from({ length: 256 }, (_, step) => {
      const position = step / 255 * (stops.length - 1);
      const index = Math.min(stops.length - 2, Math.floor(position));
      const share = position - index;
      return stops[index].map((part, band) => Math.round(part + (stops[index + 1][band] - part) * share));
    });
  }

  const tables = { signed: makeTable(SIGNED), amounts: makeTable(INFERNO) };

  const decode = text => Uint8Array.from(atob(text), character => character.charCodeAt(0));

  // Paints a map {rows, columns, signed, bytes} into a canvas, one pixel a value. With `isOverlay`
  // small values are transparent.
  function paint(canvas, map, isOverlay = false) {
    const bytes = decode(map.bytes);
    const table = map.signed ? tables.signed : tables.amounts;
    canvas.width = map.columns;
    canvas.height = map.rows;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(map.columns, map.rows);
    bytes.forEach((step, index) => {
      const strength = map.signed ? Math.min(1, Math.abs(step - 128) / 127) : step / 255;
      pixels.data.set(table[step], 4 * index);
      pixels.data[4 * index + 3] = isOverlay ? Math.round(230 * strength) : 255;
    });
    context.putImageData(pixels, 0, 0);
  }

  // The bar that tells which colour means what.
  function makeColorBar(map) {
    const limit = sightline.round(map.limit);
    const texts = map.signed ? [`−${limit}`, "0", limit] : ["0", "", limit];
    const bar = sightline.make("div", { className: `color-bar ${map.signed ? "diverging" : "sequential"}` });
    bar.append(...texts.map(text => sightline.make("span", { textContent: text })));
    bar.setAttribute("role", "img");
    bar.setAttribute("aria-label", `Colour scale from ${texts[0]} to ${texts[2]}`);
    return bar;
  }

  return { paint, decode, makeColorBar };
})();
