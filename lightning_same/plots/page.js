// Draws the charts of a page with Vega-Lite, and again whenever a legend, the setting, the width or the theme changes.
// All texts of the user's are data here: Vega draws them as text and its tooltips escape them.
"use strict";
(() => {
  const page = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const hidden = Object.fromEntries(Object.keys(page.legends).map((group) => [group, new Set()]));
  let setting = null;
  const HEIGHT = 280;

  const styles = (chart) => page.legends[chart.legend];
  const ink = () => (dark.matches ? "#e6e6e6" : "#1c1c1c");
  const faint = () => (dark.matches ? "#3a3f45" : "#e2e2e2");
  const color = (style) => (dark.matches ? style.dark : style.color);

  function config() {
    const text = { labelColor: ink(), titleColor: ink(), labelFontSize: 12, titleFontSize: 12, titleFontWeight: 400 };
    return {
      background: null,
      font: "system-ui, sans-serif",
      aria: false,
      view: { stroke: null },
      axis: { ...text, domainColor: ink(), tickColor: ink(), gridColor: faint() },
      text: { color: ink(), fontSize: 12 },
    };
  }

  // The series of a chart whose method is ticked and whose setting, if it has one, is the chosen one.
  const shown = (chart) =>
    chart.series.filter((one) => !hidden[chart.legend].has(one.name) && [null, undefined, setting].includes(one.setting));

  const scaled = (chart, get) => {
    const names = styles(chart).map((style) => style.name);
    return { domain: names, range: styles(chart).map(get) };
  };
  const channel = (chart, get) => ({ field: "name", type: "nominal", legend: null, scale: scaled(chart, get) });

  // Labels beside the right ends of lines, pushed apart where they would overlap.
  function labels(ends, low, high, log) {
    const to = (y) => (log ? Math.log10(y) : y);
    const [bottom, top] = [to(low), to(high)];
    const gap = 15 / HEIGHT;
    const placed = ends
      .map((end) => ({ ...end, place: Math.min(1, Math.max(0, (to(end.y) - bottom) / (top - bottom || 1))) }))
      .sort((a, b) => a.place - b.place);
    placed.forEach((end, i) => (end.place = i ? Math.max(end.place, placed[i - 1].place + gap) : end.place));
    for (let i = placed.length - 1; i >= 0; i--) {
      placed[i].place = Math.min(placed[i].place, i === placed.length - 1 ? 1 : placed[i + 1].place - gap);
    }
    return placed.map((end) => ({ ...end, pixel: HEIGHT * (1 - end.place) }));
  }

  function labelled(chart, ends, width) {
    const layers = [
      ["■", channel(chart, color), 4],
      [{ expr: "datum.name" }, { value: ink() }, 18],
    ].map(([text, fill, dx]) => ({
      data: { values: ends },
      mark: { type: "text", align: "left", baseline: "middle", dx, text, limit: 170, tooltip: { expr: "datum.name" } },
      encoding: { x: { value: width }, y: { field: "pixel", type: "quantitative", scale: null }, color: fill },
    }));
    return ends.length ? layers : [];
  }

  const room = (chart, names, total) =>
    total < 420 ? 0 : Math.min(170, 26 + 7 * Math.max(0, ...names.map((name) => name.length)));

  const ticks = (axis) => ({ title: axis.title, format: axis.percent ? "~%" : undefined, labelSeparation: 8, grid: !axis.plain });

  function extent(values, axis) {
    let [low, high] = [Math.min(...values), Math.max(...values)];
    if (axis.zero) [low, high] = [Math.min(0, low), Math.max(0, high)];
    const pad = axis.log ? 0 : 0.05 * (high - low) || 0.01;
    return [axis.zero && low === 0 ? 0 : low - pad, axis.zero && high === 0 ? 0 : high + pad];
  }

  // Lines over an axis, paths through a plane, and single points.
  function lines(chart, total) {
    const log = chart.y.log;
    const ok = (y) => y !== null && (!log || y > 0);
    const rows = shown(chart).flatMap((one) =>
      one.x.map((x, i) => ({
        name: one.name,
        series: `${one.name}\n${one.setting}`,
        x,
        y: one.y[i],
        low: one.low ? one.low[i] : null,
        high: one.high ? one.high[i] : null,
        at: one.at ? one.at[i] : x,
        order: i,
      })),
    ).filter((row) => ok(row.y) && row.x !== null);
    if (!rows.length) return null;
    const [low, high] = extent(rows.flatMap((row) => [row.y, row.low, row.high].filter(ok)), chart.y);
    const xs = rows.map((row) => row.x);
    const names = [...new Set(rows.map((row) => row.name))];
    const right = chart.kind === "lines" ? room(chart, names, total) : 0;
    const width = total - 74 - (right || 14);
    const path = chart.kind === "path";
    const x = {
      field: "x",
      type: "quantitative",
      axis: ticks(chart.x),
      scale: path || chart.kind === "points" ? { zero: false, nice: false, padding: 12 } : { nice: false, zero: false },
    };
    const y = {
      field: "y",
      type: "quantitative",
      axis: ticks(chart.y),
      scale: { type: log ? "log" : "linear", domain: [low, high], nice: false, ...(log ? {} : { zero: false }) },
    };
    const form = (axis) => (axis.percent ? ".1%" : ".4~g");
    const tooltip = [
      { field: "name", title: chart.of || "method" },
      { field: "at", title: chart.at },
      ...(chart.kind === "lines" ? [] : [{ field: "x", title: chart.x.title, format: form(chart.x) }]),
      { field: "y", title: chart.y.title, format: form(chart.y) },
      ...(rows.some((row) => row.low !== null)
        ? [
            { field: "low", title: (chart.band || ["lowest seed"])[0], format: form(chart.y) },
            { field: "high", title: (chart.band || ["", "highest seed"])[1], format: form(chart.y) },
          ]
        : []),
    ];
    const ends = names.map((name) => rows.filter((row) => row.name === name).at(-1));
    const layer = [];
    const phases = (chart.phases || []).filter(([from, to]) => to >= Math.min(...xs) && from <= Math.max(...xs));
    if (phases.length) {
      const values = phases.map(([from, to, phase]) => ({ from, to, phase }));
      const span = { x: { field: "from", type: "quantitative", title: chart.x.title }, x2: { field: "to" } };
      layer.push({ data: { values }, mark: { type: "rect", color: faint(), opacity: 0.55 }, encoding: span });
      layer.push({
        data: { values },
        mark: { type: "text", align: "left", baseline: "top", dx: 4, dy: 2, fontStyle: "italic", text: { expr: "datum.phase" } },
        encoding: { x: { field: "from", type: "quantitative", title: chart.x.title }, y: { value: 0 } },
      });
    }
    if (rows.some((row) => row.low !== null)) {
      layer.push({
        mark: { type: "area", opacity: 0.13, clip: true },
        encoding: { x, y: { ...y, field: "low" }, y2: { field: "high" }, color: channel(chart, color), detail: { field: "series" } },
      });
    }
    const order = { field: "order", type: "quantitative" };
    if (chart.kind !== "points") {
      layer.push({
        mark: { type: "line", strokeWidth: 2, clip: true },
        encoding: { x, y, order, color: channel(chart, color), strokeDash: channel(chart, (style) => style.dash), detail: { field: "series" } },
      });
    }
    if (path || chart.kind === "points" || Math.max(...shown(chart).map((one) => one.x.length)) <= 12) {
      const last = path ? { size: { condition: { test: `datum.last`, value: 90 }, value: 22 } } : { size: { value: 45 } };
      ends.forEach((end) => (end.last = true));
      layer.push({
        mark: { type: "point", filled: true, opacity: 1 },
        encoding: { x, y, ...last, color: channel(chart, color), shape: channel(chart, (style) => style.shape) },
      });
    }
    layer.push({
      mark: { type: "point", filled: true, size: 90, tooltip: true },
      params: [{ name: "near", select: { type: "point", on: "pointerover", nearest: true, clear: "pointerout" } }],
      encoding: { x, y, tooltip, color: channel(chart, color), opacity: { condition: { param: "near", empty: false, value: 1 }, value: 0 } },
    });
    if (right) layer.push(...labelled(chart, labels(ends, low, high, log), width));
    return { width, height: HEIGHT, padding: { right: right || 8, left: 4, top: 6, bottom: 4 }, data: { values: rows }, layer };
  }

  // Shares that add up to one.
  function areas(chart, total) {
    const rows = chart.series.flatMap((one, k) => one.x.map((x, i) => ({ name: one.name, x, y: one.y[i], k })));
    const names = chart.series.map((one) => one.name);
    const right = room(chart, names, total);
    const width = total - 74 - (right || 14);
    let below = 0;
    const ends = chart.series.map((one) => {
      const last = one.y.at(-1);
      below += last;
      return { name: one.name, y: below - last / 2 };
    });
    const x = { field: "x", type: "quantitative", axis: ticks(chart.x), scale: { nice: false, zero: false } };
    const y = { field: "y", type: "quantitative", stack: "zero", axis: ticks(chart.y), scale: { domain: [0, 1], nice: false } };
    const tooltip = [
      { field: "name", title: chart.of || "checkpoint" },
      { field: "x", title: chart.at },
      { field: "y", title: chart.y.title, format: ".1%" },
    ];
    return {
      width,
      height: HEIGHT,
      padding: { right: right || 8, left: 4, top: 6, bottom: 4 },
      data: { values: rows },
      layer: [
        {
          mark: { type: "area", clip: true, stroke: dark.matches ? "#14171a" : "#ffffff", strokeWidth: 0.8, tooltip: true },
          encoding: { x, y, color: channel(chart, color), order: { field: "k", type: "quantitative" }, tooltip },
        },
        ...(right ? labelled(chart, labels(ends, 0, 1, false), width) : []),
      ],
    };
  }

  // Differences with their intervals, a row for each variant, the early phase above the late one.
  function intervals(chart, total) {
    const rows = shown(chart).flatMap((one) => one.rows.map((row) => ({ ...row, name: one.name, label: one.name })));
    if (!rows.length) return null;
    const names = [...new Set(rows.map((row) => row.label))];
    const left = Math.min(190, 24 + 7.5 * Math.max(...names.map((name) => name.length)));
    const width = total - left - 20;
    const scale = { domain: extent([...rows.flatMap((row) => [row.mean, row.low, row.high].filter((v) => v !== null)), 0], chart.x), nice: true, zero: false };
    const x = { type: "quantitative", axis: ticks(chart.x), scale };
    const y = { field: "label", type: "nominal", sort: null, title: null, axis: { labelLimit: left - 8, grid: false, ticks: false, domain: false } };
    const yOffset = { field: "phase", type: "nominal", sort: ["early", "late"], scale: { paddingOuter: 0.6 } };
    const tooltip = [
      { field: "label", title: "method" },
      { field: "phase", title: "phase" },
      { field: "mean", title: chart.x.title, format: "+.2f" },
      { field: "low", title: "95% interval from", format: "+.2f" },
      { field: "high", title: "to", format: "+.2f" },
      { field: "word", title: "verdict" },
    ];
    const phase = { domain: ["early", "late"] };
    return {
      width,
      height: { step: names.length > 12 ? 10 : 13 },
      padding: { right: 12, left: 4, top: 6, bottom: 4 },
      data: { values: rows },
      layer: [
        {
          data: { values: [{ low: -chart.delta, high: chart.delta }] },
          mark: { type: "rect", color: faint(), opacity: 0.55 },
          encoding: { x: { ...x, field: "low" }, x2: { field: "high" } },
        },
        { data: { values: [{ zero: 0 }] }, mark: { type: "rule", color: ink() }, encoding: { x: { ...x, field: "zero" } } },
        {
          transform: [{ filter: "datum.low !== null" }],
          mark: { type: "rule", strokeWidth: 2 },
          encoding: { x: { ...x, field: "low" }, x2: { field: "high" }, y, yOffset, color: channel(chart, color), tooltip },
        },
        {
          mark: { type: "point", size: 60, strokeWidth: 1.8, opacity: 1 },
          encoding: {
            x: { ...x, field: "mean" },
            y,
            yOffset,
            tooltip,
            color: channel(chart, color),
            fill: {
              condition: { test: "datum.phase === 'late'", ...channel(chart, color) },
              value: dark.matches ? "#14171a" : "#ffffff",
            },
          },
        },
      ],
    };
  }

  const builders = { lines, path: lines, points: lines, areas, intervals };
  const drawn = new Map();

  async function draw(figure) {
    const chart = page.charts[Number(figure.dataset.chart)];
    const owner = chart.owner;
    const off = owner && (hidden[owner.legend].has(owner.name) || ![null, undefined, setting].includes(owner.setting));
    figure.hidden = Boolean(off);
    if (off) return;
    const place = figure.querySelector(".plot");
    const total = place.clientWidth;
    const spec = builders[chart.kind](chart, total);
    drawn.get(figure)?.finalize();
    drawn.delete(figure);
    if (spec === null) {
      place.textContent = `Nothing to draw: no method that is ticked has a value here${setting ? ` at ${setting}` : ""}.`;
      return;
    }
    const options = { actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false } };
    const full = { ...spec, config: config() };
    drawn.set(figure, await vegaEmbed(place, full, { mode: "vega-lite", renderer: "svg", ...options, downloadFileName: chart.file }));
    // Hundreds of unnamed marks say nothing; the group is named by its caption, and the numbers are in the tables.
    place.querySelector(".chart-wrapper")?.setAttribute("aria-hidden", "true");
    place.querySelector("summary")?.setAttribute("aria-label", "Save this chart");
  }

  const figures = [...document.querySelectorAll("figure[data-chart]")];
  const stale = new Set(figures);
  const near = new Set();
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) near.delete(entry.target);
        else near.add(entry.target);
      }
      refresh();
    },
    { rootMargin: "600px" },
  );
  // One drawing of a figure after the other, each of what is ticked by then: the last one to begin is the last to end.
  const queue = new Map();
  function refresh() {
    for (const figure of near) {
      if (!stale.has(figure)) continue;
      const drawing = (queue.get(figure) ?? Promise.resolve()).then(() => (stale.delete(figure) ? draw(figure) : null));
      queue.set(figure, drawing.catch((error) => (figure.querySelector(".plot").textContent = String(error))));
    }
  }
  function changed() {
    for (const figure of figures) {
      const owner = page.charts[Number(figure.dataset.chart)].owner;
      if (owner) figure.hidden = hidden[owner.legend].has(owner.name) || ![null, undefined, setting].includes(owner.setting);
      stale.add(figure);
    }
    refresh();
  }

  for (const box of document.querySelectorAll(".legend input")) {
    box.addEventListener("change", () => {
      const off = hidden[box.dataset.legend];
      if (box.checked) off.delete(box.value);
      else off.add(box.value);
      changed();
    });
  }
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      for (const box of button.closest(".legend").querySelectorAll("input")) {
        if (box.checked !== (button.value === "all")) box.click();
      }
    });
  }
  const select = document.getElementById("setting");
  if (select) {
    setting = select.value;
    select.addEventListener("change", () => {
      setting = select.value;
      changed();
    });
  }
  dark.addEventListener("change", changed);
  if (innerWidth < 1216) document.querySelector("nav details")?.removeAttribute("open");
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) changed();
    width = innerWidth;
  });
  addEventListener("beforeprint", () => figures.forEach((figure) => near.add(figure)) || refresh());
  changed();
  figures.forEach((figure) => watcher.observe(figure));
})();
