const NS = "http://www.w3.org/2000/svg";
const DATA = JSON.parse(document.getElementById("data").textContent);
const SHAPES = {
  onnx: "M-4.6 0a4.6 4.6 0 1 0 9.2 0a4.6 4.6 0 1 0-9.2 0Z", litert: "M-4.2-4.2h8.4v8.4h-8.4Z", keras: "M0-5.6L5.6 0L0 5.6L-5.6 0Z",
  openvino: "M0-5.4L5.2 4.2H-5.2Z", other: "M-1.6-5h3.2v3.4H5v3.2H1.6V5h-3.2V1.6H-5v-3.2h3.4Z",
};
const node = (name, attributes = {}, parent = null, text = "") => {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  if (parent) parent.append(element);
  return element;
};
const number = (value) => {
  if (value === 0) return "0";
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
  return value.toLocaleString("en", { maximumFractionDigits: Math.min(digits, 6) });
};

/* An axis: where a value lies between 0 and 1, and which values get a line. Logarithmic where all are positive and differ much. */
function scale(values, accuracyLike) {
  let low = Math.min(...values), high = Math.max(...values);
  if (low > 0 && high / low >= 4 && !accuracyLike) {
    const room = (high / low) ** 0.09;
    [low, high] = [low / room, high * room];
    const ticks = [], decades = Math.log10(high / low);
    const steps = decades < 1.3 ? [1, 2, 5] : decades < 2.6 ? [1, 3] : [1];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const step of steps) { const tick = step * 10 ** power; if (tick >= low && tick <= high) ticks.push(tick); }
    return { at: (value) => Math.log(value / low) / Math.log(high / low), ticks };
  }
  const room = Math.max((high - low) * 0.12, Math.abs(high) * 0.01, 1e-9);
  [low, high] = [low - room, high + room];
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) ticks.push(Math.abs(tick) < step / 1e6 ? 0 : tick);
  return { at: (value) => (value - low) / (high - low), ticks };
}

/* The Pareto front, of those that may be taken: what strayed below its floor is shown, and beats nobody. */
function ahead(points, x, y) {
  const cost = (point, axis) => (axis.better === "more" ? -1 : 1) * point.figures[axis.key], able = points.filter((p) => p.served);
  return able.filter((a) => !able.some((b) =>
    cost(b, x) <= cost(a, x) && cost(b, y) <= cost(a, y) && (cost(b, x) < cost(a, x) || cost(b, y) < cost(a, y))));
}

/* Whether a point owes its place to a lead in accuracy over one that costs no more, within their paired intervals; of two
   models, within those of their accuracies. */
function tied(point, points, x, y) {
  if (!(y.key in point.interval) || x.key in point.interval) return false;
  const half = (one, key) => (one.interval[key].length ? (one.interval[key][1] - one.interval[key][0]) / 2 : 0);
  const cost = (one) => (x.better === "more" ? -1 : 1) * one.figures[x.key];
  return points.some((other) => {
    const key = other.model === point.model ? "change_points" : y.key, lead = point.figures[y.key] - other.figures[y.key];
    return other !== point && other.served && cost(other) <= cost(point) && lead <= Math.hypot(half(point, key), half(other, key));
  });
}

class Explorer {
  constructor(figure) {
    this.figure = figure;
    this.group = DATA.groups[Number(figure.dataset.group)];
    this.canvas = figure.querySelector(".canvas");
    this.shown = new Set(this.group.points.map((point) => point.id));
    this.axes = {};
    [...figure.querySelectorAll("select")].forEach((select) => {
      for (const axis of DATA.axes) select.add(new Option(`${axis.title} (${axis.unit})`, axis.key));
      select.value = DATA.first[select.dataset.axis === "x" ? 0 : 1];
      this.axes[select.dataset.axis] = select;
      select.addEventListener("change", () => this.draw());
    });
    this.apart = figure.querySelector(".apart input");
    this.apart.addEventListener("change", () => this.draw());
    this.apart.parentElement.hidden = new Set(this.group.points.map((point) => point.model)).size < 2;
    this.legend();
    this.tip = document.createElement("div");
    this.tip.className = "tip";
    this.tip.hidden = true;
    figure.append(this.tip);
    new ResizeObserver(() => { if (this.canvas.clientWidth !== this.width) this.draw(); }).observe(this.canvas);
    this.draw();
  }

