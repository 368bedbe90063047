// Results as elements: the grid, the comparison of the searches, waiting and error states.

import { strip, unpack } from "./codes.js";

export function make(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

export const number = (value) => value.toLocaleString("en");
export const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
export const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

const FACTS = 4; // pairs of metadata that a record shows

/** What is known of an image, as a card in the place of its picture. */
export function record({ id, label, name, path, metadata }) {
  const box = make("div", { className: "record" }, make("p", { className: "number", textContent: `No. ${id}` }));
  if (label !== null) box.append(make("p", { className: "label", textContent: label }));
  if (name) box.append(make("p", { className: "file", textContent: path?.includes("://") ? path : name }));
  const facts = Object.entries(metadata);
  if (!facts.length) return box;
  const list = make("dl");
  for (const [key, value] of facts.slice(0, FACTS)) {
    list.append(make("div", {}, make("dt", { textContent: key }), make("dd", { textContent: plain(value) })));
  }
  box.append(list);
  if (facts.length > FACTS) box.append(make("p", { className: "more", textContent: `and ${facts.length - FACTS} more` }));
  return box;
}

function picture(item) {
  const image = make("img", {
    src: `v1/images/${item.id}/thumbnail`, loading: "lazy", decoding: "async",
    alt: [item.label ?? item.name, `image ${item.id}`].filter(Boolean).join(", "),
  });
  image.addEventListener("load", () => {
    if (image.naturalWidth <= 16) image.classList.add("pixels");
  });
  image.addEventListener("error", () => {
    image.closest(".card").classList.add("written");
    image.replaceWith(record(item));
  });
  return image;
}

function card(item, link, rank) {
  const anchor = make("a", { href: link(item.id), className: "picture" }, picture(item));
  anchor.dataset.id = item.id;
  if (rank) anchor.append(make("span", { className: "rank", textContent: rank, ariaHidden: "true" }));
  return make("li", { className: "card" }, anchor);
}

/** The label, and the file's name; the name alone where there is no label. */
function naming(item) {
  const name = make("span", { className: "file", textContent: item.name, title: item.path ?? item.name });
  if (item.label === null) {
    return item.name ? [name] : [make("span", { className: "label none", textContent: "no label" })];
  }
  const label = make("span", { className: "label", textContent: item.label });
  return item.name ? [label, name] : [label];
}

function distances(hit) {
  const box = make("span", { className: "distances" },
    make("span", { className: "hamming", textContent: plural(hit.hamming, "bit"),
      title: "Bits of the code that differ from the query's (Hamming distance)" }));
  if (hit.euclidean !== null) {
    box.append(make("span", { className: "euclidean", title: "How far the features are apart (Euclidean distance); smaller is nearer",
      textContent: hit.euclidean.toFixed(hit.euclidean < 100 ? 2 : 0) }));
  }
  if (hit.asymmetric !== null) {
    box.append(make("span", { className: "asymmetric", textContent: hit.asymmetric.toFixed(2),
      title: "How sure the query is of the bits that differ, summed" }));
  }
  return box;
}

function hitCard(hit, rank, context) {
  const item = card(hit, context.link, rank);
  const [first, ...more] = naming(hit);
  const caption = make("div", { className: "caption" }, first, distances(hit), ...more);
  const known = context.answer.query.label;
  if (known !== null && hit.label !== null) {
    item.classList.add(known === hit.label ? "same" : "other");
  }
  const facts = Object.entries(hit.metadata);
  if (facts.length) item.title = facts.map(([key, value]) => `${key}: ${plain(value)}`).join("\n");
  const reference = unpack(context.answer.query.code, context.bits);
  item.append(caption, strip(unpack(hit.code, context.bits), reference));
  return item;
}

export function gridOf(answer, bits, link) {
  const list = make("ol", { className: "grid", ariaLabel: "Nearest images, nearest first" });
  answer.hits.forEach((hit, i) => list.append(hitCard(hit, i + 1, { answer, bits, link })));
  return list;
}

const NAMES = {
  es: ["ES", "exhaustive, by features"],
  bcs: ["BCS", "binary codes only"],
  acs: ["ACS", "codes, then how sure the query is of each bit"],
  hds: ["HDS", "codes, then features"],
};

export function comparison(answers, bits, link) {
  const box = make("div", { className: "comparison" });
  for (const [mode, answer] of Object.entries(answers)) {
    const [name, meaning] = NAMES[mode];
    const known = answer.query.label;
    const agreeing = answer.hits.filter((hit) => hit.label === known).length;
    const head = make("header", {},
      make("h3", { id: `method-${mode}`, textContent: name }),
      make("p", { textContent: meaning }),
      make("p", { className: "time",
        textContent: `searched in ${milliseconds(answer.timings_ms.coarse + answer.timings_ms.fine)}` }));
    if (known !== null && answer.hits.length) {
      head.append(make("p", { className: "agree", textContent: `${agreeing} of ${answer.hits.length} share the label` }));
    }
    const row = make("ol", { className: "row-of-hits" });
    answer.hits.forEach((hit, i) => row.append(hitCard(hit, i + 1, { answer, bits, link })));
    if (!answer.hits.length) row.append(make("li", { className: "nothing", textContent: "nothing within this radius" }));
    box.append(make("section", { "aria-labelledby": `method-${mode}` }, head, row));
  }
  return box;
}

export function shelf(images, link) {
  const list = make("ul", { className: "grid shelf", ariaLabel: "Some images of the index" });
  for (const image of images) {
    const item = card(image, link, null);
    item.append(make("div", { className: "caption" }, ...naming(image)));
    list.append(item);
  }
  return list;
}

export function waiting(count) {
  const list = make("ul", { className: "grid skeleton", ariaHidden: "true" });
  for (let i = 0; i < count; i += 1) list.append(make("li", { className: "card" }, make("span", { className: "picture" })));
  return list;
}

export function empty(title, hint, action) {
  const box = make("div", { className: "empty" }, make("h3", { textContent: title }), make("p", { textContent: hint }));
  if (action) box.append(button(action));
  return box;
}

export function failure(error, action) {
  const busy = error.status === 503;
  const box = make("div", { className: "error", role: "alert" },
    make("h3", { textContent: busy ? "The service is busy" : "That did not work" }),
    make("p", { textContent: sentence(error.message) }));
  if (action) box.append(button(action));
  return box;
}

/** A line of the service as a sentence; the page has one field of each kind, so its name is left out. */
function sentence(line) {
  const text = line.replace(/^(image|text): /, "");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function button({ text, run }) {
  const node = make("button", { type: "button", className: "button", textContent: text });
  node.addEventListener("click", run);
  return node;
}
