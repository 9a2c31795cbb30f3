// The panel of filters, made from what the index has, and the chips that say which are on.

import { $, count, debounced, el, icon, label } from "./dom.js";
import { EMPTY, state } from "./state.js";

const FEW = 8; // words of a facet before "more"
let facets = [], changed = () => {};

export function make(about, onchange) {
  facets = about.facets;
  changed = onchange;
  $("safe-row").classList.toggle("off", !about.has_safety);
  $("safe").disabled = !about.has_safety || about.always_safe;
  if (!about.has_safety) $("safe-note").textContent = "this index has no safety scores";
  else if (about.always_safe) $("safe-note").textContent = "always on at this server";
  const later = debounced(() => changed(), 300);
  $("fold").addEventListener("change", () => set({ fold: $("fold").checked }));
  $("safe").addEventListener("change", () => set({ safe: $("safe").checked }));
  $("without").addEventListener("input", () => {
    state.without = $("without").value.trim();
    later();
  });
  $("where").addEventListener("input", debounced(() => set({ where: $("where").value.trim() }), 600));
  $("reset").addEventListener("click", reset);
}

function set(values) {
  Object.assign(state, values);
  changed();
}

export function reset() {
  set({ filters: {}, where: "", without: "", fold: EMPTY.fold, safe: EMPTY.safe });
  show();
}

// As the state says; called when it was changed from elsewhere.
export function show() {
  $("fold").checked = state.fold;
  $("safe").checked = !$("safe-row").classList.contains("off") && (state.safe || $("safe").disabled);
  if (document.activeElement !== $("without")) $("without").value = state.without;
  if (document.activeElement !== $("where")) $("where").value = state.where;
  $("facets").replaceChildren(...facets.map((facet) => (facet.kind === "number" ? numbers(facet) : words(facet))));
}

function condition(column, value) {
  const filters = { ...state.filters };
  if (value) filters[column] = value;
  else delete filters[column];
  set({ filters });
}

function words({ column, kind, values }) {
  const on = () => state.filters[column]?.among ?? (state.filters[column] ? [String(state.filters[column].yes)] : []);
  const list = el("div", { className: "words" });
  const box = el("fieldset", { className: "facet" }, el("legend", { textContent: label(column) }), list);
  let all = values.length <= FEW + 2 || on().some((word) => values.findIndex(([value]) => value === word) >= FEW);
  const draw = () => {
    list.replaceChildren(...values.slice(0, all ? values.length : FEW).map(([value, number]) => {
      const input = el("input", { type: "checkbox", checked: on().includes(value), onchange: () => {
        if (kind === "yes/no") {
          condition(column, input.checked ? { yes: value === "true" } : null);
          return draw();
        }
        const now = input.checked ? [...on(), value] : on().filter((word) => word !== value);
        condition(column, now.length ? { among: now } : null);
      } });
      const shown = kind === "yes/no" ? { true: "yes", false: "no" }[value] : value || "(empty)";
      return el("label", { className: "word" }, input, el("span", { textContent: shown }), el("small", { textContent: count(number) }));
    }));
    if (!all) list.append(el("button", { className: "link", type: "button", textContent: `${values.length - FEW} more`, onclick: () => {
      all = true;
      draw();
    } }));
  };
  draw();
  return box;
}

function numbers({ column, least, most, counts }) {
  const whole = Number.isInteger(least) && Number.isInteger(most) && most - least > 20;
  const step = whole ? 1 : Number(((most - least) / 200).toPrecision(1));
  const hair = (most - least) * 1e-5; // a slider's value is rounded by the browser
  const now = () => state.filters[column] ?? {};
  const text = el("output", {});
  const range = (end) => el("input", {
    type: "range", min: least, max: most, step: "any", value: now()[end] ?? { least, most }[end],
    ariaLabel: `${label(column)}, ${{ least: "at least", most: "at most" }[end]}`,
  });
  const low = range("least"), high = range("most");
  const bars = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  bars.setAttribute("viewBox", `0 0 ${counts.length} 20`);
  bars.setAttribute("preserveAspectRatio", "none");
  bars.setAttribute("aria-hidden", "true");
  const top = Math.sqrt(Math.max(...counts, 1));
  const drawn = counts.map((number, i) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = number ? Math.max(1, (20 * Math.sqrt(number)) / top) : 0; // roots: a thin tail stays visible
    for (const [name, value] of Object.entries({ x: i + 0.1, width: 0.8, y: 20 - height, height })) bar.setAttribute(name, value);
    bars.append(bar);
    return bar;
  });
  const round = (value, up) => {
    const rounded = (up ? Math.ceil(value / step - 1e-9) : Math.floor(value / step + 1e-9)) * step;
    return Number(rounded.toPrecision(6));
  };
  const shown = (value) => (whole ? count(Math.round(value)) : String(Number(value.toPrecision(3))));
  const draw = () => {
    const [from, to] = [Number(low.value), Number(high.value)];
    const width = (most - least) / counts.length;
    drawn.forEach((bar, i) => bar.classList.toggle("in", least + (i + 1) * width >= from && least + i * width <= to));
    const [cutLow, cutHigh] = [from > least + hair, to < most - hair];
    text.textContent = cutLow && cutHigh ? `${shown(from)} – ${shown(to)}` : cutLow ? `from ${shown(from)}` : cutHigh ? `to ${shown(to)}` : "any";
  };
  const later = debounced(() => {
    const bounds = {};
    if (Number(low.value) > least + hair) bounds.least = round(Number(low.value), true);
    if (Number(high.value) < most - hair) bounds.most = round(Number(high.value), false);
    condition(column, Object.keys(bounds).length ? bounds : null);
  }, 250);
  for (const input of [low, high]) {
    input.addEventListener("input", () => {
      if (Number(low.value) > Number(high.value)) (input === low ? high : low).value = input.value;
      draw();
      later();
    });
    input.addEventListener("keydown", (event) => { // a step that can be seen, not the hair's breadth of "any"
      const by = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      input.value = Number(input.value) + (by * (most - least)) / 50;
      input.dispatchEvent(new Event("input"));
    });
  }
  draw();
  return el("div", { className: "facet" }, el("div", { className: "name" }, el("span", { textContent: label(column) }), text),
    el("div", { className: "range" }, bars, low, high));
}

// -- the chips above the results --

export function chips() {
  const made = [];
  const chip = (words, drop) => made.push(el("button", { className: "chip", type: "button", title: "Take this filter off", onclick: () => {
    drop();
    show();
  } }, el("span", { textContent: words }), icon("close")));
  for (const [column, { least, most, among, yes }] of Object.entries(state.filters)) {
    const name = label(column);
    const said = among ? among.map((word) => word || "(empty)").join(", ") : yes !== undefined ? (yes ? "yes" : "no")
      : least !== undefined && most !== undefined ? `${least} – ${most}` : least !== undefined ? `from ${least}` : `to ${most}`;
    chip(`${name}: ${said}`, () => condition(column, null));
  }
  if (state.without) chip(`without ${state.without}`, () => {
    $("without").value = "";
    set({ without: "" });
  });
  if (state.where) chip(state.where, () => {
    $("where").value = "";
    set({ where: "" });
  });
  $("chips").replaceChildren(...made);
  $("chips").hidden = !made.length;
  $("filters-count").hidden = !made.length;
  $("filters-count").textContent = made.length;
}
