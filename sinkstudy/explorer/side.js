/* One model on one prompt, or on all: what a section of the page shows. Text of prompts is only ever inserted as text. */

const SINK_POSITION = 0.3; // mean attention received from which a position is called a sink, as in the tables

const Format = {
  decimals: (value) => (Number.isNaN(value) ? "undefined" : (Math.round(value * 1000) / 1000 + 0).toFixed(3)),
  // Ties to even, as the findings print them.
  twoDecimals: new Intl.NumberFormat("en-US", {
    minimumFractionDigits: 2, maximumFractionDigits: 2, roundingMode: "halfEven",
  }),
  percent: (value) => (Number.isNaN(value) ? "undefined" : `${Format.twoDecimals.format(100 * value)}%`),
  digits: (value) => (value === null || Number.isNaN(value) ? NaN : Number(value.toPrecision(9))), // as the tables print
  short: (value) => (value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)))),
};

class Side {
  /* `bytes(name)`: a promise of an unpacked pack. `state`: what is chosen, which all sides share. */
  constructor(study, state, bytes, suffix) {
    Object.assign(this, { study, state, bytes, suffix, hovered: null });
  }

  $(id) {
    return document.getElementById(id + this.suffix);
  }
  say(id, text) {
    this.$(id).textContent = text;
  }

  async load(model) {
    const { study, state } = this;
    this.model = model;
    this.layers = model.layers.length;
    const list = state.prompt === "all" ? model.prompts : [model.prompts.find((p) => p.id === state.prompt) ?? model.prompts[0]];
    this.prompts = await Promise.all(list.map(async (prompt) => {
      prompt.values ??= Sinks.scores(await this.bytes(prompt.scores), prompt.type, prompt.lengths, study.scoreSteps);
      prompt.perHead ??= new Float32Array((await this.bytes(prompt.ofHeads)).buffer);
      return prompt;
    }));
    this.single = state.prompt === "all" ? null : this.prompts[0];
    if (this.single?.maps) this.mapBytes = await this.bytes(this.single.maps);
    if (this.single?.positions) this.positionBytes = await this.bytes(this.single.positions);
    this.lengths = this.prompts.reduce((a, b) => (b.lengths.length > a.length ? b.lengths : a), []);
    this.nulls = this.lengths.map(Sinks.nullScore);
    this.everywhere = this.lengths.map((_, i) => this.scoresAt(i));
    this.fractionsAt = null;
    const ids = (count, names) => [...Array(count).keys()].map((i) => new Option(names[i], names[i]));
    this.$("layer").replaceChildren(...ids(this.layers, model.layers));
    this.$("head").replaceChildren(...ids(model.heads, [...Array(model.heads).keys()]));
    this.showTokens();
  }

  /* Per prompt that has the i-th length, the scores of all its heads there. */
  scoresAt(i) {
    return this.prompts.filter((p) => p.lengths[i] === this.lengths[i]).map((p) =>
      Float64Array.from({ length: p.values.length / p.lengths.length }, (_, cell) => p.values[cell * p.lengths.length + i]));
  }

  /* Mean over prompts of the first (output norm) or second (value drain) number per head; NaN where none has it. */
  perHead(which) {
    const cells = this.layers * this.model.heads;
    return Array.from({ length: cells }, (_, cell) => {
      const known = this.prompts.map((p) => p.perHead[which * cells + cell]).filter((value) => !Number.isNaN(value));
      return known.length ? known.reduce((a, b) => a + b) / known.length : NaN;
    });
  }

  /* Whether a plan replaces each head; one that decides by the first layer does so at this length. */
  replaced(plan) {
    const { heads } = this.model;
    return this.scores.map((_, cell) => (plan.firstLayer === null ? plan.cells.includes(cell)
      : cell >= heads && this.scores[cell % heads] >= plan.firstLayer));
  }

  /* What colours the heads: a value per cell (NaN where there is none), and what it is called. */
  measure(colour) {
    const [kind, name] = colour.split(":");
    const none = this.scores.map(() => NaN);
    return {
      score: () => ({ name: "sink score", values: this.scores, range: [0, 1] }),
      excess: () => ({ name: "excess score", values: this.excess, range: [0, 1] }),
      norm: () => ({ name: "output norm", values: this.perHead(0) }),
      drain: () => ({ name: "value drain", values: this.perHead(1) }),
      cost: () => ({ name: `cost of ${name} (KL, nats per token)`, values: this.model.costs[name] ?? none, log: true }),
      plan: () => {
        const plan = this.model.plans.find(({ policy }) => policy === name);
        return { name: `plan ${name}`, values: plan ? this.replaced(plan).map(Number) : none, range: [0, 1], ends: ["kept", "replaced"] };
      },
    }[kind]();
  }

