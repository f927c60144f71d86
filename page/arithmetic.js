// What the page computes: its networks, unpacked from the data; pictures of drawings; measures of pictures. explore.py puts
// it into template.html.
const SIZE = 28; // pixels, each side of a picture
const FIELD = 1296; // units of the drawing field: 36², so that two characters of the address hold a coordinate
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// --------------------------------------------------------------------------------------------------- the networks
/** The checksum of a line of the data: Adler-32. */
function adler32(text) {
  let a = 1, b = 0;
  for (let i = 0; i < text.length; i++) { a = (a + text.charCodeAt(i)) % 65521; b = (b + a) % 65521; }
  return b * 65536 + a;
}
/** `count` whole numbers of `bits` bits each, highest bit first; two characters hold 13 bits: see pack in explore.py. */
function unpack(packed, bits, count) {
  const text = packed.replaceAll("!", "<").replaceAll("~", "\\"), code = (i) => text.charCodeAt(i) - 35;
  let i = 0, held = 0, buffer = 0;
  return new Uint16Array(count).map(() => {
    for (; held < bits; held += 13, i += 2) buffer = ((buffer & ((1 << held) - 1)) << 13) | (code(i) * 91 + code(i + 1));
    held -= bits;
    return (buffer >> held) & ((1 << bits) - 1);
  });
}
/** A weight is stored as a whole number, half the range for 0. Each output has a scale for each group of inputs. */
function unpackLayer(layer) {
  const { inputs, outputs, bits, group } = layer, count = Math.ceil(inputs / group) * outputs;
  const scales = new Float32Array(unpack(layer.scales, 8, count)).map((n) => 2 ** (-n / 16));
  const weights = new Float32Array(unpack(layer.weights, bits, inputs * outputs));
  for (let i = 0; i < weights.length; i++) {
    weights[i] = (weights[i] - 2 ** (bits - 1)) * scales[Math.floor(i / outputs / group) * outputs + i % outputs];
  }
  return { ...layer, weights };
}
let page;
const network = {};
for (const line of $("page").textContent.split("\n")) { // checksum, name, content
  const [sum, name, text] = line.split("\t");
  if (adler32(text ?? "") !== +sum) stop("A part of this file is damaged, and would draw nonsense: get the file again.");
  if (name === "page") page = JSON.parse(text);
  else (network[name] ??= []).push(unpackLayer(JSON.parse(text)));
}
const { n_variables: N, n_categories: K, units } = page, MNIST = page.dataset === "MNIST";

/** Convolves a size × size picture. A fully connected layer is a convolution of a single pixel, with a kernel of 1. */
function convolve({ kernel, padding, inputs, outputs, weights, bias }, picture, size) {
  const channels = inputs / kernel ** 2, width = size + 2 * padding - kernel + 1, out = new Float32Array(width * width * outputs);
  for (let y = 0, at = 0; y < width; y++) for (let x = 0; x < width; x++, at += outputs) {
    out.set(bias, at);
    for (let dy = 0; dy < kernel; dy++) for (let dx = 0; dx < kernel; dx++) {
      const v = y + dy - padding, u = x + dx - padding;
      if (v < 0 || u < 0 || v >= size || u >= size) continue;
      for (let c = 0; c < channels; c++) {
        const value = picture[(v * size + u) * channels + c], row = ((dy * kernel + dx) * channels + c) * outputs;
        if (value === 0) continue; // most of a digit is black, and ReLUs leave many zeros
        for (let o = 0; o < outputs; o++) out[at + o] += value * weights[row + o];
      }
    }
  }
  return out;
}
/** Layers one after the other, with ReLUs between them. */
function run(layers, picture, size = 1) {
  layers.forEach((layer, i) => {
    picture = convolve(layer, i ? picture.map((value) => Math.max(0, value)) : picture, size);
    size += 2 * layer.padding - layer.kernel + 1;
  });
  return picture;
}
/** Picture → code: z, the posterior means; v, the likeliest category of each variable; q, all their probabilities. */
function encode(picture) {
  const h = run(network.encoder, picture).map((value) => Math.max(0, value)), logits = [...run(network.categorical_head, h)];
  const q = Array.from({ length: N }, (_, i) => {
    const own = logits.slice(i * K, (i + 1) * K), odds = own.map((logit) => Math.exp(logit - Math.max(...own)));
    return odds.map((value) => value / odds.reduce((a, b) => a + b));
  });
  return { z: [...run(network.gaussian_head, h).subarray(0, 5)], v: q.map((p) => p.indexOf(Math.max(...p))), q };
}
/** Code → picture: a Float32Array, row by row: R, G and B of each pixel, from 0 to 1. */
function decode({ z, v }) {
  const choices = v.flatMap((category) => Array.from({ length: K }, (_, k) => +(k === category)));
  return run(network.decoder, Float32Array.from([...z, ...choices])).map((logit) => 1 / (1 + Math.exp(-logit)));
}
/** Picture of one domain → picture of the other; `direction` is "a_to_b" or "b_to_a". */
const translate = (direction, picture) => run(network[direction], picture, SIZE).map((value) => clamp(value, 0, 1));

