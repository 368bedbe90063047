// The page shows the search that its address names; a new query is a new address.

import { getImage, getIndex, sampleImages, search, ApiError } from "./api.js";
import { grid, unpack } from "./codes.js";
import * as views from "./results.js";
import { Settings } from "./settings.js";
import * as states from "./state.js";

const byId = (id) => document.getElementById(id);
const COMPARED = 6; // images per method in the comparison
let index = null;
let settings = null;
let state = states.defaults();
let seed = 0;
let running = null;

const link = (id) => states.address({ ...state, ...states.noQuery, id });

function heading(title, status = "") {
  byId("results-title").textContent = title;
  byId("status").textContent = status;
}

function content(...nodes) {
  byId("notice").replaceChildren();
  byId("content").replaceChildren(...nodes);
}

const quoted = (words) => `“${words}”`;

/** Show the query: a picture with its name, or words, or that there is none. */
function drawQuery(url, name, words = null) {
  const image = byId("query-image");
  image.hidden = !url;
  byId("query-words").hidden = words === null;
  byId("query-words").textContent = words === null ? "" : quoted(words);
  byId("text").value = words ?? "";
  byId("invitation").hidden = Boolean(url) || words !== null;
  byId("frame").classList.toggle("filled", Boolean(url));
  byId("about").hidden = !byId("invitation").hidden;
  byId("query-name").textContent = name;
  byId("query-code").replaceChildren();
  byId("query-place").hidden = true;
  byId("file-actions").hidden = true;
  byId("query-record").hidden = true;
  byId("query-record").replaceChildren();
  if (url) {
    image.classList.remove("pixels");
    image.src = url;
    image.alt = `The query: ${name}`;
  } else {
    image.removeAttribute("src");
  }
}

/** Say which file or URI an image of the index is. */
async function drawPlace(id) {
  try {
    const image = await getImage(id);
    if (state.id !== id) return;
    const { name, path } = image;
    byId("query-record").append(views.record(image));
    byId("query-place").textContent = path ?? name;
    byId("query-place").hidden = !name;
    byId("file-actions").hidden = !path;
    const web = /^https?:/i.test(path);
    byId("open-original").href = web ? path : `v1/images/${id}/file`;
    byId("open-original").classList.toggle("web", web);
    byId("copy-path").textContent = copying();
  } catch {
    // the search itself says what is wrong
  }
}

const copying = () => (byId("query-place").textContent.includes("://") ? "Copy URI" : "Copy path");

function queryName(answer) {
  if (state.text !== null) return quoted(state.text);
  if (state.id === null) return "Your picture";
  return [answer.query.label, `image ${state.id}`].filter(Boolean).join(" · ");
}

async function showStart(notice = "") {
  drawQuery(null, "");
  settings.distribution(null);
  settings.times(null);
  document.title = `${index.name} · Hashlens`;
  if (!index.images) {
    heading("The index is empty");
    content(views.empty("Nothing to show yet", "Add images with: hashlens index add INDEX FOLDER"));
    return;
  }
  heading("From the index", notice || "Choose any picture to search by it.");
  content(views.waiting(24));
  try {
    const { images } = await sampleImages(24, seed);
    if (Object.keys(states.noQuery).every((one) => state[one] === null)) content(views.shelf(images, link));
  } catch (error) {
    content(views.failure(error, { text: "Try again", run: refresh }));
  }
}

async function findAll(query, signal) {
  if (state.mode !== "compare") {
    return { [state.mode]: await search(query, state, signal) };
  }
  // Of an image of the index only bits are known, so that acs would repeat bcs.
  const modes = ["es", "bcs", "acs", "hds"].filter((mode) => mode !== "acs" || query.id === undefined);
  const found = await Promise.all(modes.map(
    (mode) => search(query, { ...state, mode, k: COMPARED }, signal)));
  return Object.fromEntries(modes.map((mode, i) => [mode, found[i]]));
}

