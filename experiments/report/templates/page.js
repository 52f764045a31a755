(() => {
  "use strict";
  const all = {};
  const off = { label: new Set(), seed: new Set() };
  const views = new Map();
  const narrow = matchMedia("(max-width: 700px)");
  const tip = document.getElementById("tip");
  let each = false;

  // The data: CSV, as it is downloaded.
  function cells(text) {
    const rows = [[]];
    for (const [, end, quoted, plain] of text.matchAll(/(^|,|\n)(?:"((?:[^"]|"")*)"|([^",\n]*))/g)) {
      if (end === "\n") rows.push([]);
      rows.at(-1).push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    }
    return rows.filter((row) => row.length > 1 || row[0] !== "");
  }

  for (const element of document.querySelectorAll("pre[data-numbers]")) {
    const numbers = new Set(JSON.parse(element.dataset.numbers));
    const [heads, ...rows] = cells(element.textContent);
    const value = (head, text) => (!numbers.has(head) ? text : text === "" ? null : isNaN(text) ? text : +text);
    all[element.id.slice(5)] = rows.map((row) => Object.fromEntries(heads.map((head, i) => [head, value(head, row[i])])));
  }

  const isOn = (row) =>
    !off.seed.has(row.seed) && ("label" in row ? !off.label.has(row.label) : !("arm" in row) || armIsOn(row.arm));

  function armIsOn(arm) {
    const labels = (all.runs || []).filter((row) => row.arm === arm && row.label !== "").map((row) => row.label);
    return !labels.length || labels.some((label) => !off.label.has(label));
  }

  // Pictures: drawn anew where script runs, each when it comes into sight.
  function names(spec) {
    const found = new Set();
    JSON.stringify(spec, (key, value) => (key === "data" && value && value.name && found.add(value.name), value));
    return [...found];
  }

  function show(figure) {
    const specs = JSON.parse(figure.querySelector("script").textContent);
    const spec = narrow.matches ? specs.narrow : specs.wide;
    if (spec.concat) spec.concat = spec.concat.filter((panel) => !panel.description || armIsOn(panel.description));
    const live = figure.querySelector(".live");
    const host = document.createElement("div");
    host.ariaHidden = "true";
    spec.background = "transparent";
    spec.datasets = Object.fromEntries(names(spec).map((name) => [name, all[name].filter(isOn)]));
    for (const param of spec.params || []) param.value = each;
    const isEmpty = Object.values(spec.datasets).some((rows) => !rows.length) || spec.concat?.length === 0;
    if (isEmpty) {
      live.hidden = true;
      return Promise.resolve();
    }
    const options = { mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, tooltip: say };
    return vegaEmbed(host, spec, options).then(({ view }) => {
      views.get(figure)?.finalize();
      views.set(figure, view);
      live.replaceChildren(host);
      live.hidden = false;
      figure.querySelector(".still").style.display = "none";
    });
  }

  function say(handler, event, item, value) {
    tip.style.display = value == null || value === "" ? "none" : "block";
    if (value == null) return;
    const lines = typeof value === "object" ? Object.entries(value).map(([key, text]) => `${key}: ${text}`) : [value];
    tip.replaceChildren(...lines.map((line) => Object.assign(document.createElement("div"), { textContent: line })));
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
  }

  const sight = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        sight.unobserve(target);
        show(target).catch(console.error);
      }
    },
    { rootMargin: "300px" },
  );
  const figures = [...document.querySelectorAll("figure")];
  figures.forEach((figure) => sight.observe(figure));
  narrow.addEventListener("change", () => [...views.keys()].forEach((figure) => show(figure).catch(console.error)));

  // The table of the arms follows the seeds; with all of them it is as it was written.
  function figureOf(rows, { key, factor, digits, plain }) {
    const defined = rows.filter((row) => key === "gap" || row[key] !== null);
    if (!defined.length) return "-";
    const values = defined.map((row) => factor * (key === "gap" ? row.test_error - row.train_error : row[key]));
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
    const error = values.length > 1 && !plain ? Math.sqrt(squares / (values.length - 1) / values.length) : 0;
    return mean.toFixed(digits) + (error ? ` \u00b1 ${error.toFixed(digits)}` : "");
  }

  function tables() {
    for (const element of document.querySelectorAll("[data-label]")) element.hidden = off.label.has(element.dataset.label);
    for (const head of document.querySelectorAll("th[data-figure]")) {
      const column = head.cellIndex;
      for (const row of head.closest("table").tBodies[0].rows) {
        const cell = row.cells[column];
        cell.dataset.all ??= cell.textContent;
        const runs = all.runs.filter((run) => run.label === row.dataset.label && isOn(run) && run.status === "done");
        const isWhole = !off.seed.size || !cell.dataset.all;
        cell.textContent = isWhole ? cell.dataset.all : runs.length ? figureOf(runs, JSON.parse(head.dataset.figure)) : "";
      }
    }
  }

  function update() {
    tables();
    [...views.keys()].forEach((figure) => show(figure).catch(console.error));
  }

  // What is shown: arms and seeds on and off.
  function boxes(title, kind, values) {
    const field = document.createElement("fieldset");
    field.append(Object.assign(document.createElement("legend"), { textContent: title }));
    for (const value of values) {
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
      box.addEventListener("change", () => (off[kind][box.checked ? "delete" : "add"](value), update()));
      const label = document.createElement("label");
      label.append(box, ` ${value}`);
      field.append(label);
    }
    return field;
  }

  const controls = document.getElementById("controls");
  const shown = (all.runs || []).filter((row) => row.label !== "");
  const labels = [...new Set(shown.map((row) => row.label))];
  const seeds = [...new Set(shown.map((row) => row.seed))].sort((a, b) => a - b);
  if (controls && (labels.length > 1 || seeds.length > 1)) {
    if (labels.length > 1) controls.append(boxes("Arms", "label", labels));
    if (seeds.length > 1) {
      const field = boxes("Seeds", "seed", seeds);
      const box = Object.assign(document.createElement("input"), { type: "checkbox" });
      box.addEventListener("change", () => ((each = box.checked), update()));
      const label = document.createElement("label");
      label.append(box, " draw each seed");
      field.append(label);
      controls.append(field);
      controls.append(
        Object.assign(document.createElement("p"), {
          textContent: "The table of the arms and the pictures follow; claims, intervals and images are of all seeds.",
        }),
      );
    }
    controls.hidden = false;
  }

  // Tables that sort.
  function sorted(table, column, isUp) {
    const rows = [...table.tBodies[0].rows];
    const text = (row) => row.cells[column].textContent.trim();
    rows.sort((one, other) => {
      const [a, b] = [text(one), text(other)];
      const [x, y] = [parseFloat(a), parseFloat(b)];
      if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1; // what has no number comes last
      return (isUp ? 1 : -1) * (isNaN(x) ? a.localeCompare(b) : x - y);
    });
    table.tBodies[0].append(...rows);
  }

  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    for (const [column, head] of heads.entries()) {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: head.textContent });
      button.addEventListener("click", () => {
        const isUp = head.ariaSort !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.ariaSort = isUp ? "ascending" : "descending";
        sorted(table, column, isUp);
      });
      head.replaceChildren(button);
    }
  }

  // Downloads.
  for (const tools of document.querySelectorAll(".tools")) tools.hidden = false;
  for (const button of document.querySelectorAll("[data-download]")) {
    button.addEventListener("click", () => {
      const name = button.dataset.download;
      const blob = new Blob([document.getElementById(`data-${name}`).textContent], { type: "text/csv" });
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = `${document.title.replace(/ - torchreg$/, "").replace(/[^\p{L}\p{N}.+-]+/gu, "_")}-${name}.csv`;
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
})();