// ---------------------------------------------------------------------------------------------- drawings, measures
/** Grey levels of segments [ax, ay, bx, by], pixels: 1 within the radius, fading over one pixel. */
function rasterize(segments, radius) {
  const grey = new Float32Array(SIZE * SIZE);
  for (const [ax, ay, bx, by] of segments) for (let i = 0; i < grey.length; i++) {
    const dx = bx - ax, dy = by - ay, px = i % SIZE + 0.5 - ax, py = Math.floor(i / SIZE) + 0.5 - ay;
    const t = clamp((px * dx + py * dy) / Math.max(dx * dx + dy * dy, 1e-9), 0, 1);
    grey[i] = Math.max(grey[i], Math.min(1, radius + 0.5 - Math.hypot(px - t * dx, py - t * dy)));
  }
  return grey;
}
/** Strokes [[x, y], ...] → grey levels, as experiments/drawings.py: box scaled, centre of mass in the middle. */
function render(strokes) {
  const [box, radius, centre] = page.box, axes = [0, 1].map((axis) => strokes.flat().map((point) => point[axis]));
  const ends = MNIST ? axes.map((values) => [Math.min(...values), Math.max(...values)]) : [[0, FIELD], [0, FIELD]];
  const scale = (MNIST ? box : SIZE) / Math.max(...ends.map(([low, high]) => high - low), 1e-9);
  const place = (point) => point.map((value, axis) => (value - (ends[axis][0] + ends[axis][1]) / 2) * scale + SIZE / 2);
  const segments = strokes.flatMap((stroke) => stroke.slice(0, Math.max(stroke.length - 1, 1)).map(
    (point, i) => [...place(point), ...place(stroke[Math.min(i + 1, stroke.length - 1)])]));
  const grey = rasterize(segments, radius);
  if (!MNIST) return grey; // its pictures are neither scaled nor centred
  const mean = (at) => grey.reduce((sum, ink, i) => sum + ink * at(i), 0) / grey.reduce((sum, ink) => sum + ink, 0);
  const moves = [mean((i) => i % SIZE), mean((i) => Math.floor(i / SIZE))].map((middle) => centre - middle - 0.5);
  const moved = segments.map((segment) => segment.map((value, i) => value + moves[i % 2]));
  return rasterize(moved, radius).map((ink) => Math.floor(255 * ink + 0.5) / 255);
}
/** Grey levels × colour; a hue's colour; grey levels of a picture. */
const colored = (grey, rgb) => new Float32Array(3 * grey.length).map((_, i) => grey[Math.floor(i / 3)] * rgb[i % 3]);
const rgbOf = (hue) => [0, 4, 2].map((shift) => clamp(Math.abs((hue / 60 + shift) % 6 - 3) - 1, 0, 1));
const inkOf = (picture) => new Float32Array(SIZE * SIZE).map((_, i) =>
  Math.max(picture[3 * i], picture[3 * i + 1], picture[3 * i + 2]));
/** Sum of the pixels' colours, each times its weight. */
const weighted = (picture, weights) => [0, 1, 2].map((c) =>
  weights.reduce((sum, weight, i) => sum + weight * picture[3 * i + c], 0));

/** What metrics.py measures: hue and slant in degrees, 100 × the logarithm of the width, weight in pixels. */
function measure(picture) {
  const g = inkOf(picture), rgb = weighted(picture, g), high = rgb.indexOf(Math.max(...rgb)), range = rgb[high] - Math.min(...rgb);
  const sector = 2 * high + (rgb[(high + 1) % 3] - rgb[(high + 2) % 3]) / range;
  const at = (y, x) => (x < 0 || y < 0 || x >= SIZE || y >= SIZE ? 0 : g[y * SIZE + x]);
  let mass = 0, mx = 0, my = 0, xx = 0, yy = 0, xy = 0, edges = 0;
  g.forEach((ink, i) => { mass += ink; mx += ink * (i % SIZE); my += ink * Math.floor(i / SIZE); });
  for (let y = -1; y < SIZE; y++) for (let x = -1; x < SIZE; x++) {
    const ink = at(y, x), dx = x - mx / mass, dy = y - my / mass;
    xx += ink * dx * dx / mass; yy += ink * dy * dy / mass; xy += ink * dx * dy / mass;
    edges += Math.hypot(at(y, x + 1) - ink, at(y + 1, x) - ink);
  }
  return { hue: (60 * sector + 360) % 360, slant: Math.atan(-xy / yy) * 180 / Math.PI,
    width: 50 * Math.log(Math.max(xx - xy * xy / yy, 1e-9)), weight: 2 * mass / edges };
}
/** Per cent ↔ 100 × logarithm, the same upwards and downwards: 15% less is 1 / 1.15. */
const logOf = (percent) => Math.sign(percent) * 100 * Math.log1p(Math.abs(percent) / 100);
const percentOf = (log) => Math.sign(log) * 100 * Math.expm1(Math.abs(log) / 100);
/** The colour of a domain that is nearest to the ink's, which fits the picture best when multiplied by the grey levels. */
function nearestColor(colors, picture, grey) {
  const squares = grey.reduce((sum, ink) => sum + ink * ink, 0), ink = weighted(picture, grey.map((g) => g / squares));
  const distance = ({ rgb }) => Math.hypot(...rgb.map((value, c) => value - ink[c]));
  return colors.reduce((best, color) => (distance(color) < distance(best) ? color : best));
}
/** A hue's two numbers: page.wheel has typical ones for evenly spaced hues, others lie between. */
function pointOf(hue) {
  const n = page.wheel.length, place = hue * n / 360, i = Math.floor(place), t = place - i;
  return [0, 1].map((axis) => (1 - t) * page.wheel[i % n][axis] + t * page.wheel[(i + 1) % n][axis]);
}
