// What is being asked, kept in the address so that it can be gone back to and passed on.

export const EMPTY = {
  text: "", without: "", like: [], picture: null, space: "pictures", filters: {}, where: "", fold: true, safe: true,
};

// filters: column -> {least, most} or {among: [...]} or {yes}. picture: {token, url, name}; url is this page's own.
export const state = structuredClone(EMPTY);

export function question() {
  return {
    text: state.text, without: state.without, like: state.like, picture: state.picture?.token ?? null,
    space: state.space, where: state.where, fold: state.fold, safe: state.safe,
    filters: Object.entries(state.filters).map(([column, condition]) => ({ column, ...condition })),
  };
}

export function toAddress() {
  const said = new URLSearchParams();
  if (state.text) said.set("q", state.text);
  if (state.without) said.set("without", state.without);
  for (const id of state.like) said.append("like", id);
  if (state.picture) said.set("picture", state.picture.token);
  if (state.space !== "pictures") said.set("in", state.space);
  if (Object.keys(state.filters).length) said.set("filters", JSON.stringify(state.filters));
  if (state.where) said.set("where", state.where);
  if (!state.fold) said.set("fold", "no");
  if (!state.safe) said.set("safe", "no");
  const words = said.toString();
  return words ? `/?${words}` : "/";
}

export function fromAddress() {
  const said = new URLSearchParams(location.search);
  const token = said.get("picture");
  const kept = state.picture?.token === token ? state.picture : null;
  Object.assign(state, structuredClone(EMPTY), {
    text: said.get("q") ?? "", without: said.get("without") ?? "", like: said.getAll("like"),
    space: ["captions", "words"].includes(said.get("in")) ? said.get("in") : "pictures",
    where: said.get("where") ?? "", fold: said.get("fold") !== "no", safe: said.get("safe") !== "no",
    picture: token && /^[0-9a-f]{32}$/.test(token) ? kept ?? { token, url: null, name: "your picture" } : null,
    filters: readFilters(said.get("filters")),
  });
}

// An address is a stranger's word: what is no filter is left out.
function readFilters(words) {
  const filters = {};
  try {
    for (const [column, one] of Object.entries(JSON.parse(words ?? "{}"))) {
      if (Array.isArray(one?.among) && one.among.every((word) => typeof word === "string")) filters[column] = { among: one.among };
      else if (typeof one?.yes === "boolean") filters[column] = { yes: one.yes };
      else {
        const bounds = {};
        for (const end of ["least", "most"]) if (Number.isFinite(one?.[end])) bounds[end] = one[end];
        if (Object.keys(bounds).length) filters[column] = bounds;
      }
    }
  } catch {
    return {};
  }
  return filters;
}
