// The controls: mode, radius with the distribution of distances, filters, number of results, times.

import { histogram } from "./codes.js";
import { make, milliseconds, number, plain } from "./results.js";

const byId = (id) => document.getElementById(id);
const HINTS = {
  hds: "Hierarchical: codes pick a pool of candidates, features order it.",
  acs: "Asymmetric: codes choose a pool, how sure the query is of each bit orders it. " +
    "For an image of the index it is the same as BCS.",
  bcs: "Binary codes only, ordered by Hamming distance.",
  es: "Exhaustive: every feature vector is compared.",
  compare: "The searches one below the other.",
};
const STAGES = ["decode", "encode", "coarse", "fine"];
const option = (value, place) => make("option", { value: String(place), textContent: plain(value) });
const placeOf = (value, values) => values.findIndex((one) => JSON.stringify(one) === JSON.stringify(value));

export class Settings {
  constructor(index, changed) {
    this.index = index;
    this.counts = null;
    this.nearest = null;
    byId("radius").max = index.bits;
    if (index.radius !== null) byId("radius-marks").append(make("option", { value: index.radius }));
    for (const { label, count } of index.labels) {
      byId("label").append(make("option", { value: label, textContent: `${label} (${number(count)})` }));
    }
    byId("label").disabled = !index.labels.length;
    for (const input of byId("settings").elements.mode) {
      const needs = input.value === "compare" ? "hds" : input.value;
      input.disabled = !index.modes.includes(needs);
      input.parentElement.hidden = input.disabled;
      input.parentElement.title = HINTS[input.value];
    }
    this.fields = index.metadata.map((field) => this.#field(field));
    this.#listen(changed);
  }

  #field({ key, values }) {
    const select = make("select", { id: `where-${key}` }, make("option", { value: "", textContent: "any" }));
    values.forEach((value, i) => select.append(option(value, i)));
    byId("metadata").append(make("div", { className: "field" },
      make("label", { htmlFor: select.id, textContent: key }), select));
    return { key, values, select };
  }

  /** Add a condition of the address to the choices, so that every filter in use can be seen. */
  #offer(key, value) {
    if (key === "label") return;
    let field = this.fields.find((one) => one.key === key);
    if (!field) {
      field = this.#field({ key, values: [] });
      this.fields.push(field);
    }
    if (placeOf(value, field.values) >= 0) return;
    field.values.push(value);
    field.select.append(option(value, field.values.length - 1));
  }

  #listen(changed) {
    let timer = 0;
    byId("settings").addEventListener("submit", (event) => event.preventDefault());
    byId("settings").addEventListener("input", (event) => {
      const slides = event.target.id === "radius";
      if (slides) this.#drawRadius(this.radius());
      clearTimeout(timer);
      timer = setTimeout(() => changed(event.target.name === "mode"), slides ? 160 : 0);
    });
  }

  radius() {
    const value = Number(byId("radius").value);
    return value >= this.index.bits ? null : value;
  }

  /** Settings that the controls show. */
  read() {
    const where = {};
    if (byId("label").value) where.label = byId("label").value;
    for (const { key, values, select } of this.fields) {
      if (select.value !== "") where[key] = values[Number(select.value)];
    }
    const mode = byId("settings").elements.mode.value;
    return { mode, k: Number(byId("count").value), radius: this.radius(), where };
  }

  /** Set the controls to a state from the address. */
  write(state) {
    byId("settings").elements.mode.value = state.mode;
    const count = byId("count");
    if (![...count.options].some((option) => Number(option.value) === state.k)) {
      count.append(make("option", { textContent: state.k }));
    }
    count.value = String(state.k);
    byId("radius").value = state.radius ?? this.index.bits;
    const label = state.where.label ?? "";
    if (typeof label === "string" && ![...byId("label").options].some((option) => option.value === label)) {
      byId("label").append(make("option", { value: label, textContent: label }));
    }
    byId("label").value = label;
    byId("count").disabled = state.mode === "compare";
    for (const [key, value] of Object.entries(state.where)) this.#offer(key, value);
    for (const { key, values, select } of this.fields) {
      const place = placeOf(state.where[key], values);
      select.value = place >= 0 ? String(place) : "";
    }
    byId("mode-hint").textContent = HINTS[state.mode];
    byId("radius-box").classList.toggle("off", state.mode === "es");
    byId("radius").disabled = state.mode === "es";
    this.#drawRadius(this.radius());
  }

  /** Show an answer's distances; without a radius, hds and acs rank only the nearest codes. */
  distribution(answer, mode) {
    this.counts = answer?.histogram ?? null;
    this.nearest = answer && ["hds", "acs", "compare"].includes(mode) ? answer.pool : null;
    this.#drawRadius(this.radius());
  }

  #drawRadius(radius) {
    const box = byId("histogram");
    byId("radius-box").hidden = !this.counts;
    const proposed = radius === this.index.radius ? ", as proposed" : "";
    byId("radius-value").textContent = radius === null ? "no limit" : `${radius} ${radius === 1 ? "bit" : "bits"}${proposed}`;
    byId("radius").setAttribute("aria-valuetext", byId("radius-value").textContent);
    if (!this.counts) {
      box.replaceChildren();
      byId("pool").textContent = "";
      return;
    }
    const within = [];
    this.counts.reduce((sum, count, d) => (within[d] = sum + count), 0);
    const total = within.at(-1);
    if (radius === null && this.nearest !== null && this.nearest < total) {
      histogram(box, this.counts, within.findIndex((sum) => sum >= this.nearest));
      byId("pool").textContent = `Pool: the nearest ${number(this.nearest)} of ${number(total)} images`;
      return;
    }
    histogram(box, this.counts, radius);
    const pool = radius === null ? total : within[radius];
    byId("pool").textContent = `Pool: ${number(pool)} of ${number(total)} images`;
  }

  times(timings) {
    const box = byId("times");
    box.hidden = !timings;
    if (!timings) return;
    const sum = STAGES.reduce((total, stage) => total + timings[stage], 0) || 1;
    const bar = byId("times-bar");
    bar.replaceChildren(...STAGES.map((stage) => {
      const part = make("i", { className: stage });
      part.style.flexGrow = String(timings[stage] / sum);
      return part;
    }));
    byId("times-list").replaceChildren(...STAGES.map((stage) => make("div", { className: stage },
      make("dt", { textContent: stage }), make("dd", { textContent: milliseconds(timings[stage]) }))));
  }
}
