// The wall of pictures: rows of one height as wide as the page, walked through with the arrow keys.

import * as api from "./api.js";
import { $, el, icon } from "./dom.js";

const HEIGHTS = { s: [118, 84], m: [190, 128], l: [300, 210] }; // of a row, on a wide page and on a phone
const GAP = 8, PHONE = 640, LINE = 26; // LINE: the caption's
const box = $("results");

export const items = []; // {id, score, row, folded, version, tile}
export const chosen = new Map(); // id -> item, from any search
let rows = []; // {from, to, element}
let current = 0, anchor = null, size = "m", listener = {};

export const caption = (item) => item.row.text || item.row.label || item.id;
export const listen = (handlers) => (listener = handlers);
export const at = () => current;

export function clear() {
  items.length = 0;
  rows = [];
  current = 0;
  anchor = null;
  box.replaceChildren();
}

export function add(results) {
  for (const result of results) {
    const item = { ...result };
    item.tile = tile(item);
    items.push(item);
  }
  layOut(Math.max(0, rows.length - 1)); // the last row may not be full yet
  if (items.length) items[current].tile.tabIndex = 0;
}

export function resize(to) {
  size = to ?? size;
  layOut(0);
}

const ratio = ({ row }) => (row.width && row.height ? Math.min(2.6, Math.max(0.5, row.width / row.height)) : 1);

function layOut(first) {
  const width = Math.floor(box.clientWidth);
  const target = HEIGHTS[size][width < PHONE ? 1 : 0];
  let from = rows[first]?.from ?? items.length - (items.length - (rows.at(-1)?.to ?? 0));
  for (const { element } of rows.splice(first)) element.remove();
  while (from < items.length) {
    let to = from, sum = 0;
    while (to < items.length && sum * target + (to - from) * GAP < width) sum += ratio(items[to++]);
    const full = sum * target + (to - from) * GAP >= width;
    // without the last one, where that comes closer to the height that was asked for
    const last = full && to - from > 1 ? ratio(items[to - 1]) : 0;
    const fit = (total, number) => (width - (number - 1) * GAP) / total;
    if (last && fit(sum - last, to - from - 1) - target < target - fit(sum, to - from)) {
      sum -= last;
      to -= 1;
    }
    const height = full ? fit(sum, to - from) : target;
    rows.push(row(from, to, Math.min(height, target * 1.6)));
    from = to;
  }
}

function row(from, to, height) {
  const element = el("div", { className: "row", role: "presentation" });
  element.style.containIntrinsicSize = `auto ${Math.round(height + LINE)}px`;
  const dense = window.devicePixelRatio || 1;
  for (let i = from; i < to; i++) {
    const { tile, id, version } = items[i];
    const width = height * ratio(items[i]);
    tile.style.width = `${width}px`;
    tile.firstChild.style.height = `${height}px`;
    const wanted = api.thumb(id, version, Math.max(width, height) * dense > 420 ? 640 : 320);
    const picture = tile.querySelector("img");
    if (picture.getAttribute("src") !== wanted) picture.src = wanted;
    tile.dataset.i = i;
    element.append(tile);
  }
  box.append(element);
  return { from, to, element };
}

function tile(item) {
  const words = caption(item);
  const picture = el("img", { alt: "", loading: "lazy", decoding: "async", draggable: false });
  const frame = el("div", { className: "frame" }, picture,
    el("button", { className: "pick", type: "button", tabIndex: -1, title: "Select (x)", ariaHidden: "true" }, icon("check")),
    el("button", { className: "like", type: "button", tabIndex: -1, title: "More like this (m)", ariaHidden: "true" }, icon("like")),
    item.folded.length ? el("span", { className: "more", title: "almost the same" }, icon("stack"), `+${item.folded.length}`) : null);
  picture.addEventListener("error", () => frame.classList.add("broken"));
  picture.addEventListener("load", () => frame.classList.add("there"));
  const made = el("figure", { className: "tile", role: "option", tabIndex: -1, ariaSelected: String(chosen.has(item.id)) },
    frame, el("figcaption", {}, el("span", { className: "words", textContent: words, title: words }),
      item.score === null ? null : el("span", { className: "score", textContent: item.score.toFixed(2), title: "cosine with what was asked" })));
  made.setAttribute("aria-label", item.folded.length ? `${words}, and ${item.folded.length} almost the same` : words);
  return made;
}

