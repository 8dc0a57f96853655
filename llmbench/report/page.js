"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [first, last] = data.span;
  const WIDTH = 1000;
  const LANES = 40;
  let shown = [first, last]; // seconds of the plan that the time charts show
  let zoomed = false;
  let page = 0;

  // light and dark
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  if (location.hash === "#dark" || location.hash === "#light") root.dataset.theme = location.hash.slice(1);
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; });
  document.querySelectorAll(".tools").forEach((tools) => { tools.hidden = false; });

  // axes
  const nice = (width) => {
    const power = 10 ** Math.floor(Math.log10(width));
    return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= width * (1 - 1e-9));
  };
  const labels = (low, high, length) => {
    const step = nice((high - low) / Math.max(2, Math.min(6, length / 70)));
    const found = [];
    for (let n = Math.ceil(low / step - 1e-9); n <= Math.floor(high / step + 1e-9); n += 1) {
      found.push([Number((n * step).toPrecision(10)), (100 * (n * step - low)) / (high - low)]);
    }
    return found;
  };
  const axis = (below, low, high) => {
    below.replaceChildren(...labels(low, high, below.clientWidth).map(([value, place]) => {
      const mark = document.createElement("span");
      mark.style.left = `${place}%`;
      mark.textContent = value;
      return mark;
    }));
    // what would stand in another's place, or over the edge
    let free = -Infinity;
    const edge = below.getBoundingClientRect();
    [...below.children].forEach((mark) => {
      const box = mark.getBoundingClientRect();
      if (box.left < free + 4 || box.right > edge.right + 12) mark.remove();
      else free = box.right;
    });
  };
  const time = (µs) => (µs === null ? "–" : µs >= 1e6 ? `${(µs / 1e6).toPrecision(4)} s` : µs >= 1000 ? `${(µs / 1000).toPrecision(4)} ms` : `${µs} µs`);

  // time charts
  const charts = [...document.querySelectorAll("figure[data-x]")].map((figure) => {
    const [low, high] = figure.dataset.x.split(",").map(Number);
    return { figure, low, high, svg: figure.querySelector("svg"), below: figure.querySelector(".below"), zooms: "zooms" in figure.dataset, tip: data.tips[figure.id.slice(6)] };
  });
  const view = (chart) => (chart.zooms ? shown : [chart.low, chart.high]);
  const draw = () => {
    charts.forEach((chart) => {
      const [from, to] = view(chart);
      const span = chart.high - chart.low;
      const box = chart.svg.viewBox.baseVal;
      chart.svg.setAttribute("viewBox", `${((from - chart.low) / span) * WIDTH} 0 ${((to - from) / span) * WIDTH} ${box.height}`);
      axis(chart.below, from, to);
    });
    lanes();
  };
  const zoom = (from, to) => {
    const width = Math.min(last - first, Math.max(to - from, (last - first) / 5000));
    const start = Math.min(Math.max(first, from), last - width);
    shown = [start, start + width];
    zoomed = width < last - first;
    page = 0;
    draw();
  };
  document.querySelectorAll("[data-zoom]").forEach((button) => button.addEventListener("click", () => {
    const [from, to] = shown;
    const width = to - from;
    ({
      left: () => zoom(from - width / 2, to - width / 2),
      right: () => zoom(from + width / 2, to + width / 2),
      in: () => zoom(from + width / 4, to - width / 4),
      out: () => zoom(from - width / 2, to + width / 2),
      all: () => zoom(first, last),
    })[button.dataset.zoom]();
  }));

  // lanes: one for each request that is in what is shown
  const svg = document.getElementById("lanes");
  let laneAxis = [first, last];
  let laneRows = [];
  const rows = data.requests.rows; // index, due, then sent, first token, done from due; tokens; all in µs
  const ends = (row) => row[1] + (row[4] === null ? (row[2] || 0) : row[4]);
  const inside = () => rows.map((row, n) => n).filter((n) => !zoomed || (rows[n][1] <= shown[1] * 1e6 && ends(rows[n]) >= shown[0] * 1e6));
  const lanes = () => {
    if (!svg) return;
    const all = inside();
    page = Math.max(0, Math.min(page, Math.ceil(all.length / LANES) - 1));
    laneRows = all.slice(page * LANES, (page + 1) * LANES);
    const low = zoomed ? shown[0] : Math.min(...laneRows.map((n) => rows[n][1])) / 1e6;
    const high = zoomed ? shown[1] : Math.max(...laneRows.map((n) => ends(rows[n])), (low + 1e-3) * 1e6) / 1e6;
    laneAxis = [low, high];
    const place = (µs) => (((µs / 1e6) - low) / (high - low)) * WIDTH;
    const paths = { wait: "", a: "", c: "", bad: "" };
    laneRows.forEach((n, lane) => {
      const [, due, sent, token, done] = rows[n];
      const bar = (kind, from, to) => {
        const x = Math.max(0, place(from));
        paths[kind] += `M${x.toFixed(2)} ${lane * 10 + 1.5}H${Math.max(x + 1, Math.min(WIDTH, place(to))).toFixed(2)}v7H${x.toFixed(2)}Z`;
      };
      if (sent === null) { bar("bad", due, due); return; }
      if (sent > 0) bar("wait", due, due + sent);
      if (data.requests.status[n] !== "a") { bar("bad", due + sent, due + (done === null ? (high * 1e6 - due) : done)); return; }
      bar("a", due + sent, due + (token === null ? done : token));
      if (token !== null) bar("c", due + token, due + done);
    });
    const height = Math.max(1, laneRows.length) * 10;
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
    svg.parentElement.style.gridTemplateRows = `${Math.max(4, laneRows.length * 0.75)}rem 1.3rem`;
    svg.replaceChildren(...Object.entries(paths).filter(([, path]) => path).map(([kind, path]) => {
      const drawn = document.createElementNS("http://www.w3.org/2000/svg", "path");
      drawn.setAttribute("class", `bars ${kind}`);
      drawn.setAttribute("d", path);
      return drawn;
    }));
    const left = svg.parentElement.querySelector(".left");
    const every = laneRows.length > 10 ? 5 : 1;
    left.replaceChildren(...laneRows.map((n, lane) => [n, lane]).filter(([, lane]) => lane % every === 0).map(([n, lane]) => {
      const mark = document.createElement("span");
      mark.style.bottom = `${100 - (100 * (lane + 0.5)) / Math.max(1, laneRows.length)}%`;
      mark.textContent = rows[n][0];
      return mark;
    }));
    axis(svg.parentElement.querySelector(".below"), low, high);
    document.getElementById("lanes-shown").textContent = all.length ? `requests ${page * LANES + 1} to ${page * LANES + laneRows.length} of ${all.length}${zoomed ? " in the part of time that is shown" : ""}, by the instant at which they were due` : "no request in the part of time that is shown";
  };
  document.querySelectorAll("[data-page]").forEach((button) => button.addEventListener("click", () => { page += Number(button.dataset.page); lanes(); }));

  // tooltips
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const tell = (text, event) => {
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${event.clientY + 14 + tip.offsetHeight > innerHeight ? event.clientY - 10 - tip.offsetHeight : event.clientY + 14}px`;
  };
  const status = { a: "", f: "\nfailed", u: "\nunfinished" };
  const request = (n) => {
    const [index, due, sent, token, done, tokens] = rows[n];
    return `request ${index}, due at ${(due / 1e6).toFixed(3)} s\nclient wait ${time(sent)}${token === null ? "" : `\nTTFT ${time(token)}`}\n${data.requests.status[n] === "a" ? "E2EL" : "ended after"} ${time(done)}, ${tokens} tokens${status[data.requests.status[n]]}`;
  };
  const nearest = (chart, event) => {
    const box = chart.svg.getBoundingClientRect();
    const [from, to] = view(chart);
    let best = -1;
    let least = 24 ** 2;
    const top = Number(chart.figure.dataset.top || 0);
    rows.forEach((row, n) => {
      const x = box.left + ((row[1] / 1e6 - from) / (to - from)) * box.width;
      if (Math.abs(x - event.clientX) > 24) return;
      const took = data.requests.status[n] === "a" ? (chart.tip.metric === "ttft" ? row[3] : row[4]) : null;
      const y = took === null ? box.top + 6 : box.bottom - ((took / 1e6) * chart.tip.factor * box.height) / chart.tip.high;
      const far = (x - event.clientX) ** 2 + (y - event.clientY) ** 2;
      if (far < least) { least = far; best = n; }
    });
    return best < 0 ? "" : request(best);
  };
  const under = (chart, event) => {
    if (!chart.tip) return "";
    const box = chart.svg.getBoundingClientRect();
    const [from, to] = view(chart);
    const at = from + ((event.clientX - box.left) / box.width) * (to - from);
    if (chart.tip.kind === "requests") return nearest(chart, event);
    const edges = chart.tip.edges || chart.tip.x;
    let n = edges.findIndex((edge) => edge > at) - 1;
    if (n < 0) n = edges.length - 2;
    const unit = chart.tip.unit || "s";
    const where = chart.tip.kind === "bins" ? `${edges[n]} to ${edges[n + 1]} ${unit}` : `${edges[n]} s`;
    return [where, ...chart.tip.series.map(([name, values]) => `${name}: ${values[n]}`)].join("\n");
  };

  // dragging chooses a part of the time
  const chosen = document.createElement("div");
  chosen.id = "chosen";
  chosen.hidden = true;
  document.body.append(chosen);
  charts.forEach((chart) => {
    let start = null;
    chart.svg.addEventListener("pointerdown", (event) => { if (chart.zooms && event.pointerType === "mouse") { start = event.clientX; chart.svg.setPointerCapture(event.pointerId); } });
    chart.svg.addEventListener("pointermove", (event) => {
      tell(start === null ? under(chart, event) : "", event);
      if (start === null) return;
      const box = chart.svg.getBoundingClientRect();
      chosen.hidden = false;
      Object.assign(chosen.style, { left: `${Math.min(start, event.clientX)}px`, width: `${Math.abs(event.clientX - start)}px`, top: `${box.top}px`, height: `${box.height}px` });
    });
    chart.svg.addEventListener("pointerup", (event) => {
      const box = chart.svg.getBoundingClientRect();
      const [from, to] = view(chart);
      const at = (x) => from + ((x - box.left) / box.width) * (to - from);
      if (start !== null && Math.abs(event.clientX - start) > 5) zoom(at(Math.min(start, event.clientX)), at(Math.max(start, event.clientX)));
      start = null;
      chosen.hidden = true;
    });
    chart.svg.addEventListener("pointerleave", (event) => tell("", event));
    if (chart.zooms) chart.svg.addEventListener("dblclick", () => zoom(first, last));
  });
  if (svg) {
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const n = laneRows[Math.floor(((event.clientY - box.top) / box.height) * laneRows.length)];
      tell(n === undefined ? "" : request(n), event);
    });
    svg.addEventListener("pointerleave", (event) => tell("", event));
  }
  addEventListener("resize", draw);
  draw();
})();
