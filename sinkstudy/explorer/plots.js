/* Plots as SVG, drawn here: a plotting library would take longer to open than the whole page. All text goes in as
   text. What is drawn replaces what an element showed before. */

const Plots = {
  CIVIDIS: ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"]
    .map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16))),

  /* Red, green and blue of a share from 0 to 1. */
  colour(share) {
    const place = Math.max(0, Math.min(1, share)) * (Plots.CIVIDIS.length - 1);
    const [low, high] = [Plots.CIVIDIS[Math.floor(place)], Plots.CIVIDIS[Math.ceil(place)]];
    return low.map((value, i) => Math.round(value + (high[i] - value) * (place % 1)));
  },

  node(name, attributes, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  },

  text(x, y, text, anchor = "middle", more = {}) {
    return Plots.node("text", { x, y, "text-anchor": anchor, ...more }, text);
  },

  /* An empty drawing as large as the element, with `left`, `right`, `top` and `bottom` of its plot. */
  begin(element, label, margin) {
    const [width, height] = [element.clientWidth, element.clientHeight];
    const svg = Plots.node("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    element.replaceChildren(svg);
    return { svg, left: margin.left, right: width - margin.right, top: margin.top, bottom: height - margin.bottom };
  },

  /* What XML cannot hold and no one can see as a box. */
  printable(text) {
    return text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "□");
  },

  /* A token as a short label with its white space shown. */
  label(token) {
    const shown = Plots.printable(token.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥"));
    return shown.length > 12 ? shown.slice(0, 11) + "…" : shown;
  },

  /* Every how many of `count` labels are shown where `room` pixels are for all, and one needs `each`. */
  every(count, room, each) {
    return Math.max(1, Math.ceil((count * each) / Math.max(room, 1)));
  },

  axes(plot, xTitle, yTitle) {
    const { svg, left, right, top, bottom } = plot;
    const middle = (top + bottom) / 2;
    svg.append(Plots.text((left + right) / 2, svg.viewBox.baseVal.height - 6, xTitle),
      Plots.text(0, 0, yTitle, "middle", { transform: `translate(12 ${middle}) rotate(-90)` }));
  },

  /* `share` from 0 to 1 by `ticks`, [share, label] pairs, as a bar right of the plot. */
  scale({ svg, right, top, bottom }, ticks) {
    const steps = 40, height = (bottom - top) / steps;
    for (let i = 0; i < steps; i++) {
      svg.append(Plots.node("rect", { x: right + 14, y: bottom - (i + 1) * height, width: 11, height: height + 0.5,
        fill: `rgb(${Plots.colour(i / (steps - 1))})` }));
    }
    for (const [share, label] of ticks) {
      svg.append(Plots.text(right + 29, bottom - share * (bottom - top) + 4, label, "start", { class: "scale" }));
    }
  },

  /* Layers by heads. `shares`: colour by cell, null where unknown; `dots` and `later`: whether a cell bears a dot or
     a triangle. */
  heads(element, model, shares, { dots, later, selected, label, ticks }) {
    const [layers, heads] = [model.layers.length, model.heads];
    const plot = Plots.begin(element, label, { left: 50, right: 88, top: 6, bottom: 44 });
    const { svg, left, right, top, bottom } = plot;
    const [width, height] = [(right - left) / heads, (bottom - top) / layers];
    const gap = Math.min(width, height) > 6 ? 1 : 0;
    const place = (cell) => [left + (cell % heads) * width, top + Math.floor(cell / heads) * height];
    const size = Math.max(1.2, Math.min(5, Math.min(width, height) / 4));
    shares.forEach((share, cell) => {
      const [x, y] = place(cell);
      svg.append(Plots.node("rect", { x, y, width: width - gap, height: height - gap, "data-cell": cell,
        ...(share === null ? { class: "cell unknown" } : { class: "cell", fill: `rgb(${Plots.colour(share)})` }) }));
    });
    shares.forEach((_, cell) => {
      const [cx, cy] = [place(cell)[0] + width / 2, place(cell)[1] + height / 2];
      const mark = { "data-marked": cell, "pointer-events": "none" };
      if (dots[cell]) svg.append(Plots.node("circle", { class: "mark", cx, cy, r: size, ...mark }));
      if (later[cell]) {
        const [low, half] = [cy + size, size * 1.2];
        svg.append(Plots.node("path", { class: "mark", d: `M${cx - half} ${low}h${2 * half}l${-half} ${-2 * size}z`, ...mark }));
      }
    });
    const [x, y] = place(selected);
    svg.append(Plots.node("rect", { class: "frame", x, y, width: width - gap, height: height - gap, "pointer-events": "none" }));
    const [across, down] = [Plots.every(heads, right - left, 22), Plots.every(layers, bottom - top, 15)];
    for (let head = 0; head < heads; head += across) svg.append(Plots.text(place(head)[0] + width / 2, bottom + 16, head));
    for (let row = 0; row < layers; row += down) {
      svg.append(Plots.text(left - 6, top + (row + 0.5) * height + 4, model.layers[row], "end"));
    }
    Plots.axes(plot, "head", "layer");
    Plots.scale(plot, ticks);
  },

  /* Values over length, logarithmic, from 0 to `most`. `series`: [class, values, name]; `at`: the marked stop of the
     first; `limit`: a line across; `shaded`: lengths up to this one. */
  lines(element, lengths, series, { most, at, limit, shaded, title, label }) {
    const plot = Plots.begin(element, label, { left: 50, right: 12, top: 22, bottom: 44 });
    const { svg, left, right, top, bottom } = plot;
    const last = Math.log(Math.max(lengths[lengths.length - 1], 2));
    const x = (n) => left + (Math.log(n) / last) * (right - left);
    const y = (value) => bottom - (value / most) * (bottom - top);
    if (shaded) svg.append(Plots.node("rect", { class: "shade", x: left, y: top, width: x(shaded) - left + 1, height: bottom - top }));
    for (let i = 0; i <= 4; i++) {
      svg.append(Plots.node("path", { class: "rule", d: `M${left} ${y((most * i) / 4)}H${right}` }),
        Plots.text(left - 6, y((most * i) / 4) + 4, (most * i) / 4, "end"));
    }
    let free = -Infinity;
    for (const n of [1, 2, 5, 10, 24, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]) {
      if (Math.log(n) > last || x(n) < free) continue;
      svg.append(Plots.text(x(n), bottom + 16, n));
      free = x(n) + 30;
    }
    if (limit !== undefined) svg.append(Plots.node("path", { class: "limit", d: `M${left} ${y(limit)}H${right}` }));
    let key = left;
    for (const [kind, values, name] of series) {
      const points = values.map((value, i) => (Number.isNaN(value) ? "" : `${x(lengths[i]).toFixed(1)} ${y(value).toFixed(1)}`));
      if (points.length) svg.append(Plots.node("path", { class: kind, d: `M${points.filter(Boolean).join("L")}` }));
      if (!name) continue;
      svg.append(Plots.node("path", { class: kind, d: `M${key} 10h18` }), Plots.text(key + 23, 14, name, "start"));
      key += 34 + 6.4 * name.length;
    }
    svg.append(Plots.node("circle", { class: "at", cx: x(lengths[at]), cy: y(series[0][1][at]), r: 5 }));
    Plots.axes(plot, "prompt length (tokens)", title);
  },

  /* A map, query by key, null above the diagonal; `names` labels its rows and columns. */
  attention(element, map, names, label) {
    const plot = Plots.begin(element, label, { left: 92, right: 60, top: 6, bottom: 96 });
    const side = map.length;
    const room = Math.max(10, Math.min(plot.right - plot.left, plot.bottom - plot.top));
    plot.right = plot.left + room;
    plot.bottom = plot.top + room;
    const { svg, left, top, bottom } = plot;
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = side;
    const pixels = new ImageData(side, side);
    map.forEach((row, query) => row.forEach((value, key) => {
      if (value !== null) pixels.data.set([...Plots.colour(value), 255], 4 * (query * side + key));
    }));
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    svg.append(Plots.node("image", { x: left, y: top, width: room, height: room, href: canvas.toDataURL(),
      style: "image-rendering: pixelated", preserveAspectRatio: "none" }));
    const every = Plots.every(side, room, 12), step = room / side;
    const [columns, rows] = [Plots.node("g", { class: "xtick" }), Plots.node("g", { class: "ytick" })];
    for (let i = 0; i < side; i += every) {
      const middle = (i + 0.5) * step;
      rows.append(Plots.text(left - 5, top + middle + 4, names[i], "end"));
      columns.append(Plots.text(0, 0, names[i], "end", { transform: `translate(${left + middle + 4} ${bottom + 6}) rotate(-90)` }));
    }
    svg.append(rows, columns);
    Plots.scale(plot, [[0, "0"], [0.5, "0.5"], [1, "1"]]);
    svg.append(Plots.text(left - 5, bottom + 16, "query ↑ key →", "end", { class: "corner" }));
  },
};
