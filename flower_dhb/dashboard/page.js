"use strict";
// Draws what the server tells. Whatever is shown as text goes through textContent.
(() => {
  const connection = document.getElementById("connection"), place = document.getElementById("views");
  const sections = new Map();
  const put = (element, values) => {
    for (const [key, value] of Object.entries(values)) {
      if (element.getAttribute(key) !== String(value)) element.setAttribute(key, value);
    }
    return element;
  };
  const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };
  const svg = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);
  const fill = (parent, count, make) => {  // as many children as there are things to show
    while (parent.children.length > count) parent.lastChild.remove();
    while (parent.children.length < count) parent.append(make());
    return parent.children;
  };
  const graph = (figure, found) => {
    figure.hidden = !found;
    if (!found) return;
    put(figure.querySelector("svg"), { "aria-label": found.text });
    const lines = fill(figure.querySelector(".lines"), found.lines.length, () => svg("line"));
    found.lines.forEach(([name, x1, y1, x2, y2], i) => put(lines[i], { class: name, x1, y1, x2, y2 }));
    const dots = fill(figure.querySelector(".dots"), found.dots.length, () => {
      const dot = svg("g");
      dot.append(svg("rect"), svg("text"));
      return dot;
    });
    found.dots.forEach(([name, x, y, text], i) => {
      const half = found.size / 2;
      put(dots[i].firstChild, { class: name, x: x - half, y: y - half, width: found.size,
        height: found.size, rx: name ? 0 : half });
      say(put(dots[i].lastChild, { x, y }), text);
    });
  };
  const chart = (figure, found) => {
    figure.hidden = !found;
    if (!found) return;
    say(figure.firstElementChild, found.title);
    put(figure.querySelector("svg"), { "aria-label": found.text });
    for (const name of ["line", "band"]) put(figure.querySelector(`.${name}`), { points: found[name] });
    const labels = fill(figure.querySelector(".axes"), found.labels.length, () => svg("text"));
    found.labels.forEach(([x, y, anchor, text], i) =>
      say(put(labels[i], { x, y, "text-anchor": anchor }), text));
  };
  const draw = ({ views, error }) => {
    if (error) say(connection, error);
    for (const [name, section] of sections) {
      if (!views.some((view) => view.name === name)) { section.remove(); sections.delete(name); }
    }
    for (const view of [...views].reverse()) {  // the newest run is put before all others
      if (!sections.has(view.name)) {
        sections.set(view.name, document.getElementById("view").content.cloneNode(true).firstElementChild);
        place.prepend(sections.get(view.name));
      }
      const section = sections.get(view.name);
      say(section.querySelector("h2"), view.name);
      say(section.querySelector(".sentence"), view.sentence);
      graph(section.querySelector(".graph"), view.graph);
      chart(section.querySelector(".chart"), view.chart);
      const items = fill(section.querySelector(".warnings"), view.warnings.length, () => document.createElement("li"));
      view.warnings.forEach((text, i) => say(items[i], text));
      const rows = fill(section.querySelector("tbody"), view.rows.length, () => {
        const row = document.createElement("tr");
        row.append(...view.rows[0].slice(1).map(() => document.createElement("td")));
        return row;
      });
      view.rows.forEach(([name, ...cells], i) => {
        rows[i].className = name;
        cells.forEach((text, j) => say(rows[i].children[j], text));
      });
    }
    document.documentElement.dataset.drawn = "yes";
  };
  const source = new EventSource("events");
  source.onopen = () => say(connection, "connected: this page follows by itself");
  source.onerror = () => say(connection, "the dashboard does not answer; what follows is old");
  source.onmessage = ({ data }) => draw(JSON.parse(data));
})();
