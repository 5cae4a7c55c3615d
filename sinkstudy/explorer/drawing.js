/* What a section of the page shows. Text of prompts is only ever inserted as text. */

class DrawnSide extends Side {
  /* `suffix`: what the ids of its elements end in. */
  constructor(study, state, bytes, suffix) {
    super(study, state, bytes);
    this.suffix = suffix;
  }

  $(id) {
    return document.getElementById(id + this.suffix);
  }
  say(id, text) {
    this.$(id).textContent = text;
  }

  async load(model) {
    await super.load(model);
    const ids = (count, names) => [...Array(count).keys()].map((i) => new Option(names[i], names[i]));
    this.$("layer").replaceChildren(...ids(this.layers, model.layers));
    this.$("head").replaceChildren(...ids(model.heads, [...Array(model.heads).keys()]));
    this.showTokens();
  }

  draw(range) {
    this.drawNumbers();
    this.drawTokens();
    this.drawHeads(range);
    this.drawMap();
    this.drawCurves();
    this.drawHead();
  }

  drawNumbers() {
    const { state, k, parts } = this;
    const now = Sinks.summary(parts, this.layers, this.model.heads, state.threshold);
    this.say("model-name", this.model.name);
    this.$("side").setAttribute("aria-label", this.model.name);
    this.say("sink-percent", Format.percent(now.fraction));
    this.$("sink-percent").dataset.fraction = String(Format.digits(now.fraction));
    this.say("sink-count", `${now.sinks} of ${now.cells} heads${parts.length > 1 ? ` of ${parts.length} prompts` : ""}: `
      + `${Format.digits(100 * now.fraction)}%`);
    this.say("correlation", Format.percent(now.correlation));
    this.$("correlation").dataset.value = String(Format.digits(now.correlation));
    const lift = now.correlation / now.base;
    this.say("correlation-note", now.first
      ? `of ${now.first} first-layer sink${now.first > 1 ? "s" : ""}; base rate ${Format.percent(now.base)}, lift ${Format.decimals(lift)}`
      : "no head of the first layer is a sink");
    this.say("null", Format.decimals(this.null));
    this.say("null-note", this.null >= state.threshold ? "passes the threshold by itself: no evidence at this length"
      : `below the threshold; mean score of the model ${Format.decimals(now.mean)}`);
    this.say("excess", Format.decimals(Sinks.excess(now.mean, this.null)));
    this.say("excess-note", k === 1 ? "one token can only attend to itself" : "0: uniform attention, 1: perfect sinks");
  }

  /* Spans for the tokens of a single prompt; only one is in the order of the Tab key. */
  showTokens() {
    this.hovered = null;
    this.$("token-panel").hidden = !this.single;
    this.$("tokens").replaceChildren(...(this.single?.tokens ?? []).map((token, i) => {
      const span = document.createElement("span");
      span.textContent = token;
      span.setAttribute("role", "button");
      span.tabIndex = i === 0 ? 0 : -1;
      return span;
    }));
  }

