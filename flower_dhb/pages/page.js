"use strict";
// Draws the pictures of the page, in the colors of its style sheet. Whatever is shown as text
// goes through textContent, and expressions are interpreted, not compiled, so that the page's
// security policy can forbid both markup and code that come from a run.
(() => {
  const AXES = { r: "Round", s: "Seconds", m: "Megabytes between agents" };
  const figures = [...document.querySelectorAll("figure[data-picture]")].map((figure) => ({
    figure,
    chart: figure.querySelector(".chart > div"),
    now: figure.querySelector(".now"),
    slider: figure.querySelector("input[type=range]"),
    content: JSON.parse(figure.querySelector("script").textContent),
    view: null,
  }));
  let against = "r";

  const colored = (value, style) => {
    if (Array.isArray(value)) return value.map((each) => colored(each, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, each]) =>
        [key, key === "datasets" || key === "data" || key === "domain" || key === "sort"
          ? each : colored(each, style)]));
    }
    return typeof value === "string" && /^@[a-z]+(-\d)?$/.test(value)
      ? style.getPropertyValue(`--${value.slice(1)}`).trim() : value;
  };

  const onAxis = (spec) => {
    const all = spec.datasets.points.map((point) => point[against]).filter((x) => x !== null);
    const domain = [Math.min(...all), Math.max(...all)];
    for (const { encoding: { x } } of spec.layer) {
      if (x.field === "r") x.field = against;
      x.title = AXES[against];
      x.scale = { nice: false, domain };
    }
    return spec;
  };

  const config = (style) => {
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    return {
      background: null,
      font: "system-ui, sans-serif",
      view: { stroke: null },
      axis: {
        labelColor: color("muted"), titleColor: color("muted"), domainColor: color("line"),
        tickColor: color("line"), gridColor: color("line"), gridOpacity: 0.5, labelFontSize: 12,
        titleFontSize: 12, titleFontWeight: "normal",
      },
      legend: { labelColor: color("ink"), labelFontSize: 12 },
    };
  };

  const mark = (one, at) => {
    if (!one.view || !one.slider) return;
    const row = one.figure.querySelectorAll("tbody tr")[at];
    const heads = [...one.figure.querySelectorAll("thead th")].map((head) => head.textContent);
    if (!row) return;
    const cells = [...row.children].map((cell) => cell.textContent);
    const said = `Round ${cells[0]}: ` +
      cells.slice(1).map((cell, i) => `${heads[i + 1]} ${cell}`).join(", ");
    one.now.textContent = said;
    one.slider.setAttribute("aria-valuetext", said);
    const places = one.content.cursor[at].map((each) => each[against]).filter((x) => x !== null);
    one.view.data("cursor", places.map((x) => ({ x }))).run();
  };

  const draw = async (one) => {
    const style = getComputedStyle(document.documentElement);
    if (one.view) one.view.finalize();
    const copy = JSON.parse(JSON.stringify(one.content.spec));
    const spec = colored(one.content.cursor.length ? onAxis(copy) : copy, style);
    const result = await vegaEmbed(one.chart, spec, {
      ast: true, renderer: "svg", actions: false, defaultStyle: false, config: config(style),
      tooltip: (_handler, _event, _item, value) => {
        if (!one.slider) one.now.textContent = value ? String(value.text ?? value) : "";
      },
    });
    one.view = result.view;
    if (one.slider) {
      if (one.chosen !== undefined) mark(one, one.chosen);
      one.view.addEventListener("pointermove", (event) => {
        const left = one.chart.querySelector("svg").getBoundingClientRect().left;
        const inside = event.clientX - left - one.view.padding().left - one.view.origin()[0];
        const x = one.view.scale("x").invert(inside);
        let best = -1, nearest = Infinity;
        one.content.cursor.forEach((places, at) => {
          for (const place of places) {
            const away = place[against] === null ? Infinity : Math.abs(place[against] - x);
            if (away < nearest) { nearest = away; best = at; }
          }
        });
        if (best >= 0 && best !== one.chosen) {
          one.chosen = best;
          one.slider.value = best;
          mark(one, best);
        }
      });
    }
    one.figure.dataset.drawn = "yes";
  };

  const drawAll = async () => {
    for (const one of figures) {
      try {
        await draw(one);
      } catch (error) {
        one.now.textContent = "This browser could not draw the picture; its numbers are below.";
        console.error(error);
      }
    }
    document.documentElement.dataset.drawn = "yes";
  };

  for (const one of figures) {
    if (one.slider) {
      one.slider.addEventListener("input", () => {
        one.chosen = Number(one.slider.value);
        mark(one, one.chosen);
      });
    }
  }
  for (const choice of document.querySelectorAll("input[name=against]")) {
    choice.addEventListener("change", () => { against = choice.value; drawAll(); });
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll();
})();
