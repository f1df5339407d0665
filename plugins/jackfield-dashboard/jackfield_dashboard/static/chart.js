// A chart over time, drawn as SVG, with words for those who do not see it and a table for those who want figures.

import { h, set, svg, write } from "./dom.js";
import { plural, seconds, time } from "./format.js";

const HEIGHT = 132;
const DIGIT = 6.2; // how wide one is in the labels of the axis
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 20;
const GAP = 5; // seconds without a sample: the line is broken there
const ROWS = 10; // of the table

// A round number that is no smaller.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 2.5, 4, 5, 8, 10].find((step) => step * power >= value * 0.999999);
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

export class Chart {
  // Each of series has a label, values (points to [at, value]) and perhaps dots: true. format writes values; floor is
  // the least that the vertical axis reaches up to.
  constructor(title, series, format, floor) {
    Object.assign(this, { title, series, format, floor });
    this.points = series.map(() => []);
    this.grid = svg("g", { class: "grid" });
    this.lines = svg("g");
    this.pointer = svg("line", { class: "pointer", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    this.picture = svg("svg", { class: "chart", role: "img", height: HEIGHT }, this.grid, this.lines, this.pointer);
    this.readout = h("p", { class: "readout", "aria-hidden": "true", hidden: true });
    this.body = h("tbody");
    this.table = this.figures();
    this.element = h("div", { class: "plot" }, this.picture, this.readout, this.legend(), this.table);
    this.width = 0;
    this.left = 0;
    new ResizeObserver(([{ contentRect }]) => this.resize(contentRect.width)).observe(this.element);
    this.picture.addEventListener("pointermove", (event) => this.point(event));
    this.picture.addEventListener("pointerleave", () => this.point(null));
    this.table.addEventListener("toggle", () => this.tabulate());
  }

  legend() {
    if (this.series.length < 2) return "";
    const items = this.series.map(({ label }, index) => h("li", {}, swatch(index), label));
    return h("ul", { class: "legend", "aria-hidden": "true" }, ...items);
  }

  figures() {
    const columns = this.series.map(({ label }) => h("th", { scope: "col", class: "number" }, label));
    const head = h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Until"), ...columns));
    const hidden = h("span", { class: "hidden" }, ` of ${this.title}`);
    const caption = h("caption", { class: "hidden" }, this.title);
    const table = h("div", { class: "scroll" }, h("table", {}, caption, head, this.body));
    return h("details", { class: "figures" }, h("summary", {}, "Figures", hidden), table);
  }

  resize(width) {
    this.width = Math.floor(width);
    set(this.picture, "viewBox", `0 0 ${this.width} ${HEIGHT}`);
    if (this.now !== undefined) this.draw();
  }

  // points: for each series, [at, value] from old to new. now: the right end, on the same clock; wall: the same in
  // seconds since 1970.
  show(points, now, wall, span) {
    Object.assign(this, { now, wall, span });
    this.points = points.map((all) => all.filter(([at]) => at >= now - span));
    this.draw();
    this.tabulate();
    set(this.picture, "aria-label", this.words());
  }

  x = (at) => this.left + (this.width - this.left - RIGHT) * (1 - (this.now - at) / this.span);

  y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / this.top);

  draw() {
    if (!this.width) return;
    const highest = Math.max(0, ...this.points.flat().map(([, value]) => value));
    this.top = ceiling(Math.max(highest, this.floor));
    this.left = 10 + DIGIT * Math.max(...this.levels().map((value) => this.format(value).length));
    this.grid.replaceChildren(...this.axes());
    this.lines.replaceChildren(...this.series.flatMap((one, index) => this.line(one, index)));
  }

  levels = () => [0, this.top / 2, this.top];

  axes() {
    const right = this.width - RIGHT;
    const bottom = HEIGHT - 5;
    const levels = this.levels().flatMap((value) => [
      svg("line", { x1: this.left, x2: right, y1: this.y(value), y2: this.y(value) }),
      svg("text", { x: this.left - 6, y: this.y(value) + 4, "text-anchor": "end" }, this.format(value)),
    ]);
    const from = svg("text", { x: this.left, y: bottom }, `${seconds(this.span)} ago`);
    return [...levels, from, svg("text", { x: right, y: bottom, "text-anchor": "end" }, "now")];
  }

  line({ dots }, index) {
    const points = this.points[index];
    if (!points.length) return [];
    const place = ([at, value]) => `${this.x(at).toFixed(1)} ${this.y(value).toFixed(1)}`;
    if (dots) return [svg("path", { class: `dots series-${index}`, d: points.map((one) => `M${place(one)}h0`).join("") })];
    let path = "";
    points.forEach((one, i) => (path += (i && one[0] - points[i - 1][0] <= GAP ? "L" : "M") + place(one)));
    const parts = [svg("path", { class: `line series-${index}`, d: path })];
    if (this.series.length === 1) parts.unshift(svg("path", { class: `area series-${index}`, d: this.area(points) }));
    return parts;
  }

  area(points) {
    const ground = this.y(0);
    const along = points.map(([at, value]) => `L${this.x(at).toFixed(1)} ${this.y(value).toFixed(1)}`).join("");
    return `M${this.x(points[0][0]).toFixed(1)} ${ground}${along}L${this.x(points.at(-1)[0]).toFixed(1)} ${ground}Z`;
  }

  words() {
    const parts = this.series.map(({ label, dots }, index) => {
      const values = this.points[index].map(([, value]) => value);
      if (!values.length) return `${label}: nothing yet`;
      const range = `lowest ${this.format(Math.min(...values))}, highest ${this.format(Math.max(...values))}`;
      return dots
        ? `${label}: ${plural(values.length, "request")}, ${range}`
        : `${label}: now ${this.format(values.at(-1))}, ${range}`;
    });
    return `${this.title}, last ${seconds(this.span)}. ${parts.join(". ")}.`;
  }

  tabulate() {
    if (!this.table.open || this.now === undefined) return;
    const step = this.span / ROWS;
    const rows = Array.from({ length: ROWS }, (_, i) => this.row(this.now - i * step, step));
    while (this.body.rows.length < ROWS) this.body.append(h("tr", {}, ...rows[0].map(cell)));
    rows.forEach((texts, i) => texts.forEach((text, j) => write(this.body.rows[i].cells[j], text)));
  }

  // The mean of each series in the seconds before.
  row(end, step) {
    const within = this.points.map((all) => all.filter(([at]) => at > end - step && at <= end).map(([, value]) => value));
    return [time(this.wall - (this.now - end)), ...within.map((values) => this.format(values.length ? mean(values) : null))];
  }

  // What there was at the time under the pointer.
  point(event) {
    const inside = event && event.offsetX >= this.left && event.offsetX <= this.width - RIGHT && this.now !== undefined;
    set(this.pointer, "visibility", inside ? "visible" : "hidden");
    this.readout.hidden = !inside;
    if (!inside) return;
    const at = this.now - this.span * (1 - (event.offsetX - this.left) / (this.width - this.left - RIGHT));
    set(this.pointer, "x1", event.offsetX);
    set(this.pointer, "x2", event.offsetX);
    const values = this.series.map(({ label }, index) => `${label} ${this.format(nearest(this.points[index], at, this.span))}`);
    write(this.readout, [time(this.wall - (this.now - at)), ...values].join(" · "));
  }
}

function nearest(points, at, span) {
  let best = null;
  for (const point of points) if (!best || Math.abs(point[0] - at) < Math.abs(best[0] - at)) best = point;
  return best && Math.abs(best[0] - at) < Math.max(2, span / 40) ? best[1] : null;
}

function cell(_, index) {
  return index ? h("td", { class: "number" }) : h("th", { scope: "row" });
}

function swatch(index) {
  const line = svg("line", { class: `line series-${index}`, x1: 1, x2: 19, y1: 5, y2: 5 });
  return svg("svg", { width: 20, height: 10 }, line);
}