  get cell() {
    const { layer, head } = this.state;
    return Math.max(0, this.model.layers.indexOf(layer)) * this.model.heads + Math.min(head, this.model.heads - 1);
  }
  headName(cell) {
    return `layer ${this.model.layers[Math.floor(cell / this.model.heads)]}, head ${cell % this.model.heads}`;
  }

  /* Everything that follows from the state; drawing comes after, because sides share the range of colours. */
  compute() {
    this.at = Math.max(0, this.lengths.findLastIndex((n) => n <= this.state.length));
    this.k = this.lengths[this.at];
    this.null = this.nulls[this.at];
    this.parts = this.everywhere[this.at];
    const { parts } = this;
    this.scores = Array.from(parts[0], (_, cell) => parts.reduce((sum, scores) => sum + scores[cell], 0) / parts.length);
    this.excess = this.scores.map((score) => Sinks.excess(score, this.null));
    this.isSink = this.scores.map((score) => score >= this.state.threshold);
    this.measured = this.measure(this.state.colour);
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

  /* What each token receives or, while one is held, the attention of each later token to that one. */
  received() {
    const { single, study, k, state } = this;
    const n = single.tokens.length;
    const held = this.hovered ?? state.token;
    const cells = state.of === "all" ? [...this.scores.keys()] : [this.cell];
    const sides = Math.ceil(n / study.block);
    if (held !== null && held < k && single.maps) {
      const block = (i) => Math.floor(i / study.block);
      const values = single.tokens.map((_, query) => (query < held || query >= k ? NaN : cells.reduce((sum, cell) =>
        sum + Sinks.cell(this.mapBytes, cell, sides, block(query), block(held), study.mapSteps), 0) / cells.length));
      return { values, held };
    }
    if (single.maps && study.block === 1) return { values: Sinks.receivedInMaps(this.mapBytes, cells, sides, k, study.mapSteps), n: k };
    if (!single.positions) return { values: [], n: k };
    return { values: Sinks.receivedStored(this.positionBytes, cells, n, study.positionBlock, study.positionSteps), n };
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

  /* Whether the token that receives most of a head, over the whole prompt, is a sink other than the first. */
  elsewhere(cell) {
    const receiver = this.single?.receivers?.[cell];
    return Boolean(receiver && receiver[0] > 0 && receiver[1] >= SINK_POSITION);
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

  /* By panel: the element with its drawing, what the files are called, and its numbers as [header, rows]. */
  panels() {
    const about = ["model", "prompt", "n_tokens"];
    const of = () => [this.model.name, this.single?.id ?? "all", this.k];
    const { digits } = Format;
    const heads = (cell) => [this.model.layers[Math.floor(cell / this.model.heads)], cell % this.model.heads];
    return {
      "heads-panel": ["heads-map", "heads", () => [
        [...about, "threshold", "layer", "head", "sink_score", "null_score", "excess_score", "is_sink", this.measured.name,
          "strongest_position", "strongest_attention"],
        this.scores.map((score, cell) => [...of(), this.state.threshold, ...heads(cell), digits(score), digits(this.null),
          digits(this.excess[cell]), this.isSink[cell] ? "True" : "False", digits(this.measured.values[cell]),
          ...(this.single?.receivers?.[cell] ?? [null, null])]),
      ]],
      "token-panel": ["tokens", "tokens", () => [
        [...about, "layer", "head", "attends_to", "position", "token", "attention", "is_sink"],
        (this.single?.tokens ?? []).map((token, i) => [...of(), ...(this.state.of === "all" ? ["all", "all"] : heads(this.cell)),
          this.receivedNow.held ?? null, i, token, digits(this.receivedNow.values[i] ?? null),
          this.sinkTokens.includes(i) ? "True" : "False"]),
      ]],
      "map-panel": ["map-plot", "map", () => [
        [...about, "block", "layer", "head", "query", "key", "attention"],
        (this.map ?? []).flatMap((row, query) => row.slice(0, query + 1).map((value, key) =>
          [...of(), this.study.block, ...heads(this.cell), query, key, digits(value)])),
      ]],
      "percent-panel": ["percent-plot", "lengths", () => [
        ["model", "prompt", "n_tokens", "threshold", "sink_fraction", "null_score"],
        this.lengths.map((n, i) => [this.model.name, this.single?.id ?? "all", n, this.state.threshold,
          digits(this.fractions[i]), digits(this.nulls[i])]),
      ]],
      "curve-panel": ["head-plot", "head", () => [
        ["model", "prompt", "n_tokens", "layer", "head", "sink_score", "null_score"],
        this.lengths.map((n, i) => [this.model.name, this.single?.id ?? "all", n, ...heads(this.cell), digits(this.curve[i]),
          digits(this.nulls[i])]),
      ]],
      "head-panel": [null, "numbers", () => [["what", "value"], Object.entries(this.rows)]],
    };
  }

  /* Buttons to save each panel, and what clicks, keys and the pointer do in this section. `change(more)` sets the
     state, `redraw()` draws what follows from the pointer. */
  connect(change) {
    for (const [panel, [drawing, name, csv]] of Object.entries(this.panels())) {
      Export.buttons(this.$(panel), name, drawing !== null, () => {
        const whose = name === "tokens" ? [this.state.of === "all" ? "all heads" : this.headName(this.cell)] : [];
        const where = [...whose, this.model.name, this.single?.id ?? "all", `${this.k} tokens`];
        const element = drawing && this.$(drawing);
        return {
          name: [this.model.name, this.single?.id ?? "all", this.k, name].join("_").replace(/[^\w.-]/g, "-"),
          title: `${this.$(panel).querySelector("figcaption > span").textContent.trim().replace(/\s+/g, " ")} (${where.join(", ")})`,
          drawing: () => element.querySelector("svg") ?? Export.tokens(element),
          csv: csv(),
        };
      });
    }
    this.$("layer").onchange = (event) => change({ layer: Number(event.target.value) });
    this.$("head").onchange = (event) => change({ head: Number(event.target.value) });
    this.$("of").onchange = (event) => change({ of: event.target.value });
    const cellOf = (event) => event.target.dataset?.cell;
    const toCell = (cell) => change({ layer: this.model.layers[Math.floor(cell / this.model.heads)], head: cell % this.model.heads });
    const map = this.$("heads-map");
    map.onclick = (event) => cellOf(event) !== undefined && toCell(Number(cellOf(event)));
    map.onmouseover = (event) => this.noteHead(Number(cellOf(event) ?? this.cell));
    map.onmouseleave = () => this.noteHead(this.cell);
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    map.onkeydown = (event) => {
      if (!(event.key in steps)) return;
      event.preventDefault();
      const [dl, dh] = steps[event.key];
      const { heads } = this.model;
      const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));
      toCell(clamp(Math.floor(this.cell / heads) + dl, this.layers) * heads + clamp((this.cell % heads) + dh, heads));
    };
    const tokens = this.$("tokens");
    const place = (event) => [...tokens.children].indexOf(event.target);
    const point = (i) => {
      this.hovered = i;
      this.drawTokens();
    };
    for (const kind of ["mouseover", "focusin"]) tokens.addEventListener(kind, (event) => place(event) >= 0 && point(place(event)));
    tokens.onmouseleave = () => point(null);
    tokens.addEventListener("focusout", () => point(null));
    const hold = (i) => change({ token: this.state.token === i ? null : i });
    tokens.onclick = (event) => place(event) >= 0 && hold(place(event));
    tokens.onkeydown = (event) => {
      const at = place(event);
      if (event.key === "Enter" || event.key === " ") hold(at);
      else if (event.key in steps) {
        const next = tokens.children[at + Math.sign(steps[event.key][0] + steps[event.key][1])];
        if (next) {
          event.target.tabIndex = -1;
          next.tabIndex = 0;
          next.focus();
        }
      } else return;
      event.preventDefault();
    };
    this.$("map-plot").onmousemove = (event) => {
      const image = this.$("map-plot").querySelector("image")?.getBoundingClientRect();
      if (!image || !this.map) return;
      const [key, query] = [(event.clientX - image.left) / image.width, (event.clientY - image.top) / image.height]
        .map((share) => Math.floor(share * this.map.length));
      const value = this.map[query]?.[key];
      const { block } = this.study;
      const name = (i) => (block > 1 ? `tokens from ${i * block + 1}` : `token ${i + 1}, ${JSON.stringify(this.single.tokens[i])}`);
      if (value !== undefined && value !== null) this.say("map-note", `Query ${name(query)} to key ${name(key)}: ${Format.decimals(value)}.`);
    };
  }
}
