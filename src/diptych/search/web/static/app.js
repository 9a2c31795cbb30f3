// The explorer's page: asks, shows, and joins the parts.

import * as api from "./api.js";
import * as detail from "./detail.js";
import { $, count, debounced, el, icon, many, toast } from "./dom.js";
import * as exporting from "./exporting.js";
import * as filters from "./filters.js";
import * as grid from "./grid.js";
import { EMPTY, fromAddress, question, state, toAddress } from "./state.js";

const PAGE = 60;
const SPACES = { // name -> its button, what it searches, the empty box
  pictures: ["Pictures", "what pictures show", "Search the pictures"],
  captions: ["Captions", "what captions mean", "Search the captions"],
  words: ["Words", "the words of captions", "Words of a caption"],
};
const wide = matchMedia("(min-width: 900px)");
let about, next = null, asking = null, turn = 0;

// -- asking --

async function ask({ remember = "push" } = {}) {
  if (remember !== "no" && location.pathname + location.search !== toAddress()) {
    history[remember === "push" ? "pushState" : "replaceState"](null, "", toAddress());
  }
  showQuestion();
  asking?.abort();
  asking = new AbortController();
  const mine = ++turn;
  next = null;
  document.body.classList.add("waiting");
  const started = performance.now();
  try {
    const answer = await api.search(question(), 0, PAGE, asking.signal);
    if (mine !== turn) return;
    $("where-error").textContent = "";
    grid.clear();
    grid.add(answer.results);
    next = answer.next;
    scrollTo({ top: 0 });
    say(answer, performance.now() - started);
  } catch (error) {
    if (error.name !== "AbortError" && mine === turn) wrong(error);
  } finally {
    if (mine === turn) {
      asking = null;
      document.body.classList.remove("waiting");
      setTimeout(more); // a tall screen may have room for another page
    }
  }
}

function wrong(error) {
  if (state.where && error.message.includes("condition")) {
    $("where-error").textContent = error.message;
    return;
  }
  if (error.status === 410 && state.picture) {
    state.picture = null;
    showQuestion();
  }
  toast(error.message);
}

async function more() {
  if (next === null || asking) return;
  if ($("sentinel").getBoundingClientRect().top > innerHeight + 1500) return;
  const mine = turn;
  asking = new AbortController();
  try {
    const answer = await api.search(question(), next, PAGE, asking.signal);
    if (mine !== turn) return;
    grid.add(answer.results);
    next = answer.next;
  } catch (error) {
    if (mine === turn && error.name !== "AbortError") {
      next = null;
      toast(error.message);
    }
  } finally {
    if (mine === turn) {
      asking = null;
      setTimeout(more);
    }
  }
}

// -- showing --

function say({ matching, results }, milliseconds) {
  const near = state.text || state.like.length || state.picture || state.without;
  const all = matching === about.rows ? many(matching, "picture") : `${count(matching)} of ${many(about.rows, "picture")}`;
  $("status").replaceChildren(all, near ? el("span", { textContent: ` · ${Math.round(milliseconds)} ms` }) : "");
  const empty = $("empty");
  empty.hidden = results.length > 0;
  if (results.length) return;
  const filtered = matching === 0 && about.rows > 0;
  empty.replaceChildren(el("h2", { textContent: about.rows ? "Nothing found" : "This index is empty" }),
    el("p", { textContent: filtered ? "No picture passes the filters." : about.rows ? (state.space === "words" ? "No caption has these words." : "None of these pictures has a caption.") : "diptych index PICTURES --db my.lance puts pictures into it." }));
  if (filtered) empty.append(el("button", { className: "button main", type: "button", textContent: "Reset the filters", onclick: filters.reset }));
}

