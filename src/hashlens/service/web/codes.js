// Packed hexadecimal codes as pictures: one tick per bit, in the accent colour where bits differ.

const SVG = "http://www.w3.org/2000/svg";

export function unpack(hex, bits) {
  const values = new Uint8Array(bits);
  for (let j = 0; j < bits; j += 1) {
    const byte = parseInt(hex.substr((j >> 3) * 2, 2), 16);
    values[j] = (byte >> (j & 7)) & 1;
  }
  return values;
}

export function differing(a, b) {
  const places = [];
  for (let j = 0; j < a.length; j += 1) if (a[j] !== b[j]) places.push(j);
  return places;
}

function element(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

const block = (x, y, width, height) => `M${x} ${y}h${width}v${height}h${-width}z`;

export function describe(bits, reference) {
  if (!reference) return `code of ${bits.length} bits`;
  const places = differing(bits, reference);
  if (!places.length) return "no bit differs";
  const shown = places.slice(0, 12).join(", ") + (places.length > 12 ? ", …" : "");
  return `${places.length} of ${bits.length} bits differ: ${shown}`;
}

/** One row of ticks: tall for 1, short for 0. */
export function strip(bits, reference) {
  const paths = { zero: "", one: "", differs: "" };
  bits.forEach((bit, j) => {
    const kind = reference && bit !== reference[j] ? "differs" : bit ? "one" : "zero";
    paths[kind] += bit ? block(j * 4, 0, 2.6, 16) : block(j * 4, 10.5, 2.6, 5.5);
  });
  const svg = element("svg", {
    class: "strip", viewBox: `0 0 ${bits.length * 4 - 1.4} 16`, preserveAspectRatio: "none",
    role: "img", "aria-label": describe(bits, reference),
  });
  for (const [kind, d] of Object.entries(paths)) if (d) svg.append(element("path", { class: kind, d }));
  return svg;
}

/** The query's own code, in rows of 16 cells (32 for long codes). */
export function grid(bits) {
  const columns = bits.length > 128 ? 32 : 16;
  const rows = Math.ceil(bits.length / columns);
  const paths = { zero: "", one: "" };
  bits.forEach((bit, j) => {
    paths[bit ? "one" : "zero"] += block((j % columns) * 10, Math.floor(j / columns) * 10, 8.4, 8.4);
  });
  const svg = element("svg", {
    viewBox: `0 0 ${columns * 10 - 1.6} ${rows * 10 - 1.6}`, role: "img",
    "aria-label": `the query's code, ${bits.length} bits`,
  });
  for (const [kind, d] of Object.entries(paths)) if (d) svg.append(element("path", { class: kind, d }));
  return svg;
}

/** A bar for the number of images at each distance; those inside the radius are marked. */
export function histogram(svg, counts, radius) {
  const most = Math.max(1, ...counts);
  const inside = [];
  const outside = [];
  counts.forEach((count, distance) => {
    const height = count ? Math.max(1.5, 40 * Math.sqrt(count / most)) : 0;
    const bar = block(distance * 4 + 0.4, 40 - height, 3.2, height);
    (radius === null || distance <= radius ? inside : outside).push(bar);
  });
  svg.setAttribute("viewBox", `0 0 ${counts.length * 4} 40`);
  svg.replaceChildren(
    element("path", { class: "outside", d: outside.join("") }),
    element("path", { class: "inside", d: inside.join("") }),
  );
}
