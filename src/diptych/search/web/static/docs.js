// /openapi.json as a page.

import { $, el, toast } from "./dom.js";

const EXAMPLES = {
  "/api/search": `{"text": "a dog on the beach", "filters": [{"column": "width", "least": 500}], "limit": 20}`,
  "/api/export": `{"format": "csv", "question": {"text": "a dog on the beach"}, "most": 100}`,
};

const nameOf = (reference) => reference.split("/").at(-1);

function kind(schema = {}) {
  if (schema.$ref) return nameOf(schema.$ref);
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${kind(schema.items ?? {})}`;
  return schema.type ?? "any";
}

const line = (name, schema, about) => el("tr", {}, el("td", { textContent: name }), el("td", { textContent: kind(schema) }),
  el("td", { textContent: [about, ![undefined, null, ""].includes(schema?.default) ? `(${JSON.stringify(schema.default)})` : ""].filter(Boolean).join(" ") }));
const table = (lines) => el("table", {}, el("tbody", {}, ...lines));

function call(path, method, what) {
  const made = el("section", {}, el("p", { className: "call" }, el("b", { textContent: method.toUpperCase() }), path),
    el("p", { textContent: what.summary ?? "" }));
  if (what.parameters?.length) made.append(table(what.parameters.map((one) => line(one.name, one.schema, one.description ?? ""))));
  const [type, body] = Object.entries(what.requestBody?.content ?? {})[0] ?? [];
  if (type) made.append(el("p", { textContent: `Body: ${type === "application/json" ? kind(body.schema) : type}` }));
  if (EXAMPLES[path]) {
    made.append(el("pre", { textContent: `curl ${location.origin}${path} -H 'content-type: application/json' \\\n  -d '${EXAMPLES[path]}'` }));
  } else if (path === "/api/picture") {
    made.append(el("pre", { textContent: `curl ${location.origin}${path} -H 'content-type: image/jpeg' --data-binary @dog.jpg` }));
  }
  const answer = what.responses?.["200"]?.content?.["application/json"]?.schema;
  if (answer?.$ref) made.append(el("p", { textContent: `Answer: ${kind(answer)}` }));
  return made;
}

try {
  const api = await (await fetch("/openapi.json")).json();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, what] of Object.entries(methods)) $("paths").append(call(path, method, what));
  }
  for (const [name, { description, properties }] of Object.entries(api.components.schemas)) {
    if (!properties || name.endsWith("Error")) continue;
    $("schemas").append(el("details", {}, el("summary", { textContent: name }), el("p", { textContent: description ?? "" }),
      table(Object.entries(properties).map(([field, schema]) => line(field, schema, schema.description ?? "")))));
  }
} catch {
  toast("the server does not answer");
}
