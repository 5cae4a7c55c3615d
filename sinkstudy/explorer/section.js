/* What a section of the page does: saving its panels, and answering clicks, keys and the pointer. */

class Section extends DrawnSide {
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

  /* `change(more)` sets what is chosen. */
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
