"use strict";
/* All computations of the page, independent of the document. Heads are numbered cell = layer * heads + head. */

const Sinks = {
  /* Bytes of a packed text. */
  async unpack(text) {
    const letters = atob(text);
    const bytes = new Uint8Array(letters.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i); // Uint8Array.from is several times slower.
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  },

  /* Scores at every stored length, by cell * lengths.length + i, from differences of score * k * scoreSteps along i.
     The bytes come as planes: all lowest bytes, then all second ones, and so on. */
  scores(bytes, type, lengths, scoreSteps) {
    const width = type === "int16" ? 2 : 4;
    const count = bytes.length / width;
    const scores = new Float64Array(count);
    let sum = 0;
    for (let at = 0; at < count; at++) {
      let value = 0;
      for (let plane = width - 1; plane >= 0; plane--) value = (value << 8) | bytes[plane * count + at];
      if (width === 2) value = (value << 16) >> 16; // sign
      const i = at % lengths.length;
      sum = i === 0 ? value : sum + value;
      scores[at] = sum / (scoreSteps * lengths[i]);
    }
    return scores;
  },

  /* A head's map of the first `side` blocks as rows of key values, null where a key comes after the query. */
  map(bytes, cell, sides, side, mapSteps) {
    const start = (cell * sides * (sides + 1)) / 2;
    return Array.from({ length: side }, (_, query) =>
      Array.from({ length: side }, (_, key) =>
        key > query ? null : (bytes[start + (query * (query + 1)) / 2 + key] / mapSteps) ** 2));
  },

  /* Attention of a query to a key in a head's map, by block. */
  cell(bytes, cell, sides, query, key, mapSteps) {
    return (bytes[(cell * sides * (sides + 1)) / 2 + (query * (query + 1)) / 2 + key] / mapSteps) ** 2;
  },

  /* What each of the first k tokens receives, the mean over the queries after it and over `cells`, from whole maps;
     NaN for the last, which has none. */
  receivedInMaps(bytes, cells, sides, k, mapSteps) {
    const squares = Float64Array.from({ length: mapSteps + 1 }, (_, step) => (step / mapSteps) ** 2);
    const total = new Float64Array(k);
    for (const cell of cells) {
      const start = (cell * sides * (sides + 1)) / 2;
      for (let query = 1; query < k; query++) {
        const row = start + (query * (query + 1)) / 2;
        for (let key = 0; key < query; key++) total[key] += squares[bytes[row + key]];
      }
    }
    return Array.from(total, (sum, key) => sum / (cells.length * (k - 1 - key)));
  },

  /* The same of all n tokens from the stored means, which are averages over `block` tokens. */
  receivedStored(bytes, cells, n, block, steps) {
    const places = Math.ceil(n / block);
    const mean = Array.from({ length: places }, (_, place) =>
      cells.reduce((sum, cell) => sum + (bytes[cell * places + place] / steps) ** 2, 0) / cells.length);
    return Array.from({ length: n }, (_, key) => (key === n - 1 ? NaN : mean[Math.floor(key / block)]));
  },

  /* How many of the first positions of n tokens have enough later queries to be called sinks, as in the tables. */
  candidates(n) {
    return n - Math.min(Math.max(16, Math.floor(n / 4)), Math.floor(n / 2));
  },

  /* Sink score of uniform causal attention over k tokens: the k-th harmonic number over k. */
  nullScore(k) {
    let harmonic = 0;
    for (let i = 1; i <= k; i++) harmonic += 1 / i;
    return harmonic / k;
  },

  /* NaN for one token, where the null score is 1. */
  excess(score, nullScore) {
    return nullScore < 1 ? (score - nullScore) / (1 - nullScore) : NaN;
  },

  /* Numbers over prompts, each given by its scores of all cells at one length. `fraction`: sinks of all heads.
     `correlation`: over first-layer sinks, the mean share of later layers in which the same head is a sink, NaN where
     there are none; `base`: that share over all heads. */
  summary(prompts, layers, heads, threshold) {
    let sinks = 0, total = 0, first = 0, later = 0, following = 0;
    for (const scores of prompts) {
      for (let head = 0; head < heads; head++) {
        let follow = 0;
        for (let layer = 1; layer < layers; layer++) follow += scores[layer * heads + head] >= threshold;
        later += follow;
        if (scores[head] >= threshold) {
          first += 1;
          following += follow;
        }
      }
      for (const score of scores) total += score;
    }
    sinks = first + later;
    const cells = prompts.length * layers * heads;
    const laterLayers = layers - 1;
    return {
      sinks, cells, first,
      fraction: sinks / cells,
      mean: total / cells,
      correlation: first && laterLayers ? following / (first * laterLayers) : NaN,
      base: laterLayers ? later / (prompts.length * laterLayers * heads) : NaN,
    };
  },
};
