/* Saving what a panel shows: its drawing as SVG or PNG, its numbers as CSV. */

const Export = {
  STYLES: ["fill", "stroke", "stroke-width", "stroke-dasharray", "paint-order", "font-family", "font-size"],

  save(name, type, content) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  },

  /* A row of `header`, then `rows`; fields are quoted where they need it, undefined values are empty. */
  csv(header, rows) {
    const field = (value) => {
      const text = value === null || Number.isNaN(value) ? "" : String(value);
      return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
    };
    return [header, ...rows].map((row) => row.map(field).join(",") + "\n").join("");
  },

  /* A drawing as the text of a file of its own, on the page's background, under `title`. */
  svg(drawing, title) {
    if (!drawing.isConnected) document.body.append(drawing); // only what is in the document has a style
    const { width, height } = drawing.viewBox.baseVal;
    const copy = drawing.cloneNode(true);
    const styled = [...drawing.querySelectorAll("*")];
    [...copy.querySelectorAll("*")].forEach((node, i) => {
      const style = getComputedStyle(styled[i]);
      for (const name of Export.STYLES) {
        node.setAttribute(name, style.getPropertyValue(name));
        node.style.removeProperty(name);
      }
    });
    if (drawing.parentNode === document.body) drawing.remove();
    const { color, backgroundColor } = getComputedStyle(document.body);
    copy.prepend(Plots.node("rect", { y: -26, width, height: height + 26, fill: backgroundColor }),
      Plots.text(8, -8, title, "start", { fill: color, "font-family": "sans-serif", "font-size": "13px" }));
    const size = { xmlns: "http://www.w3.org/2000/svg", width, height: height + 26, viewBox: `0 -26 ${width} ${height + 26}` };
    for (const [name, value] of Object.entries(size)) copy.setAttribute(name, value);
    return new XMLSerializer().serializeToString(copy);
  },

  /* The same as pixels, two per unit. */
  async png(text) {
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [2 * image.width, 2 * image.height];
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  },

  /* Text in spans with bars and frames, as a drawing in the places where the browser put them. */
  tokens(element) {
    const box = element.getBoundingClientRect();
    const svg = Plots.node("svg", { viewBox: `0 0 ${Math.ceil(box.width)} ${Math.ceil(element.scrollHeight)}` });
    const height = parseFloat(getComputedStyle(element).fontSize);
    for (const span of element.children) {
      const style = getComputedStyle(span);
      const place = span.getClientRects()[0];
      const [x, y] = [place.left - box.left, place.top - box.top + element.scrollTop];
      const bar = 0.9 * height * Math.sqrt(Number(span.style.getPropertyValue("--received")) || 0);
      svg.append(
        Plots.node("rect", { x, y, width: place.width, height: place.height, style: `fill: ${style.backgroundColor}` }),
        Plots.node("rect", { x, y: y + place.height - bar, width: place.width, height: bar, style: "fill: var(--bar)" }),
        Plots.text(x + 1, y + height + 2, Plots.printable(span.textContent.replace(/\s/g, " ")), "start",
          { style: `font: ${height}px monospace; white-space: pre; fill: ${style.color}` }));
      if (span.classList.contains("sink")) {
        svg.append(Plots.node("path", { d: `M${x} ${y}h${place.width}`, style: "stroke: var(--mark); stroke-width: 2" }));
      }
    }
    return svg;
  },

  /* Buttons in the caption of a panel. `what()`: `name` of the files, `title`, `csv` as [header, rows], and unless
     there is nothing drawn, `drawing`. */
  buttons(panel, name, drawn, what) {
    const saved = {
      PNG: async ({ name, title, drawing }) => Export.save(`${name}.png`, "image/png", await Export.png(Export.svg(drawing(), title))),
      SVG: ({ name, title, drawing }) => Export.save(`${name}.svg`, "image/svg+xml", Export.svg(drawing(), title)),
      CSV: ({ name, csv }) => Export.save(`${name}.csv`, "text/csv", Export.csv(...csv)),
    };
    const group = document.createElement("span");
    group.className = "save";
    group.append(...(drawn ? ["PNG", "SVG", "CSV"] : ["CSV"]).map((format) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = format;
      button.setAttribute("aria-label", `Save ${name} as ${format}`);
      button.onclick = () => saved[format](what());
      return button;
    }));
    panel.querySelector("figcaption").append(group);
  },
};