  drawTokens() {
    const { single, state } = this;
    if (!single) return;
    const { values, held, n } = (this.receivedNow = this.received());
    const whose = state.of === "all" ? "all heads" : this.headName(this.cell);
    const eligible = held === undefined ? Sinks.candidates(n) : 0;
    const named = (i) => `token ${i + 1}, ${JSON.stringify(single.tokens[i])}`;
    const does = held === undefined ? "receives" : "gives it";
    const spans = this.$("tokens").children;
    this.sinkTokens = [];
    for (let i = 0; i < spans.length; i++) {
      const value = values[i] ?? NaN;
      const sink = i < eligible && value >= SINK_POSITION;
      if (sink) this.sinkTokens.push(i);
      spans[i].classList.toggle("beyond", i >= this.k);
      spans[i].classList.toggle("sink", sink);
      spans[i].style.setProperty("--received", Number.isNaN(value) ? 0 : Math.min(1, value).toFixed(4));
      spans[i].title = Number.isNaN(value) ? named(i) : `${named(i)}: ${does} ${Format.decimals(value)}`;
      spans[i].setAttribute("aria-label", spans[i].title + (sink ? ", a sink" : ""));
      spans[i].setAttribute("aria-pressed", String(i === state.token));
    }
    this.say("token-title", held === undefined ? "Attention that every token receives" : `Who attends to ${named(held)}`);
    const chosen = this.hovered ?? state.token;
    const value = chosen === null ? NaN : values[chosen] ?? NaN;
    const sinks = this.sinkTokens.slice(0, 4).map((i) => `${named(i)} (${Format.decimals(values[i])})`);
    this.say("token-note", held !== undefined
      ? `${whose[0].toUpperCase()}${whose.slice(1)}: the bar under a token is its attention to token ${held + 1}.`
      : chosen !== null && !Number.isNaN(value)
        ? `${named(chosen)} receives ${Format.decimals(value)} of ${whose}${single.maps ? "" : "; who attends to it was not stored of this prompt"}.`
        : !values.length ? "What tokens receive was not captured of this prompt."
        : (sinks.length ? `Sinks of ${whose}: ${sinks.join("; ")}${this.sinkTokens.length > 4 ? "; …" : ""}.`
          : `No token receives ${SINK_POSITION} or more of ${whose}.`)
          + (n !== this.k ? ` Means over the whole prompt of ${n} tokens.` : ""));
  }

