/* Plots. Plotly interprets some HTML in text, so all text from prompts is escaped by `plain`. */

const Plots = {
  NULL_LINE: { color: "black", width: 1.5, dash: "dot" },
  THRESHOLD_LINE: { color: "#b00020", width: 1.5 },
  CONFIG: { displayModeBar: false, responsive: true },

  plain(text) {
    return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  },

  /* A token as a short label with its white space shown. */
  label(token) {
    const shown = token.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/[\p{C}\p{Zl}\p{Zp}]/gu, "□");
    return Plots.plain(shown.length > 12 ? shown.slice(0, 11) + "…" : shown);
  },

  layout(more) {
    return {
      margin: { l: 52, r: 10, t: 8, b: 44 }, font: { size: 12, color: "#1b1f24", family: "system-ui, 'DejaVu Sans', sans-serif" }, dragmode: false,
      paper_bgcolor: "white", plot_bgcolor: "white", showlegend: false, hovermode: "closest", ...more,
    };
  },

  axis(title, more) {
    return { title: { text: title, standoff: 6 }, fixedrange: true, zeroline: false, gridcolor: "#e4e8ec", ...more };
  },

  /* At most `most` ticks at positions 0, 1, ..., labelled by `names`. */
  ticks(names, most) {
    const step = Math.ceil(names.length / most);
    const places = names.map((_, i) => i).filter((i) => i % step === 0);
    return { tickvals: places, ticktext: places.map((i) => names[i]) };
  },

  lengthAxis(last) {
    const marks = [1, 2, 5, 10, 24, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768].filter((n) => n <= last);
    return Plots.axis("prompt length (tokens)", {
      type: "log", range: [-0.02, Math.log10(Math.max(last, 2)) + 0.02], tickvals: marks, ticktext: marks.map(String),
    });
  },

  /* Layers by heads: values by cell, dots on the sinks, a frame around the selected head. */
  heads(element, model, values, isSink, texts, selected) {
    const heads = model.heads;
    const rows = model.layers.map((_, l) => Array.from(values.slice(l * heads, (l + 1) * heads)));
    const words = model.layers.map((_, l) => texts.slice(l * heads, (l + 1) * heads));
    const dots = isSink.flatMap((sink, cell) => (sink ? [cell] : []));
    const size = Math.max(3, Math.min(9, 120 / Math.max(heads, model.layers.length)));
    const [layer, head] = [Math.floor(selected / heads), selected % heads];
    Plotly.react(element, [
      {
        type: "heatmap", z: rows, text: words, hovertemplate: "%{text}<extra></extra>", colorscale: "Cividis",
        zmin: 0, zmax: 1, xgap: 1, ygap: 1, colorbar: { thickness: 12, outlinewidth: 0, nticks: 6 },
      },
      {
        type: "scatter", mode: "markers", hoverinfo: "skip", x: dots.map((cell) => cell % heads),
        y: dots.map((cell) => Math.floor(cell / heads)),
        marker: { color: "black", size, line: { color: "white", width: 1 } },
      },
    ], Plots.layout({
      xaxis: Plots.axis("head", { ...Plots.ticks([...Array(heads).keys()].map(String), 16), range: [-0.5, heads - 0.5] }),
      yaxis: Plots.axis("layer", {
        ...Plots.ticks(model.layers.map(String), 12), range: [model.layers.length - 0.5, -0.5],
      }),
      shapes: [{
        type: "rect", x0: head - 0.5, x1: head + 0.5, y0: layer - 0.5, y1: layer + 0.5,
        line: { color: "#d55e00", width: 3 },
      }],
    }), Plots.CONFIG);
  },

  /* Percentage of sinks over length, the current length marked, lengths pale where the null passes the threshold. */
  percentages(element, lengths, percent, nullPasses, at) {
    const passed = nullPasses.lastIndexOf(true);
    const shapes = passed < 0 ? [] : [{
      type: "rect", xref: "x", yref: "paper", x0: lengths[0], x1: lengths[passed], y0: 0, y1: 1, layer: "below",
      fillcolor: "#e4e8ec", line: { width: 0 },
    }];
    Plotly.react(element, [
      { x: lengths, y: percent, mode: "lines", line: { color: "#0072b2", width: 2 },
        hovertemplate: "%{x} tokens: %{y:.2f}%<extra></extra>" },
      { x: [lengths[at]], y: [percent[at]], mode: "markers", hoverinfo: "skip",
        marker: { color: "#d55e00", size: 10, line: { color: "white", width: 1.5 } } },
    ], Plots.layout({
      xaxis: Plots.lengthAxis(lengths[lengths.length - 1]),
      yaxis: Plots.axis("sink heads (% of all heads)", { range: [-2, 102] }), shapes,
    }), Plots.CONFIG);
  },

  /* One head's score over length beside the null and the threshold. */
  curve(element, lengths, scores, nulls, threshold, at) {
    const last = lengths[lengths.length - 1];
    const hovertemplate = "%{x} tokens: %{y:.3f}<extra></extra>";
    Plotly.react(element, [
      { x: [1, last], y: [threshold, threshold], mode: "lines", line: Plots.THRESHOLD_LINE, hoverinfo: "skip",
        name: "threshold" },
      { x: lengths, y: nulls, mode: "lines", line: Plots.NULL_LINE, hovertemplate, name: "uniform attention" },
      { x: lengths, y: scores, mode: "lines", line: { color: "#0072b2", width: 2 }, hovertemplate, name: "sink score" },
      { x: [lengths[at]], y: [scores[at]], mode: "markers", hoverinfo: "skip", showlegend: false,
        marker: { color: "#d55e00", size: 10, line: { color: "white", width: 1.5 } } },
    ], Plots.layout({
      xaxis: Plots.lengthAxis(last), yaxis: Plots.axis("sink score", { range: [-0.02, 1.04] }),
      showlegend: true, legend: { orientation: "h", y: -0.22, x: 0 }, margin: { l: 52, r: 10, t: 8, b: 70 },
    }), Plots.CONFIG);
  },

  /* A map, query by key; `names` labels its rows and columns. */
  attention(element, map, names) {
    const few = names.length <= 40;
    const ticks = few ? Plots.ticks(names, 40) : Plots.ticks(names, 12);
    Plotly.react(element, [{
      type: "heatmap", z: map, colorscale: "Cividis", zmin: 0, zmax: 1, colorbar: { thickness: 12, outlinewidth: 0 },
      hovertemplate: "query %{y}, key %{x}: %{z:.3f}<extra></extra>",
    }], Plots.layout({
      margin: { l: 90, r: 10, t: 8, b: 90 },
      xaxis: Plots.axis("key", { ...ticks, tickangle: 90, tickfont: { size: 10 }, showgrid: false, constrain: "domain" }),
      yaxis: Plots.axis("query", {
        ...ticks, autorange: "reversed", tickfont: { size: 10 }, showgrid: false, scaleanchor: "x", constrain: "domain",
      }),
    }), Plots.CONFIG);
  },
};
