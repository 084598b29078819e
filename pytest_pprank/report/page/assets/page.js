// The page: the table of tests, the view of one test by the page's address, and the keys.
const views = new Map();
let current = null;

async function dataOf(anchor) {
  const text = document.getElementById(`data-${anchor}`).textContent;
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

async function open(anchor) {
  const section = document.querySelector(`.view[data-anchor="${CSS.escape(anchor)}"]`);
  document.getElementById("run").hidden = Boolean(section);
  for (const other of document.querySelectorAll(".view")) other.classList.toggle("open", other === section);
  current = null;
  if (!section) return;
  window.scrollTo(0, 0);
  const box = section.querySelector(".timeline");
  if (!box) return;
  if (!views.has(anchor)) {
    if (!("DecompressionStream" in window)) {
      box.textContent = "This browser is too old for timelines: it has no DecompressionStream. trace.json has the same events.";
      return;
    }
    views.set(anchor, new TimelineView(await dataOf(anchor), box));
  }
  current = views.get(anchor);
  current.lanes.draw();
  current.list.draw();
  document.body.dataset.ready = anchor;
}

function filterTests() {
  const wanted = document.getElementById("find-test").value.toLowerCase(), red = document.getElementById("only-red").checked;
  const rows = [...document.querySelectorAll("tr.test")];
  for (const row of rows) {
    const fits = row.textContent.toLowerCase().includes(wanted);
    row.hidden = !(fits && (!red || row.matches(".is-failed, .is-interrupted")));
  }
  for (const topology of document.querySelectorAll(".topology")) topology.hidden = !topology.querySelector("tr.test:not([hidden])");
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("tests-shown").textContent = shown === rows.length ? "" : `${shown} of ${rows.length}`;
}

function otherTest(step) {
  const anchors = [...document.querySelectorAll(".view")].map((view) => view.dataset.anchor);
  const here = anchors.indexOf(decodeURIComponent(location.hash.slice(1)));
  const next = anchors[here < 0 ? (step > 0 ? 0 : anchors.length - 1) : here + step];
  if (next) location.hash = next;
}

const KEYS = {
  "/": () => (current ? current.search : document.getElementById("find-test")).focus(),
  "?": () => document.getElementById("keys").showModal(),
  "[": () => otherTest(-1),
  "]": () => otherTest(1),
  n: () => current?.next(1),
  p: () => current?.next(-1),
  f: () => current?.follow(),
  z: () => current?.zoomToSelected(),
  "+": () => current?.lanes.zoom(0.5),
  "=": () => current?.lanes.zoom(0.5),
  "-": () => current?.lanes.zoom(2),
  0: () => current?.lanes.showAll(),
  ArrowLeft: () => current?.move(-1),
  ArrowRight: () => current?.move(1),
  ArrowUp: () => current?.cross(-1),
  ArrowDown: () => current?.cross(1),
  Escape: () => { if (current && current.lanes.selected >= 0) current.select(-1, false); else location.hash = ""; },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.matches("input, textarea");
  if (typing && event.key === "Enter" && current) { current.next(event.shiftKey ? -1 : 1); return; }
  if (typing && event.key === "Escape") { event.target.blur(); return; }
  // arrows scroll what has the focus and can be scrolled
  const scrolls = event.target.matches(".list, .panel, pre") && event.key.startsWith("Arrow");
  if (typing || scrolls || !(event.key in KEYS)) return;
  if (!current && event.key.startsWith("Arrow")) return;
  event.preventDefault();
  KEYS[event.key]();
});
document.querySelector(".help").addEventListener("click", KEYS["?"]);
document.getElementById("find-test").addEventListener("input", filterTests);
document.getElementById("only-red").addEventListener("change", filterTests);
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(button.previousElementSibling.textContent); button.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(button.previousElementSibling); }
  });
}
window.addEventListener("hashchange", () => open(decodeURIComponent(location.hash.slice(1))));
open(decodeURIComponent(location.hash.slice(1)));