function showAnswers(answers) {
  const answer = answers[state.mode] ?? answers.hds;
  byId("query-name").textContent = queryName(answer);
  byId("query-code").replaceChildren(grid(unpack(answer.query.code, index.bits)));
  settings.distribution(answer, state.mode);
  settings.times(answer.timings_ms);
  document.title = `${queryName(answer)} · Hashlens`;
  const total = views.milliseconds(answer.timings_ms.total);
  if (state.mode === "compare") {
    heading(`${answers.acs ? "Four" : "Three"} ways to search`, `among ${views.number(answers.es.pool)} images`);
    content(views.comparison(answers, index.bits, link));
  } else if (answer.hits.length) {
    heading(answer.hits.length === 1 ? "The nearest image" : `${answer.hits.length} nearest images`,
      `from a pool of ${views.number(answer.pool)}, in ${total}`);
    content(views.gridOf(answer, index.bits, link));
  } else {
    heading("No image found", `in ${total}`);
    content(views.empty("No image fits these settings",
      "Widen the radius, or search without the filter.",
      { text: "Clear radius and filter", run: clearFilters }));
  }
}

/** What to offer after a failed search; trying again helps only if the service was at fault. */
function wayOut({ status }) {
  if (status === 0 || status === 429 || status >= 500) return { text: "Try again", run: refresh };
  if (state.id !== null || (state.text !== null && !index.searches_texts)) {
    return { text: "Show the index", run: () => go(states.defaults()) };
  }
  if (state.text !== null) return { text: "Change the words", run: () => byId("text").focus() };
  return { text: "Choose another picture", run: () => byId("file").click() };
}

async function showSearch(query) {
  running = new AbortController();
  const { signal } = running;
  byId("results").setAttribute("aria-busy", "true");
  const slow = setTimeout(() => {
    byId("status").textContent = "Searching…";
    content(views.waiting(Math.min(state.k, 24)));
  }, 120);
  try {
    const answers = await findAll(query, signal);
    clearTimeout(slow);
    if (!signal.aborted) showAnswers(answers);
  } catch (error) {
    clearTimeout(slow);
    if (signal.aborted || error.name === "AbortError") return;
    settings.distribution(null);
    settings.times(null);
    heading("Search");
    const known = error instanceof ApiError ? error : new ApiError(0, "Something went wrong on this page.");
    if (!(error instanceof ApiError)) console.error(error);
    content(views.failure(known, wayOut(known)));
  } finally {
    clearTimeout(slow);
    if (!signal.aborted) byId("results").removeAttribute("aria-busy");
  }
}

function refresh() {
  running?.abort();
  byId("results").removeAttribute("aria-busy");
  settings.write(state);
  if (state.id !== null) {
    drawQuery(`v1/images/${state.id}/thumbnail`, `image ${state.id}`);
    drawPlace(state.id);
    return showSearch({ id: state.id });
  }
  if (state.text !== null) {
    drawQuery(null, quoted(state.text), state.text);
    return showSearch({ text: state.text });
  }
  if (state.upload !== null) {
    const kept = states.upload(state.upload);
    if (!kept) {
      state = { ...state, upload: null };
      return showStart("Your picture was kept only in its own tab; drop it again.");
    }
    drawQuery(kept.url, "Your picture");
    return showSearch({ file: kept.file });
  }
  return showStart();
}

function go(changes, options) {
  state = { ...state, ...changes };
  states.show(state, options);
  return refresh();
}

function clearFilters() {
  go({ radius: null, where: {} });
}

function searchFile(file) {
  if (!file) return;
  if (!index.searches_images) {
    content(views.failure(new ApiError(0, "This service has no model: click an image of the index instead.")));
  } else if (file.size > index.limits.upload_bytes) {
    const most = Math.round(index.limits.upload_bytes / 2 ** 20);
    content(views.failure(new ApiError(413, `${file.name} is too large; at most ${most} MiB are accepted.`)));
  } else {
    go({ ...states.noQuery, upload: states.keepUpload(file) });
  }
}

