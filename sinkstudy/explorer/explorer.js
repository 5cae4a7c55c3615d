/* The state of the page and its display. Text of prompts is only ever inserted as text, never as HTML. */

(async () => {
  const $ = (id) => document.getElementById(id);
  const study = JSON.parse($("study").textContent);
  const FIRST_LENGTH = 24; // initial position of the length slider
  const chosen = { model: study.models[0], prompt: 0, at: 0, threshold: study.threshold, cell: 0 };
  let prompts = []; // the chosen prompts with their scores: one, or all of the model
  let lengths = []; // the stops of the length slider
  let nulls = [];

  /* Scores and maps are unpacked when first needed. */
  const unpacked = new Map();
  async function bytes(name) {
    if (!unpacked.has(name)) unpacked.set(name, await Sinks.unpack($(name).textContent));
    return unpacked.get(name);
  }
  async function withScores(prompt) {
    prompt.values ??= Sinks.scores(await bytes(prompt.scores), prompt.type, prompt.lengths, study.scoreSteps);
    return prompt;
  }

  /* Per prompt that has the i-th length, the scores of all its heads there. */
  function scoresAt(i) {
    return prompts.filter((p) => p.lengths[i] === lengths[i]).map((p) => {
      const cells = p.values.length / p.lengths.length;
      return Float64Array.from({ length: cells }, (_, cell) => p.values[cell * p.lengths.length + i]);
    });
  }
  function mean(parts, cell) {
    return parts.reduce((sum, scores) => sum + scores[cell], 0) / parts.length;
  }

  function fill(select, names) {
    select.replaceChildren(...names.map((name, i) => new Option(name, i)));
  }
  function say(id, text) {
    $(id).textContent = text;
  }
  const decimals = (value) => (Number.isNaN(value) ? "undefined" : (Math.round(value * 1000) / 1000 + 0).toFixed(3));
  // Ties to even, as the findings print them.
  const twoDecimals = new Intl.NumberFormat("en-US", {
    minimumFractionDigits: 2, maximumFractionDigits: 2, roundingMode: "halfEven",
  });
  const percent = (value) => (Number.isNaN(value) ? "undefined" : `${twoDecimals.format(100 * value)}%`);
  const digits = (value) => String(Number(value.toPrecision(9))); // as the tables print

  function chooseModel(index) {
    const model = (chosen.model = study.models[index]);
    const groups = new Map();
    model.prompts.forEach((prompt, i) => {
      if (!groups.has(prompt.set)) groups.set(prompt.set, []);
      groups.get(prompt.set).push(new Option(`${prompt.id} (${prompt.tokens.length})`, i));
    });
    const kept = $("prompt").value || String(model.prompts.findLastIndex((p) => p.maps));
    $("prompt").replaceChildren(...[...groups].map(([set, options]) => {
      const group = document.createElement("optgroup");
      group.label = set;
      group.append(...options);
      return group;
    }), new Option(`all ${model.prompts.length} prompts`, "all"));
    if (model.prompts[kept] || kept === "all") $("prompt").value = kept;
    fill($("layer"), model.layers.map(String));
    fill($("head"), [...Array(model.heads).keys()].map(String));
    chosen.cell = Math.min(chosen.cell, model.layers.length * model.heads - 1);
    return choosePrompt($("prompt").value);
  }

  async function choosePrompt(value) {
    const wanted = lengths[chosen.at] ?? FIRST_LENGTH;
    chosen.prompt = value === "all" ? "all" : Number(value);
    const list = value === "all" ? chosen.model.prompts : [chosen.model.prompts[chosen.prompt]];
    prompts = await Promise.all(list.map(withScores));
    lengths = prompts.reduce((a, b) => (b.lengths.length > a.length ? b.lengths : a), []);
    nulls = lengths.map(Sinks.nullScore);
    $("length").max = lengths.length - 1;
    chosen.at = Math.max(0, lengths.findLastIndex((n) => n <= wanted));
    $("length").value = chosen.at;
    showTokens();
    return show();
  }

  function showTokens() {
    const tokens = chosen.prompt === "all" ? [] : prompts[0].tokens;
    $("tokens").replaceChildren(...tokens.map((token, i) => {
      const span = document.createElement("span");
      span.textContent = token;
      span.title = `token ${i + 1}`;
      span.onclick = () => setLength(lengths.findLastIndex((n) => n <= i + 1));
      return span;
    }));
  }

  function setLength(at) {
    chosen.at = at;
    $("length").value = at;
    show();
  }

  let drawn = Promise.resolve();
  let waiting = false;
  /* Draw at the next frame; several changes before it are drawn once. */
  function show() {
    if (!waiting) {
      waiting = true;
      drawn = new Promise((done) => requestAnimationFrame(() => {
        waiting = false;
        draw().then(done);
      }));
    }
    return drawn;
  }

  async function draw() {
    const { model, at, threshold, cell } = chosen;
    const [layers, heads] = [model.layers.length, model.heads];
    const k = lengths[at];
    const nullScore = nulls[at];
    const parts = scoresAt(at);
    const now = Sinks.summary(parts, layers, heads, threshold);
    const scores = Array.from({ length: layers * heads }, (_, c) => mean(parts, c));
    const excess = scores.map((score) => Sinks.excess(score, nullScore));
    const isSink = scores.map((score) => score >= threshold);

    say("length-value", `${k} of ${lengths[lengths.length - 1]} tokens`);
    say("threshold-value", String(threshold));
    $("length").setAttribute("aria-valuetext", `${k} tokens`);
    $("threshold").setAttribute("aria-valuetext", String(threshold));
    [...$("tokens").children].forEach((span, i) => span.classList.toggle("beyond", i >= k));

    say("sink-percent", percent(now.fraction));
    $("sink-percent").dataset.fraction = digits(now.fraction);
    say("sink-count", `${now.sinks} of ${now.cells} heads${parts.length > 1 ? ` of ${parts.length} prompts` : ""}: `
      + `${digits(100 * now.fraction)}%`);
    say("correlation", percent(now.correlation));
    $("correlation").dataset.value = digits(now.correlation);
    const lift = now.correlation / now.base;
    say("correlation-note", now.first
      ? `of ${now.first} first-layer sink${now.first > 1 ? "s" : ""}; base rate ${percent(now.base)}, lift ${decimals(lift)}`
      : "no head of the first layer is a sink");
    say("null", decimals(nullScore));
    say("null-note", nullScore >= threshold ? "passes the threshold by itself: no evidence at this length"
      : `below the threshold; mean score of the model ${decimals(now.mean)}`);
    say("excess", decimals(Sinks.excess(now.mean, nullScore)));
    say("excess-note", k === 1 ? "one token can only attend to itself" : "0: uniform attention, 1: perfect sinks");

    const name = (c) => `layer ${model.layers[Math.floor(c / heads)]}, head ${c % heads}`;
    const texts = scores.map((score, c) => `${name(c)}<br>score ${decimals(score)}<br>excess ${decimals(excess[c])}`
      + `<br>${isSink[c] ? "sink" : "no sink"}`);
    Plots.heads($("score-map"), model, scores, isSink, texts, cell);
    Plots.heads($("excess-map"), model, excess, isSink, texts, cell);

    const everywhere = lengths.map((_, i) => scoresAt(i));
    const fractions = everywhere.map((p) => 100 * Sinks.summary(p, layers, heads, threshold).fraction);
    Plots.percentages($("percent-plot"), lengths, fractions, nulls.map((value) => value >= threshold), at);
    Plots.curve($("head-plot"), lengths, everywhere.map((p) => mean(p, cell)), nulls, threshold, at);

    document.querySelectorAll(".head-name").forEach((e) => (e.textContent = name(cell).replace("l", "L")));
    $("layer").value = Math.floor(cell / heads);
    $("head").value = cell % heads;
    const rows = {
      "sink score": decimals(scores[cell]), "uniform attention": decimals(nullScore),
      "excess score": decimals(excess[cell]), [`sink at ${threshold}`]: isSink[cell] ? "yes" : "no",
      ...(parts.length > 1 && {
        "prompts in which it is one": `${parts.filter((p) => p[cell] >= threshold).length} of ${parts.length}`,
      }),
    };
    const receiver = chosen.prompt !== "all" && prompts[0].receivers?.[cell];
    if (receiver) {
      const [position, attention] = receiver;
      rows["receives most in the whole prompt"] = `token ${position + 1}, ${JSON.stringify(prompts[0].tokens[position])}: `
        + decimals(attention);
    }
    $("head-numbers").replaceChildren(...Object.entries(rows).map(([what, value]) => {
      const row = document.createElement("tr");
      const header = document.createElement("th");
      header.scope = "row";
      header.textContent = what;
      row.append(header);
      row.insertCell().textContent = value;
      return row;
    }));
    await drawMap();
    const prompt = chosen.prompt === "all" ? "all" : prompts[0].id;
    document.body.dataset.shown = [model.name, prompt, k, threshold, name(cell)].join("; "); // tests wait for this
  }

  async function drawMap() {
    const prompt = chosen.prompt === "all" ? null : prompts[0];
    const missing = !prompt ? "Choose a single prompt to see the map." : !prompt.maps
      ? "No map is stored of a prompt this long (capture.maps_max_tokens); the curve above is exact all the same." : "";
    const wasHidden = $("map-plot").hidden;
    $("map-plot").hidden = Boolean(missing);
    say("map-note", missing);
    if (missing) return;
    const { block } = study;
    const sides = Math.ceil(prompt.tokens.length / block);
    const side = Math.ceil(lengths[chosen.at] / block);
    const map = Sinks.map(await bytes(prompt.maps), chosen.cell, sides, side, study.mapSteps);
    const names = block === 1 ? prompt.tokens.slice(0, side).map(Plots.label)
      : Array.from({ length: side }, (_, i) => `${i * block + 1} to ${Math.min((i + 1) * block, prompt.tokens.length)}`);
    Plots.attention($("map-plot"), map, names);
    if (wasHidden) Plotly.Plots.resize($("map-plot")); // the window may have been resized while it was hidden
    if (block > 1) say("map-note", `Averages over blocks of ${block} × ${block} tokens.`);
  }

  function precision() {
    const step = 1 / (2 * study.scoreSteps);
    const thin = study.dense === null ? "" : ` Of prompts longer than ${study.dense} tokens, ${study.dense / 4} lengths per doubling beyond `
      + "that are kept.";
    const coarse = study.block === 1 ? "" : `, averaged over blocks of ${study.block} × ${study.block} tokens`;
    say("precision", "Scores are quantised: within " + step.toExponential(0) + " divided by the length of those in the "
      + "tables. Rounding never changes whether a head is a sink, at any stop of the threshold slider, so the "
      + `percentages are those of the tables.${thin} Maps are rounded to ${study.mapSteps} steps of the square root${coarse}. `
      + "Models: " + study.models.map((m) => `${m.name} (${m.origin})`).join("; ") + ".");
  }

  fill($("model"), study.models.map((model) => model.name));
  $("threshold").max = study.thresholds.length - 1;
  $("threshold").value = study.thresholds.indexOf(study.threshold);
  precision();

  $("controls").onsubmit = (event) => event.preventDefault();
  $("model").onchange = (event) => chooseModel(event.target.value);
  $("prompt").onchange = (event) => choosePrompt(event.target.value);
  $("length").oninput = (event) => setLength(Number(event.target.value));
  $("threshold").oninput = (event) => {
    chosen.threshold = study.thresholds[event.target.value];
    show();
  };
  function select(layer, head) {
    const { heads, layers } = chosen.model;
    const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));
    chosen.cell = clamp(layer, layers.length) * heads + clamp(head, heads);
    return show();
  }
  $("layer").onchange = (event) => select(Number(event.target.value), chosen.cell % chosen.model.heads);
  $("head").onchange = (event) => select(Math.floor(chosen.cell / chosen.model.heads), Number(event.target.value));
  const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  $("heatmaps").onkeydown = (event) => {
    if (!(event.key in STEPS)) return;
    event.preventDefault();
    const [dl, dh] = STEPS[event.key];
    select(Math.floor(chosen.cell / chosen.model.heads) + dl, (chosen.cell % chosen.model.heads) + dh);
  };

  await chooseModel(0);
  const first = scoresAt(chosen.at)[0];
  chosen.cell = first.indexOf(Math.max(...first)); // the strongest head
  await show();
  for (const id of ["score-map", "excess-map"]) {
    $(id).on("plotly_click", ({ points }) => select(points[0].y, points[0].x));
  }
})();