// -- choosing --

export function choose(item, on = !chosen.has(item.id)) {
  on ? chosen.set(item.id, item) : chosen.delete(item.id);
  for (const one of items) if (one.id === item.id) one.tile.ariaSelected = String(on);
  box.classList.toggle("choosing", chosen.size > 0);
  listener.chosen?.();
}

export function chooseNone() {
  chosen.clear();
  for (const { tile } of items) tile.ariaSelected = "false";
  box.classList.remove("choosing");
  listener.chosen?.();
}

function chooseTo(index) {
  const [from, to] = [anchor ?? index, index].sort((a, b) => a - b);
  for (let i = from; i <= to; i++) choose(items[i], true);
}

// -- walking --

export function focus(index, quietly = false) {
  if (!items.length) return;
  items[current]?.tile.setAttribute("tabindex", "-1");
  current = Math.min(items.length - 1, Math.max(0, index));
  const { tile } = items[current];
  tile.tabIndex = 0;
  if (!quietly) tile.focus({ preventScroll: true });
  tile.scrollIntoView({ block: "nearest" });
  if (current > items.length - 20) listener.near?.();
}

function beside(step) {
  const at = rows.findIndex(({ from, to }) => from <= current && current < to);
  const other = rows[at + step];
  if (!other) return current;
  const middle = (tile) => tile.offsetLeft + tile.offsetWidth / 2;
  const from = middle(items[current].tile);
  let best = other.from;
  for (let i = other.from; i < other.to; i++) {
    if (Math.abs(middle(items[i].tile) - from) < Math.abs(middle(items[best].tile) - from)) best = i;
  }
  return best;
}

const STEPS = {
  ArrowRight: () => current + 1, ArrowLeft: () => current - 1, ArrowDown: () => beside(1), ArrowUp: () => beside(-1),
  Home: () => 0, End: () => items.length - 1,
};

box.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !items.length) return;
  const step = STEPS[event.key];
  if (step) {
    const before = current;
    focus(step());
    if (event.shiftKey) for (const i of [before, current]) choose(items[i], true);
  } else if (event.key === "Enter") listener.open?.(current);
  else if (event.key === " " || event.key === "x") choose(items[current]);
  else if (event.key === "m") listener.like?.(items[current]);
  else return;
  event.preventDefault();
});

box.addEventListener("focusin", (event) => {
  const tile = event.target.closest(".tile");
  if (!tile) return;
  items[current]?.tile.setAttribute("tabindex", "-1");
  current = Number(tile.dataset.i);
  tile.tabIndex = 0;
});

let held = null, was = false; // a long press chooses; the click that ends it does nothing

box.addEventListener("click", (event) => {
  const tile = event.target.closest(".tile");
  if (!tile || was) return void (was = false);
  const index = Number(tile.dataset.i);
  if (event.target.closest(".like")) listener.like?.(items[index]);
  else if (event.shiftKey) chooseTo(index);
  else if (event.target.closest(".pick") || event.ctrlKey || event.metaKey || (chosen.size && matchMedia("(hover: none)").matches)) {
    choose(items[index]);
    anchor = index;
  } else {
    focus(index, true);
    listener.open?.(index);
  }
});

box.addEventListener("pointerdown", (event) => {
  const tile = event.target.closest(".tile");
  if (!tile || event.pointerType !== "touch") return;
  held = setTimeout(() => {
    was = true;
    choose(items[Number(tile.dataset.i)]);
  }, 450);
});
for (const name of ["pointerup", "pointercancel", "pointermove"]) {
  box.addEventListener(name, (event) => {
    if (name !== "pointermove" || Math.abs(event.movementX) + Math.abs(event.movementY) > 4) clearTimeout(held);
  });
}
box.addEventListener("contextmenu", (event) => {
  if (was) event.preventDefault();
});

let known = box.clientWidth;
new ResizeObserver(() => {
  if (Math.abs(box.clientWidth - known) < 2) return;
  known = box.clientWidth;
  layOut(0);
}).observe(box);