  /* Share of the colour scale: `range` in values, logarithmic for costs. */
  share(value, [low, high]) {
    if (value === null || Number.isNaN(value)) return null;
    const scaled = this.measured.log ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low);
    return Number.isFinite(scaled) ? Math.max(0, Math.min(1, scaled)) : 0;
  }

  drawHeads([low, high]) {
    const { measured } = this;
    const { log, ends, name } = measured;
    const middle = log ? Math.sqrt(low * high) : (low + high) / 2;
    const ticks = ends ? [[0, ends[0]], [1, ends[1]]] : [[0, low], [0.5, middle], [1, high]].map(([s, v]) => [s, Format.short(v)]);
    this.say("heads-title", "");
    const small = document.createElement("small");
    small.textContent = "dots: sinks" + (this.single?.receivers ? "; triangles: at a later one" : "");
    const label = `${this.layers} layers by ${this.model.heads} heads, coloured by ${name}`;
    this.$("heads-title").append(`${name[0].toUpperCase()}${name.slice(1)} `, small);
    Plots.heads(this.$("heads-map"), this.model, measured.values.map((value) => this.share(value, [low, high])), {
      dots: this.isSink, later: this.scores.map((_, cell) => this.elsewhere(cell)), selected: this.cell, label, ticks,
    });
    this.noteHead(this.cell);
  }

  noteHead(cell) {
    const { measured } = this;
    const [position, attention] = this.single?.receivers?.[cell] ?? [];
    const value = measured.values[cell];
    this.say("heads-note", `${this.headName(cell)[0].toUpperCase()}${this.headName(cell).slice(1)}: score ${Format.decimals(this.scores[cell])}, `
      + `excess ${Format.decimals(this.excess[cell])}, ${this.isSink[cell] ? "a sink" : "no sink"}`
      + (["sink score", "excess score"].includes(measured.name) ? ""
        : `, ${measured.name} ${value === null || Number.isNaN(value) ? "unknown" : measured.ends ? measured.ends[value] : Format.short(value)}`)
      + (position > 0 ? `; most goes to token ${position + 1}, ${JSON.stringify(this.single.tokens[position])}: ${Format.decimals(attention)}` : "") + ".");
  }

  drawMap() {
    const { single, study } = this;
    const missing = !single ? "Choose a single prompt to see the map." : !single.maps
      ? "No map is stored of this prompt (capture.maps_max_tokens); the curve of the head is exact all the same." : "";
    this.$("map-plot").hidden = Boolean(missing);
    this.say("map-note", missing);
    this.map = null;
    if (missing) return;
    const { block } = study;
    const sides = Math.ceil(single.tokens.length / block);
    this.map = Sinks.map(this.mapBytes, this.cell, sides, Math.ceil(this.k / block), study.mapSteps);
    const names = this.map.map((_, i) => (block === 1 ? Plots.label(single.tokens[i])
      : `${i * block + 1} to ${Math.min((i + 1) * block, single.tokens.length)}`));
    Plots.attention(this.$("map-plot"), this.map, names, `Attention map of ${this.headName(this.cell)}, query by key`);
    if (block > 1) this.say("map-note", `Averages over blocks of ${block} × ${block} tokens.`);
  }

  drawCurves() {
    const { lengths, nulls, at, state, cell, model } = this;
    if (this.fractionsAt !== state.threshold) {
      this.fractionsAt = state.threshold;
      this.fractions = this.everywhere.map((parts) => Sinks.summary(parts, this.layers, model.heads, state.threshold).fraction);
    }
    this.curve = this.everywhere.map((parts) => parts.reduce((sum, scores) => sum + scores[cell], 0) / parts.length);
    const passed = nulls.findLastIndex((value) => value >= state.threshold);
    Plots.lines(this.$("percent-plot"), lengths, [["series", this.fractions.map((f) => 100 * f), ""]], {
      most: 100, at, shaded: lengths[passed], title: "sink heads (%)",
      label: `Share of sink heads at every length; ${Format.percent(this.fractions[at])} at ${this.k} tokens`,
    });
    Plots.lines(this.$("head-plot"), lengths, [
      ["series", this.curve, "score"], ["null", nulls, "uniform attention"], ["limit", [], "threshold"],
    ], {
      most: 1, at, limit: state.threshold, title: "sink score",
      label: `Sink score of ${this.headName(cell)} at every length; ${Format.decimals(this.curve[at])} at ${this.k} tokens`,
    });
  }

  drawHead() {
    const { cell, model, parts, state } = this;
    const name = this.headName(cell).replace("l", "L");
    this.$("side").querySelectorAll(".head-name").forEach((e) => (e.textContent = name));
    this.$("layer").value = model.layers[Math.floor(cell / model.heads)];
    this.$("head").value = cell % model.heads;
    this.$("of").value = state.of;
    const receiver = this.single?.receivers?.[cell];
    this.rows = {
      "sink score": Format.decimals(this.scores[cell]), "uniform attention": Format.decimals(this.null),
      "excess score": Format.decimals(this.excess[cell]), [`sink at ${state.threshold}`]: this.isSink[cell] ? "yes" : "no",
      ...(parts.length > 1 && {
        "prompts in which it is one": `${parts.filter((p) => p[cell] >= state.threshold).length} of ${parts.length}`,
      }),
      ...(receiver && {
        "receives most in the whole prompt": `token ${receiver[0] + 1}, ${JSON.stringify(this.single.tokens[receiver[0]])}: `
          + Format.decimals(receiver[1]),
      }),
      "output norm": Format.decimals(this.perHead(0)[cell]), "value drain": Format.decimals(this.perHead(1)[cell]),
      ...Object.fromEntries(Object.entries(model.costs).map(([strategy, costs]) => [
        `cost of ${strategy}`, costs[cell] === null ? "unknown" : `${Format.short(costs[cell])} nats per token`])),
      ...(model.plans.length && {
        "plans that replace it": model.plans.filter((plan) => this.replaced(plan)[cell]).map((p) => p.policy).join(", ") || "none",
      }),
    };
    this.$("head-numbers").replaceChildren(...Object.entries(this.rows).map(([what, value]) => {
      const row = document.createElement("tr");
      const header = document.createElement("th");
      header.scope = "row";
      header.textContent = what;
      row.append(header);
      row.insertCell().textContent = value;
      return row;
    }));
  }
}