  /* Shapes are formats, filling is precision; colours are named beside the points. */
  legend() {
    const place = this.figure.querySelector(".legend");
    const key = (text, draw) => {
      const item = document.createElement("span"), svg = node("svg", { width: 22, height: 16, viewBox: "-11 -8 22 16" });
      draw(svg);
      item.append(svg, text);
      place.append(item);
    };
    const shape = (format, style) => (svg) => node("path", { d: SHAPES[format] || SHAPES.other, style: `stroke: var(--muted); ${style}` }, svg);
    const hollow = "fill: var(--surface)", full = "fill: var(--muted)";
    for (const format of new Set(this.group.points.map((p) => p.format))) key(format, shape(format, hollow));
    const filled = [...new Set(this.group.points.map((p) => p.precision))].filter((name) => name !== "fp32");
    if (filled.length) key(filled.join(", "), shape("onnx", full));
    if (this.group.points.some((p) => !p.served)) key("faint: below floor", (svg) => { shape("onnx", `${full}; opacity: .5`)(svg); });
    key("choice", (svg) => { node("circle", { r: 7.2, class: "ring" }, svg); });
    key("Pareto front", (svg) => { node("line", { x1: -11, x2: 11, class: "front-line" }, svg); });
  }

  draw() {
    const x = DATA.axes.find((axis) => axis.key === this.axes.x.value), y = DATA.axes.find((axis) => axis.key === this.axes.y.value);
    const points = this.group.points.filter((p) => this.shown.has(p.id) && x.key in p.figures && y.key in p.figures);
    const models = [...new Set(points.map((point) => point.model))];
    const apart = this.apart.checked && models.length > 1;
    const parts = apart ? models.map((model) => points.filter((point) => point.model === model)) : [points];
    this.width = this.canvas.clientWidth || 900;
    this.hide();
    this.canvas.replaceChildren();
    const together = y.key === "change_points" ? this.spread(points, y) : null;
    const fronts = parts.map((part) => this.panel(part, x, y, together || this.spread(part, y), apart ? part[0].model : ""));
    this.tell(fronts.flat(), points, x, y, apart);
  }

  /* What the vertical axis has to hold. */
  spread(points, y) {
    return points.flatMap((point) => [point.figures[y.key], ...(point.interval[y.key] || [])]);
  }

