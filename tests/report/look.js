const boxes = () => {
  const found = [];
  const texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode;
    if (!text.data.trim() || !text.parentElement.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    for (const box of range.getClientRects()) found.push([box, text.data.trim().slice(0, 30)]);
  }
  return found;
};
const overlaps = () => {
  const all = boxes(), bad = [];
  all.forEach(([a, one], i) => all.slice(i + 1).forEach(([b, other]) => {
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 2 && down > 4) bad.push(`${one} / ${other}`);
  }));
  return bad;
};
const empty = () => [...document.querySelectorAll("figure svg")].filter((svg) => {
  const drawn = [...svg.querySelectorAll("path:not(.grid)")].filter((path) => path.getAttribute("d").length > 3);
  return !drawn.length || svg.getBoundingClientRect().width < 100 || svg.getBoundingClientRect().height < 50;
}).map((svg) => svg.getAttribute("aria-label"));
const unlabelled = () => [...document.querySelectorAll(".below")].filter((axis) => axis.children.length < 2).length;
const look = () => ({ overlaps: overlaps(), empty: empty(), unlabelled: unlabelled(), wide: document.documentElement.scrollWidth - innerWidth });
const result = { whole: look(), charts: document.querySelectorAll("figure svg").length, tip: "", dark: [] };
const colour = () => getComputedStyle(document.body).backgroundColor;
result.dark.push(colour());
document.getElementById("theme")?.click();
result.dark.push(colour());
const point = (svg, kind, x) => { const box = svg.getBoundingClientRect(); svg.dispatchEvent(new PointerEvent(kind, { clientX: box.left + box.width * x, clientY: box.top + box.height / 2, bubbles: true })); };
document.querySelectorAll("figure svg").forEach((svg) => {
  point(svg, "pointermove", 0.3);
  result.tip += document.getElementById("tip").textContent;
  point(svg, "pointerleave", 0.3);
});
document.querySelectorAll("details").forEach((details) => { details.open = true; });
const lanes = document.getElementById("lanes");
result.first = lanes ? lanes.innerHTML.length : 0;
document.querySelector('[data-page="1"]')?.click();
result.second = lanes ? lanes.innerHTML.length : 0;
document.querySelector('[data-zoom="in"]')?.click();
document.querySelector('[data-zoom="in"]')?.click();
result.zoomed = look();
result.shown = document.getElementById("lanes-shown")?.textContent;
document.querySelector('[data-zoom="all"]')?.click();
result.resources = performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:"));
result.problems = problems;
const out = document.createElement("pre");
out.id = "result";
out.textContent = JSON.stringify(result);
document.body.replaceChildren(out);
