// The server's JSON API. What is wrong is thrown as an Error whose message can be shown.

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer; is it still running?");
  }
  if (answer.ok) return answer.json();
  const told = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(told.error ?? `the server said ${answer.status}`), { status: answer.status });
}

const post = (path, body, signal) =>
  ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal });

export const about = () => ask("/api/about");
export const search = (question, offset, limit, signal) => post("/api/search", { ...question, offset, limit }, signal);
export const subset = (wish) => post("/api/export", wish);
export const handIn = (file) =>
  ask("/api/picture", { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file });

const named = (values) => new URLSearchParams(values).toString();
export const thumb = (id, version, side) => `/thumb?${named({ id, side, v: version })}`;
export const original = (id) => `/original?${named({ id })}`;
