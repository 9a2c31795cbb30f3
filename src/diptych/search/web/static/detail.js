// One picture, large, with what is known of it.

import * as api from "./api.js";
import { $, bytes, count, el, icon, label, many, toast } from "./dom.js";
import * as grid from "./grid.js";

const dialog = $("detail"), picture = $("detail-picture");
let index = 0, listener = {};

export const listen = (handlers) => (listener = handlers);

export function open(at) {
  show(at);
  if (!dialog.open) dialog.showModal();
}

function show(at) {
  const item = grid.items[at];
  if (!item) return;
  index = at;
  const { row, id, version } = item;
  $("detail-broken").hidden = true;
  picture.hidden = false;
  picture.alt = grid.caption(item);
  picture.src = api.thumb(id, version, 1600);
  picture.style.maxWidth = row.width ? `${2 * row.width}px` : ""; // a small picture is not blown up into a blur
  picture.style.maxHeight = row.height ? `${2 * row.height}px` : "";
  $("detail-caption").textContent = grid.caption(item);
  $("detail-original").href = api.original(id);
  $("detail-copy").hidden = !row.text;
  pressed();
  $("previous").disabled = at === 0;
  $("following").disabled = at === grid.items.length - 1;
  folded(item);
  facts(item);
  if (at > grid.items.length - 5) listener.near?.();
}

picture.addEventListener("error", () => {
  picture.hidden = true;
  $("detail-broken").hidden = false;
  $("detail-broken").textContent = "This picture cannot be shown.";
  const at = index;
  fetch(picture.src).then((answer) => answer.json()).then(({ error }) => {
    if (at === index && error) $("detail-broken").textContent = `This picture cannot be shown: ${error}`;
  }).catch(() => {});
});

function folded({ folded }) {
  $("folded").hidden = !folded.length;
  $("folded-title").textContent = `${many(folded.length, "picture")} almost the same`;
  $("folded-strip").replaceChildren(...folded.slice(0, 60).map((id) => {
    const small = el("img", { src: api.thumb(id, "", 320), alt: id, title: id, loading: "lazy" });
    return el("button", { type: "button", title: `${id}: more like this`, onclick: () => like({ id }) }, small);
  }));
}

function facts({ row, id, score }) {
  const lines = [[label("id"), id]];
  if (score !== null) lines.push(["Score", score.toFixed(4)]);
  if (row.width && row.height) lines.push(["Pixels", `${count(row.width)} × ${count(row.height)}`]);
  for (const [name, value] of Object.entries(row)) {
    if (["id", "text", "width", "height"].includes(name)) continue;
    lines.push([label(name), said(name, value)]);
  }
  $("detail-facts").replaceChildren(...lines.flatMap(([name, value]) => [
    el("dt", { textContent: name }), el("dd", { textContent: value }),
  ]));
}

function said(name, value) {
  if (name === "size") return bytes(value);
  if (name === "added") return String(value).slice(0, 16).replace("T", " ");
  if (typeof value === "number") return Number.isInteger(value) ? count(value) : String(Number(value.toPrecision(4)));
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

function pressed() {
  const on = grid.chosen.has(grid.items[index].id);
  $("detail-select").setAttribute("aria-pressed", String(on));
  $("detail-select").lastElementChild.textContent = on ? "Selected" : "Select";
}

function choose() {
  grid.choose(grid.items[index]);
  pressed();
}

function like(item) {
  dialog.close();
  listener.like?.(item);
}

async function copy() {
  try {
    await navigator.clipboard.writeText(grid.items[index].row.text);
    toast("The caption is copied", "info");
  } catch {
    toast("The browser does not let this page copy");
  }
}

$("detail-select").addEventListener("click", choose);
$("detail-like").addEventListener("click", () => like(grid.items[index]));
$("detail-copy").addEventListener("click", copy);
$("previous").addEventListener("click", () => show(index - 1));
$("following").addEventListener("click", () => show(index + 1));
dialog.addEventListener("close", () => grid.focus(index));

dialog.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "ArrowLeft") show(index - 1);
  else if (event.key === "ArrowRight") show(index + 1);
  else if (event.key === "x") choose();
  else if (event.key === "m") like(grid.items[index]);
  else return;
  event.preventDefault();
});

let start = null; // of a swipe
$("stage").addEventListener("touchstart", (event) => (start = event.touches.length === 1 ? event.touches[0].clientX : null), { passive: true });
$("stage").addEventListener("touchend", (event) => {
  if (start === null) return;
  const moved = event.changedTouches[0].clientX - start;
  if (Math.abs(moved) > 50) show(index + (moved < 0 ? 1 : -1));
  start = null;
}, { passive: true });