function showQuestion() {
  if (document.activeElement !== $("text") || !state.text) $("text").value = state.text;
  const made = [];
  const chip = (picture, title, drop) => made.push(el("button", { className: "asked", type: "button", title: `${title}: take it off`, onclick: drop }, picture, icon("close")));
  if (state.picture) {
    const shown = state.picture.url ? el("img", { src: state.picture.url, alt: state.picture.name }) : icon("picture");
    chip(shown, state.picture.name, () => change({ picture: null }));
  }
  for (const id of state.like) {
    chip(el("img", { src: api.thumb(id, "", 320), alt: id }), `like ${id}`, () => change({ like: state.like.filter((one) => one !== id) }));
  }
  $("wanted").replaceChildren(...made);
  $("clear").hidden = !(state.text || made.length);
  $("text").placeholder = made.length ? "Add words" : SPACES[state.space][2];
  for (const button of $("spaces").children) pick(button, button.dataset.space === state.space);
  filters.chips();
  document.title = state.text ? `${state.text} – ${about.name}` : `${about.name} – diptych`;
}

function pick(button, on) {
  button.ariaChecked = String(on);
  button.tabIndex = on ? 0 : -1;
}

function change(values, remember = "push") {
  Object.assign(state, values);
  return ask({ remember });
}

// Without words there are none to be found.
const compared = () => (state.space === "words" ? "pictures" : state.space);

function like(...found) {
  return change({ like: found.map(({ id }) => id).slice(0, 50), picture: null, text: "", space: compared() });
}

async function lookLike(file) {
  if (!file.type.startsWith("image/") && file.type) return toast(`${file.name || "this"} is no picture`);
  document.body.classList.add("waiting");
  try {
    const { picture } = await api.handIn(file);
    if (state.picture?.url) URL.revokeObjectURL(state.picture.url);
    await change({ picture: { token: picture, url: URL.createObjectURL(file), name: file.name || "pasted picture" }, like: [], text: "", space: compared() });
  } catch (error) {
    toast(error.message);
  } finally {
    document.body.classList.remove("waiting");
  }
}

// -- the search box --

let last = -Infinity; // when something was typed: one burst of typing is one step to go back
const typed = debounced(() => {
  if ($("text").value.trim() === state.text) return;
  change({ text: $("text").value.trim() }, performance.now() - last < 2500 ? "replace" : "push");
  last = performance.now();
}, 280);
$("text").addEventListener("input", typed);
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  change({ text });
  last = -Infinity;
  if (matchMedia("(hover: none)").matches) $("text").blur();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" && grid.items.length) {
    event.preventDefault();
    grid.focus(grid.at());
  } else if (event.key === "Backspace" && !$("text").value && (state.picture || state.like.length)) {
    change(state.like.length ? { like: state.like.slice(0, -1) } : { picture: null });
  }
});
$("clear").addEventListener("click", () => {
  $("text").value = "";
  change({ text: "", like: [], picture: null });
  $("text").focus();
});
$("brand").addEventListener("click", (event) => {
  event.preventDefault();
  $("text").value = "";
  change({ ...structuredClone(EMPTY), space: state.space });
  filters.show();
});
$("file").addEventListener("change", () => {
  if ($("file").files[0]) lookLike($("file").files[0]);
  $("file").value = "";
});

// -- dropping and pasting --

let depth = 0;
addEventListener("dragenter", (event) => {
  if (!event.dataTransfer?.types.length) return;
  depth += 1;
  $("drop").hidden = false;
});
addEventListener("dragleave", () => {
  depth -= 1;
  if (depth <= 0) $("drop").hidden = true;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  $("drop").hidden = true;
  const file = [...event.dataTransfer.files][0];
  if (file) lookLike(file);
  else toast("Only its address was dropped, and nothing is fetched from other places: save the picture and drop the file");
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
  if (file) {
    event.preventDefault();
    lookLike(file);
  }
});

// -- the rest of the page --