  /* One drawing, of all points or of those of one model, which it is then named after; its front. */
  panel(points, x, y, spread, model) {
    const width = this.width, height = Math.round(Math.max(model ? 250 : 340, Math.min(520, width * (model ? 0.24 : 0.46))));
    const frame = { left: 54, right: width - 14, top: 30, bottom: height - 44 };
    const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group",
      "aria-label": `${model ? `${model}: ` : ""}${y.title} against ${x.title}; the same figures are in the table` }, this.canvas);
    if (!points.length) { node("text", { x: width / 2, y: height / 2, class: "axis", "text-anchor": "middle" }, svg, "nothing to show"); return []; }
    const front = ahead(points, x, y), signed = y.unit === "points" || y.unit === "%";
    const across = scale(points.map((p) => p.figures[x.key]), x.unit === "%" || x.unit === "points"), up = scale(spread, signed);
    const px = (value) => frame.left + across.at(value) * (frame.right - frame.left);
    const py = (value) => frame.bottom - up.at(value) * (frame.bottom - frame.top);
    this.grid(svg, frame, across, up, px, py, x, y);
    if (model) node("text", { x: frame.right, y: 14, class: "name ahead", "text-anchor": "end",
      style: `fill: var(--model-${points[0].colour})` }, svg, model);
    const steps = this.step(svg, frame, front, px, py, x, y);
    const places = points.map((p) => ({ point: p, x: px(p.figures[x.key]), y: py(p.figures[y.key]), front: front.includes(p) }));
    for (const place of places) {
      const [low, high] = place.point.interval[y.key] || [];
      if (low !== undefined) node("line", { x1: place.x, x2: place.x, y1: py(low), y2: py(high), class: "interval",
        style: `stroke: var(--model-${place.point.colour})` }, svg);
    }
    this.names(svg, frame, places, steps);
    const order = [...places].sort((a, b) => a.x - b.x);
    for (const place of order) this.mark(svg, place);
    return front;
  }

  grid(svg, frame, across, up, px, py, x, y) {
    const better = (axis) => (axis.better === "less" ? ", less is better" : axis.better === "more" ? ", more is better" : "");
    for (const tick of up.ticks) {
      node("line", { x1: frame.left, x2: frame.right, y1: py(tick), y2: py(tick), class: "rule-line" }, svg);
      node("text", { x: frame.left - 8, y: py(tick) + 4, class: "axis", "text-anchor": "end" }, svg, number(tick));
    }
    for (const tick of across.ticks) {
      node("line", { x1: px(tick), x2: px(tick), y1: frame.top, y2: frame.bottom, class: "rule-line" }, svg);
      node("text", { x: px(tick), y: frame.bottom + 18, class: "axis", "text-anchor": "middle" }, svg, number(tick));
    }
    node("text", { x: 4, y: 14, class: "axis title" }, svg, `${y.title}, ${y.unit}${better(y)}`);
    node("text", { x: frame.right, y: frame.bottom + 38, class: "axis title", "text-anchor": "end" }, svg, `${x.title}, ${x.unit}${better(x)}`);
  }

  /* The front as steps towards the worse side of x: what lies behind it is beaten by a point on it. */
  step(svg, frame, front, px, py, x, y) {
    const sign = x.better === "more" ? -1 : 1;
    const sorted = [...front].sort((a, b) => sign * (a.figures[x.key] - b.figures[x.key]));
    const corners = [], end = sign > 0 ? frame.right : frame.left;
    for (const point of sorted) {
      const left = px(point.figures[x.key]), top = py(point.figures[y.key]);
      if (corners.length) corners.push([left, corners.at(-1)[1]]);
      corners.push([left, top]);
    }
    if (!corners.length) return [];
    corners.push([end, corners.at(-1)[1]]);
    node("path", { d: "M" + corners.map((corner) => corner.join(" ")).join("L"), class: "front-line" }, svg);
    return corners.slice(1).map(([left, top], i) => [Math.min(left, corners[i][0]) - 2, Math.min(top, corners[i][1]) - 2,
      Math.max(left, corners[i][0]) + 2, Math.max(top, corners[i][1]) + 2]);
  }

  /* Names beside points: over no point and no other name, and over the front only where there is no other room. */
  names(svg, frame, places, steps) {
    const hits = (box, others) => others.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1]);
    const boxes = places.map((p) => [p.x - 7, p.y - 7, p.x + 7, p.y + 7]);
    const several = new Set(places.map((p) => p.point.model)).size > 1;
    const rank = (p) => (p.point.chosen ? 0 : p.front ? 1 : 2);
    const wanted = this.width < 600 ? places.filter((p) => rank(p) < 2) : [...places];
    for (const place of wanted.sort((a, b) => rank(a) - rank(b))) {
      const text = node("text", { class: "name" + (place.front || place.point.chosen ? " ahead" : ""),
        style: `fill: var(--model-${place.point.colour})` }, svg, (several ? place.point.model + " " : "") + place.point.version);
      const { width, height } = text.getBBox();
      const options = [[11, 4], [-11 - width, 4], [9, -9], [9, 18], [-9 - width, -9], [-9 - width, 18], [-width / 2, -13], [-width / 2, 22]];
      const around = ([left, base]) => [left - 2, base - height + 4, left + width + 2, base + 3];
      const room = options.map(([dx, dy]) => [place.x + dx, place.y + dy]).filter((spot) => {
        const box = around(spot);
        const inside = box[0] >= frame.left && box[2] <= frame.right + 10 && box[1] >= frame.top - 10 && box[3] <= frame.bottom;
        return inside && !hits(box, boxes);
      });
      const free = room.find((spot) => !hits(around(spot), steps)) || room[0];
      if (!free) { text.remove(); continue; }
      text.setAttribute("x", free[0]);
      text.setAttribute("y", free[1]);
      boxes.push(around(free));
    }
  }

  mark(svg, place) {
    const p = place.point, words = p.card.map(([name, value]) => (name ? `${name} ${value}` : value)).join("; ");
    const mark = node("g", { transform: `translate(${place.x} ${place.y})`, class: "mark" + (p.served ? "" : " faint"), tabindex: 0,
      role: "img", "aria-label": `${p.model} ${p.version}: ${words}` }, svg);
    node("circle", { r: 13, class: "reach" }, mark);
    if (p.chosen) node("circle", { r: 9.5, class: "ring" }, mark);
    node("path", { d: SHAPES[p.format] || SHAPES.other, style:
      `stroke: var(--model-${p.colour}); fill: ${p.precision === "fp32" ? "var(--surface)" : `var(--model-${p.colour})`}` }, mark);
    for (const event of ["pointerenter", "focus"]) mark.addEventListener(event, () => this.show(place, mark));
    for (const event of ["pointerleave", "blur"]) mark.addEventListener(event, () => this.hide());
    mark.addEventListener("keydown", (event) => { if (event.key === "Escape") this.hide(); else if (event.key === "Enter") this.jump(p); });
    mark.addEventListener("click", () => this.jump(p));
  }

  show(place, mark) {
    const p = place.point, head = document.createElement("strong"), list = document.createElement("dl");
    head.textContent = `${p.model} ${p.version}`;
    for (const [name, value] of p.card) {
      const dt = document.createElement("dt"), dd = document.createElement("dd");
      [dt.textContent, dd.textContent] = [name, value];
      if (name) list.append(dt); else dd.className = "verdict";
      list.append(dd);
    }
    this.tip.replaceChildren(head, list);
    this.tip.style.setProperty("--model", `var(--model-${p.colour})`);
    this.tip.hidden = false;
    const box = mark.getBoundingClientRect(), home = this.figure.getBoundingClientRect(), tip = this.tip.getBoundingClientRect();
    let left = box.right - home.left + 6;
    if (left + tip.width > home.width - 8) left = Math.max(8, box.left - home.left - tip.width - 6);
    const top = Math.min(Math.max(8, box.top - home.top - tip.height / 3), Math.max(8, home.height - tip.height - 8));
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${top}px`;
  }

  hide() { this.tip.hidden = true; }

  jump(point) {
    const row = document.getElementById(point.id);
    row.scrollIntoView({ block: "center", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    row.classList.add("found");
    setTimeout(() => row.classList.remove("found"), 1600);
  }

  /* Apart, every front is of its own model. */
  tell(front, points, x, y, apart) {
    const named = [...front].sort((a, b) => a.model.localeCompare(b.model) * apart || a.figures[x.key] - b.figures[x.key])
      .map((p) => {
        const rivals = apart ? points.filter((other) => other.model === p.model) : points, tie = tied(p, rivals, x, y) ? ", a tie" : "";
        return `${p.model} ${p.version} (${number(p.figures[x.key])} ${x.unit}, ${number(p.figures[y.key])} ${y.unit}${tie})`;
      });
    const title = apart ? "Pareto front of each model" : "Pareto front";
    this.figure.querySelector(".front").textContent = named.length ? `${title}: ${named.join("; ")}.` : "";
  }
}

/* Without a measured point there is no plot; the table below tells the reasons. */
const explorers = [...document.querySelectorAll(".explore")].map((figure) => {
  figure.hidden = DATA.groups[Number(figure.dataset.group)].points.length === 0;
  return figure.hidden ? { shown: new Set(), draw() {} } : new Explorer(figure);
});

/* The filter narrows the table below it and the plot above it. */
for (const form of document.querySelectorAll(".filter")) {
  const group = DATA.groups[Number(form.dataset.group)], explorer = explorers[Number(form.dataset.group)];
  const table = form.nextElementSibling.querySelector("table"), rows = [...table.tBodies[0].rows];
  const byId = new Map(group.points.map((point) => [point.id, point]));
  const off = { model: new Set(), format: new Set(), precision: new Set() };
  form.hidden = rows.length < 2;
  const search = form.querySelector("input"), output = form.querySelector("output");
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    explorer.shown.clear();
    let count = 0;
    for (const row of rows) {
      const point = byId.get(row.id), text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word))
        && Object.entries(off).every(([key, names]) => (point ? !names.has(point[key]) : names.size === 0));
      row.hidden = !fits;
      if (fits) { count++; if (point) explorer.shown.add(point.id); }
    }
    output.textContent = count === rows.length ? "" : `${count} of ${rows.length}`;
    explorer.draw();
  };
  for (const key of Object.keys(off)) {
    const names = [...new Set(group.points.map((point) => point[key]))];
    if (names.length < 2) continue;
    const chips = document.createElement("span");
    chips.className = "chip-group";
    chips.setAttribute("role", "group");
    chips.setAttribute("aria-label", key);
    for (const name of names) {
      const chip = document.createElement("button");
      chip.type = "button";
      chip.textContent = name;
      chip.setAttribute("aria-pressed", "true");
      chip.addEventListener("click", () => {
        const now = chip.getAttribute("aria-pressed") !== "true";
        chip.setAttribute("aria-pressed", String(now));
        if (now) off[key].delete(name); else off[key].add(name);
        apply();
      });
      chips.append(chip);
    }
    form.querySelector(".chips").append(chips);
  }
  search.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
}
