// What the page shows, as an address that can be shared; pictures of the user stay in this tab.

export const MODES = ["hds", "acs", "bcs", "es", "compare"];
const uploads = new Map();
let uploadCount = Date.now(); // the history survives a reload: no number may come twice

/** Used where an address says nothing. */
export const usual = { mode: "hds", k: 24 };

export const noQuery = { id: null, upload: null, text: null };

export function defaults() {
  return { ...noQuery, radius: null, where: {}, ...usual };
}

export function keepUpload(file) {
  uploadCount += 1;
  uploads.set(uploadCount, { file, url: URL.createObjectURL(file) });
  return uploadCount;
}

export const upload = (number) => uploads.get(number) ?? null;

function whole(text, low, high) {
  const value = Number(text);
  return text !== null && text !== "" && Number.isInteger(value) && value >= low && value <= high
    ? value : null;
}

export function read(location, historyState) {
  const state = defaults();
  const params = new URLSearchParams(location.search);
  state.id = whole(params.get("id"), 0, Number.MAX_SAFE_INTEGER);
  if (state.id === null) state.text = params.get("text")?.trim() || null;
  if (state.id === null && state.text === null) state.upload = historyState?.upload ?? null;
  if (MODES.includes(params.get("mode"))) state.mode = params.get("mode");
  state.k = whole(params.get("k"), 1, 1000) ?? state.k;
  state.radius = whole(params.get("radius"), 0, 65535);
  try {
    const where = JSON.parse(params.get("where") ?? "{}");
    if (where && typeof where === "object" && !Array.isArray(where)) state.where = where;
  } catch {
    // an address edited by hand: search without a filter
  }
  return state;
}

export function address(state) {
  const params = new URLSearchParams();
  if (state.id !== null) params.set("id", state.id);
  if (state.text !== null) params.set("text", state.text);
  if (state.mode !== usual.mode) params.set("mode", state.mode);
  if (state.k !== usual.k) params.set("k", state.k);
  if (state.radius !== null) params.set("radius", state.radius);
  if (Object.keys(state.where).length) params.set("where", JSON.stringify(state.where));
  const text = params.toString();
  return text ? `?${text}` : "./";
}

export function show(state, { replace = false } = {}) {
  const method = replace ? "replaceState" : "pushState";
  history[method]({ upload: state.upload }, "", address(state));
}