function listenToFiles() {
  byId("file").addEventListener("change", (event) => {
    searchFile(event.target.files[0]);
    event.target.value = "";
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (file) {
      event.preventDefault();
      searchFile(file);
    }
  });
  let depth = 0;
  const carriesFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const veil = (shown) => { byId("veil").hidden = !shown; };
  document.addEventListener("dragenter", (event) => {
    if (!carriesFile(event)) return;
    depth += 1;
    veil(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (!carriesFile(event)) return;
    depth -= 1;
    veil(depth > 0);
  });
  document.addEventListener("dragover", (event) => { if (carriesFile(event)) event.preventDefault(); });
  document.addEventListener("drop", (event) => {
    depth = 0;
    veil(false);
    if (!carriesFile(event)) return;
    event.preventDefault();
    searchFile(event.dataTransfer.files[0]);
  });
}

function listenToLinks() {
  byId("content").addEventListener("click", async (event) => {
    const anchor = event.target.closest("a[data-id]");
    if (!anchor || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go({ ...states.noQuery, id: Number(anchor.dataset.id) });
    byId("results").focus({ preventScroll: true });
    window.scrollTo({ top: 0 });
  });
  byId("words").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = byId("text").value.trim();
    if (!text) return;
    go({ ...states.noQuery, text });
    byId("results").focus({ preventScroll: true });
  });
  // Following the link would add a step to the history, and that step would lack the picture.
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("results").focus();
  });
  byId("home").addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    go(states.defaults());
  });
  byId("copy-path").addEventListener("click", async () => {
    await navigator.clipboard.writeText(byId("query-place").textContent);
    byId("copy-path").textContent = "Copied";
    setTimeout(() => { byId("copy-path").textContent = copying(); }, 1500);
  });
  byId("shuffle").addEventListener("click", () => {
    seed = Math.floor(Math.random() * 1e9);
    go(states.noQuery);
  });
  window.addEventListener("popstate", (event) => {
    state = states.read(location, event.state);
    refresh();
  });
}

function theme() {
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const dark = () => (stored() ? stored() === "dark" : system.matches);
  const show = (name) => {
    document.documentElement.dataset.theme = name;
    button.textContent = name === "dark" ? "Light" : "Dark"; // what a click gives
  };
  const apply = () => show(dark() ? "dark" : "light");
  button.addEventListener("click", () => {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("theme", next); } catch { /* private window */ }
    show(next);
  });
  system.addEventListener("change", apply);
  apply();
}

function foldOnPhones() {
  const narrow = matchMedia("(max-width: 52rem)");
  const apply = () => { byId("fold").open = !narrow.matches; };
  narrow.addEventListener("change", apply);
  apply();
}

async function begin() {
  theme();
  foldOnPhones();
  heading("One moment");
  content(views.waiting(24));
  byId("query-image").addEventListener("load", (event) => {
    event.target.classList.toggle("pixels", event.target.naturalWidth <= 16);
  });
  byId("query-image").addEventListener("error", (event) => {
    event.target.hidden = true;
    byId("invitation").hidden = state.id !== null;
    byId("query-record").hidden = state.id === null;
  });
  try {
    index = await getIndex();
  } catch (error) {
    heading("Hashlens");
    content(views.failure(error, { text: "Try again", run: () => location.reload() }));
    return;
  }
  byId("facts").textContent = `${index.name} · ${views.number(index.images)} images · ${index.bits} bits`;
  if (!index.searches_images) {
    byId("choose").hidden = true;
    byId("file").disabled = true;
    byId("invitation-line").textContent = "Click an image of the index";
  }
  byId("words").hidden = !index.searches_texts;
  byId("text").maxLength = index.limits.text_characters;
  settings = new Settings(index, (isMode) => go(settings.read(), { replace: !isMode }));
  listenToFiles();
  listenToLinks();
  states.usual.mode = index.mode;
  state = states.read(location, history.state);
  await refresh();
}

begin();
