/* The state of the page: what the controls and the address say, and when the sections are drawn. */

(() => {
  const $ = (id) => document.getElementById(id);
  const study = JSON.parse($("study").textContent);
  const names = study.models.map((model) => model.name);
  const modelOf = (name) => study.models.find((model) => model.name === name);

  /* Packs are unpacked when first needed; those that the parser has not reached yet, when it has. */
  const parsed = new Promise((done) => document.addEventListener("DOMContentLoaded", done));
  const unpacked = new Map();
  async function bytes(name) {
    if (!$(name)?.nextElementSibling && document.readyState === "loading") await parsed;
    if (!unpacked.has(name)) unpacked.set(name, Sinks.unpack($(name).textContent));
    return unpacked.get(name);
  }

  const first = study.models[0];
  const DEFAULTS = {
    model: names[0], beside: "", prompt: (first.prompts.findLast((p) => p.maps) ?? first.prompts[0]).id, length: 24,
    threshold: study.threshold, layer: null, head: null, colour: "score", of: "head", token: null, scheme: "",
  };
  const NUMBERS = ["length", "threshold", "layer", "head", "token"];
  const state = { ...DEFAULTS };

  /* What the address says, as far as this study has it. */
  function fromAddress() {
    const said = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    const wanted = { ...DEFAULTS };
    for (const key of Object.keys(DEFAULTS)) {
      if (said[key] === undefined) continue;
      wanted[key] = NUMBERS.includes(key) ? Number(said[key]) : said[key];
      if (Number.isNaN(wanted[key])) wanted[key] = DEFAULTS[key];
    }
    if (!names.includes(wanted.model)) wanted.model = DEFAULTS.model;
    if (!names.includes(wanted.beside)) wanted.beside = "";
    if (wanted.prompt !== "all" && !modelOf(wanted.model).prompts.some((p) => p.id === wanted.prompt)) wanted.prompt = DEFAULTS.prompt;
    if (!study.thresholds.includes(wanted.threshold)) wanted.threshold = DEFAULTS.threshold;
    Object.assign(state, wanted);
  }
  let pending = 0;
  function toAddress() {
    clearTimeout(pending); // browsers refuse a change at every step of a slider
    pending = setTimeout(() => {
      const said = Object.entries(state).filter(([key, value]) => value !== DEFAULTS[key]);
      history.replaceState(null, "", `#${new URLSearchParams(said)}`);
    }, 150);
  }

  /* A copy of the section for the model beside, all its ids ending in -2. */
  const copy = $("side").cloneNode(true);
  for (const node of [copy, ...copy.querySelectorAll("[id]")]) node.id += "-2";
  const sides = ["", "-2"].map((suffix) => new Section(study, state, bytes, suffix));

  const colours = () => {
    const shown = [state.model, state.beside].filter(Boolean).map(modelOf);
    const costs = shown.flatMap((model) => Object.keys(model.costs).map((name) => [`cost:${name}`, `replacement cost, ${name}`]));
    const plans = shown.flatMap((model) => model.plans.map(({ policy }) => [`plan:${policy}`, `plan ${policy}`]));
    return new Map([["score", "sink score"], ["excess", "excess score"], ["norm", "output norm"], ["drain", "value drain"], ...costs, ...plans]);
  };

  /* Load what model and prompt need, and fill the controls that depend on them. */
  async function load() {
    const model = modelOf(state.model);
    const groups = new Map();
    for (const { id, set, tokens } of model.prompts) {
      if (!groups.has(set)) groups.set(set, []);
      groups.get(set).push(new Option(`${id} (${tokens.length})`, id));
    }
    $("prompt").replaceChildren(...[...groups].map(([set, options]) => {
      const group = document.createElement("optgroup");
      group.label = set;
      group.append(...options);
      return group;
    }), new Option(`all ${model.prompts.length} prompts`, "all"));
    if (![...$("prompt").options].some((option) => option.value === state.prompt)) state.prompt = model.prompts[0].id;
    $("beside").replaceChildren(new Option("none", ""), ...names.filter((name) => name !== state.model).map((name) => new Option(name, name)));
    if (state.beside === state.model) state.beside = "";
    if (!colours().has(state.colour)) state.colour = "score";
    $("colour").replaceChildren(...[...colours()].map(([value, name]) => new Option(name, value)));
    if (state.beside && !copy.isConnected) $("sides").append(copy);
    if (!state.beside) copy.remove();
    $("sides").classList.toggle("two", Boolean(state.beside));
    shown = state.beside ? sides : sides.slice(0, 1);
    await Promise.all([state.model, state.beside].filter(Boolean).map((name, i) => sides[i].load(modelOf(name))));
    if (state.layer === null) { // the strongest head
      sides[0].compute();
      const cell = sides[0].scores.indexOf(Math.max(...sides[0].scores));
      [state.layer, state.head] = [model.layers[Math.floor(cell / model.heads)], cell % model.heads];
      Object.assign(DEFAULTS, { layer: state.layer, head: state.head });
    }
    for (const side of shown.filter((side) => !side.connected)) {
      side.connect(change);
      side.connected = true;
    }
  }

  let shown = sides.slice(0, 1);
  function draw() {
    document.documentElement.style.colorScheme = state.scheme || "light dark";
    for (const key of ["model", "beside", "prompt", "colour", "scheme"]) $(key).value = state[key];
    for (const side of shown) side.compute();
    const { lengths, at, k, cell, model } = sides[0];
    $("length").max = lengths.length - 1;
    $("length").value = at;
    $("length").setAttribute("aria-valuetext", `${k} tokens`);
    $("length-value").textContent = `${k} of ${lengths[lengths.length - 1]} tokens`;
    $("threshold").value = study.thresholds.indexOf(state.threshold);
    $("threshold").setAttribute("aria-valuetext", String(state.threshold));
    $("threshold-value").textContent = String(state.threshold);
    const { range, log } = sides[0].measured;
    const known = shown.flatMap((side) => side.measured.values).filter((value) => value !== null && !Number.isNaN(value) && (!log || value > 0));
    for (const side of shown) side.draw(range ?? (known.length ? [log ? Math.min(...known) : 0, Math.max(...known)] : [0, 1]));
    document.body.dataset.shown = [state.model, state.prompt, k, state.threshold, sides[0].headName(cell)].join("; "); // tests wait for this
    document.body.dataset.view = JSON.stringify(state);
  }

  /* Draw at the next frame, once all that was chosen is loaded; several changes before it are drawn once. */
  let waiting = false, loading = Promise.resolve();
  function show() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(async () => {
      for (let last; last !== loading;) await (last = loading); // More may be chosen meanwhile.
      waiting = false;
      draw();
    });
  }
  function change(more) {
    Object.assign(state, more);
    if (["model", "beside", "prompt"].some((key) => key in more)) loading = loading.then(load);
    toAddress();
    show();
  }

  $("model").replaceChildren(...names.map((name) => new Option(name, name)));
  $("threshold").max = study.thresholds.length - 1;
  $("controls").onsubmit = (event) => event.preventDefault();
  for (const key of ["model", "beside", "prompt", "colour", "scheme"]) {
    $(key).onchange = (event) => change({ [key]: event.target.value, ...(key === "prompt" && { token: null }) });
  }
  $("length").oninput = (event) => change({ length: sides[0].lengths[event.target.value] ?? state.length });
  $("threshold").oninput = (event) => change({ threshold: study.thresholds[event.target.value] });
  window.addEventListener("hashchange", () => {
    fromAddress();
    loading = loading.then(load);
    show();
  });
  window.addEventListener("resize", () => $("heads-map").clientWidth && show());

  const step = 1 / (2 * study.scoreSteps);
  const thin = study.dense === null ? "" : ` Of prompts longer than ${study.dense} tokens, ${study.dense / 4} lengths per doubling beyond `
    + "that are kept.";
  const places = study.positionBlock === 1 ? "" : `, averaged over ${study.positionBlock} tokens`;
  const coarse = study.block === 1 ? "" : `, averaged over blocks of ${study.block} × ${study.block} tokens`;
  $("precision").textContent = "Scores are quantised: within " + step.toExponential(0) + " divided by the length of those in the "
    + "tables. Rounding never changes whether a head is a sink, at any stop of the threshold slider, so the "
    + `percentages are those of the tables.${thin} Maps are rounded to ${study.mapSteps} steps of the square root${coarse}; `
    + `what tokens receive, where it does not follow from a map, to ${study.positionSteps}${places}. `
    + "Models: " + study.models.map((m) => `${m.name} (${m.origin})`).join("; ") + ".";

  fromAddress();
  loading = load();
  show();
})();
