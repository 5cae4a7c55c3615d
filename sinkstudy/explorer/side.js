/* One model on one prompt, or on all: the numbers that a section of the page shows. */

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
  constructor(study, state, bytes) {
    Object.assign(this, { study, state, bytes, hovered: null });
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

  /* Whether the token that receives most of a head, over the whole prompt, is a sink other than the first. */
  elsewhere(cell) {
    const receiver = this.single?.receivers?.[cell];
    return Boolean(receiver && receiver[0] > 0 && receiver[1] >= SINK_POSITION);
  }
}