function toggleFilters(on = !document.body.classList.contains("filtering")) {
  document.body.classList.toggle("filtering", on);
  $("filters-button").ariaExpanded = String(on);
  $("main").inert = on && !wide.matches;
  if (on) ($("filters").querySelector("input:not(:disabled)") ?? $("filters-close")).focus({ preventScroll: true });
  if (wide.matches) keep("filters", on ? "open" : "closed");
}
$("filters-button").addEventListener("click", () => toggleFilters());
$("filters-close").addEventListener("click", () => toggleFilters(false));
$("main").addEventListener("click", () => !wide.matches && document.body.classList.contains("filtering") && toggleFilters(false));
$("export-button").addEventListener("click", () => exporting.open());
$("selection-export").addEventListener("click", () => exporting.open("selected"));
$("selection-like").addEventListener("click", () => like(...grid.chosen.values()));
$("selection-clear").addEventListener("click", grid.chooseNone);
$("help-button").addEventListener("click", () => $("help").showModal());
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => (event.target === dialog || event.target.closest("[data-close]")) && dialog.close());
}

const THEMES = ["auto", "light", "dark"];
const kept = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
const keep = (name, value) => { try { localStorage.setItem(name, value); } catch { /* a private window */ } };
function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("theme").title = `Light or dark: ${name}`;
  $("theme").setAttribute("aria-label", $("theme").title);
  keep("theme", name);
}
$("theme").addEventListener("click", () => theme(THEMES[(THEMES.indexOf(kept("theme") ?? "auto") + 1) % 3]));
theme(THEMES.includes(kept("theme")) ? kept("theme") : "auto");

function sized(size) {
  for (const button of $("sizes").children) pick(button, button.dataset.size === size);
  grid.resize(size);
  keep("size", size);
}
for (const button of $("sizes").children) button.addEventListener("click", () => sized(button.dataset.size));
for (const group of [$("spaces"), $("sizes")]) {
  group.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const buttons = [...group.children], at = buttons.indexOf(document.activeElement);
    const other = buttons[(at + by + buttons.length) % buttons.length];
    other.focus();
    other.click();
  });
}

grid.listen({
  open: detail.open, like, near: more,
  chosen: () => {
    $("selection").hidden = !grid.chosen.size;
    $("selected-count").textContent = `${count(grid.chosen.size)} selected`;
  },
});
detail.listen({ like, near: more });

addEventListener("keydown", (event) => {
  const busy = document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey;
  const typing = event.target.closest?.("input:not([type=checkbox]):not([type=range]), textarea");
  if (event.key === "Escape" && !busy) {
    if (document.body.classList.contains("filtering") && !wide.matches) toggleFilters(false);
    else if (typing) grid.focus(grid.at());
    else if (grid.chosen.size) grid.chooseNone();
    return;
  }
  if (busy || typing) return;
  const work = {
    "/": () => { $("text").focus(); $("text").select(); }, f: () => toggleFilters(), e: () => exporting.open(), "?": () => $("help").showModal(),
  }[event.key];
  if (!work) return;
  event.preventDefault();
  work();
});

new IntersectionObserver(([entry]) => entry.isIntersecting && more(), { rootMargin: "1500px" }).observe($("sentinel"));
addEventListener("popstate", () => {
  fromAddress();
  $("text").value = state.text;
  filters.show();
  ask({ remember: "no" });
});

async function start() {
  try {
    about = await api.about();
  } catch (error) {
    return toast(error.message);
  }
  $("about").textContent = `${about.name} · ${many(about.rows, "picture")} · ${about.model}`;
  $("spaces").replaceChildren(...about.spaces.map((space) => el("button", {
    type: "button", role: "radio", textContent: SPACES[space][0], title: `Search ${SPACES[space][1]}`, dataset: { space },
    onclick: () => change({ space }),
  })));
  $("spaces").hidden = about.spaces.length < 2;
  fromAddress();
  $("text").value = state.text;
  filters.make(about, () => ask());
  filters.show();
  document.body.classList.toggle("filtering", wide.matches && kept("filters") !== "closed");
  $("filters-button").ariaExpanded = String(document.body.classList.contains("filtering"));
  sized(["s", "m", "l"].includes(kept("size")) ? kept("size") : "m");
  await ask({ remember: "no" });
  document.body.classList.add("ready");
}
start();
