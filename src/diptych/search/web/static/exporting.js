// A subset to a file.

import * as api from "./api.js";
import { $, bytes, many } from "./dom.js";
import { chosen } from "./grid.js";
import { question, state } from "./state.js";

const dialog = $("export"), form = $("export-form");

export function open(what) {
  $("export-error").textContent = $("export-status").textContent = "";
  $("option-selected").hidden = !chosen.size;
  $("export-selected").textContent = `The ${many(chosen.size, "selected picture")}`;
  const near = state.text || state.like.length || state.picture || state.without;
  $("option-least").hidden = !near || (state.space === "words" && state.text);
  $("export-scope").textContent = near ? "in the order of the results, with the filters" : "in the index's order, with the filters";
  form.elements.what.value = what ?? (chosen.size ? "selected" : "found");
  if (!dialog.open) dialog.showModal();
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const least = $("export-least").value;
  const selected = form.elements.what.value === "selected";
  const wish = { format: form.elements.format.value, question: question() };
  if (selected) wish.ids = [...chosen.keys()];
  else {
    wish.most = Number($("export-most").value);
    if (least !== "" && !$("option-least").hidden) wish.least = Number(least);
  }
  $("export-error").textContent = "";
  $("export-status").textContent = "Writing …";
  $("export-go").disabled = true;
  try {
    const made = await api.subset(wish);
    const failed = Object.values(made.failed).reduce((sum, one) => sum + one, 0);
    $("export-status").textContent = `${many(made.rows, "row")}, ${bytes(made.bytes)}`;
    if (failed) $("export-error").textContent = `${many(failed, "picture")} could not be read: ${Object.keys(made.failed).join("; ")}`;
    const link = Object.assign(document.createElement("a"), { href: `/api/export/${made.token}`, download: made.name });
    link.click();
  } catch (error) {
    $("export-error").textContent = error.message;
    $("export-status").textContent = "";
  } finally {
    $("export-go").disabled = false;
  }
});
