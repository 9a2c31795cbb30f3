// Making elements. Texts of strangers become text nodes, never markup.

export const $ = (id) => document.getElementById(id);

export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "dataset") Object.assign(made.dataset, value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.classList.add("icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

export function toast(message, kind = "error") {
  const made = el("p", { className: `toast ${kind}`, textContent: message });
  $("toasts").append(made);
  setTimeout(() => made.remove(), 6000);
}

const grouped = new Intl.NumberFormat("en");
export const count = (number) => grouped.format(number);
export const many = (number, one, more = `${one}s`) => `${count(number)} ${number === 1 ? one : more}`;

export function bytes(number) {
  for (const unit of ["bytes", "kB", "MB"]) {
    if (number < 1000) return `${number < 10 && unit !== "bytes" ? number.toFixed(1) : Math.round(number)} ${unit}`;
    number /= 1000;
  }
  return `${number.toFixed(1)} GB`;
}

export function debounced(work, wait) {
  let timer;
  return (...words) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...words), wait);
  };
}

const LABELS = {
  label: "Class", language: "Language", width: "Width", height: "Height", aesthetic: "Aesthetic score",
  similarity: "Match with its caption", punsafe: "Unsafe score", pwatermark: "Watermark score", text: "Caption",
  id: "Name", path: "File", source: "From", added: "Added", size: "Size",
};
export const label = (column) => LABELS[column] ?? column.replaceAll("_", " ");
