// The data, and small helpers that every part uses.
const data = JSON.parse(document.getElementById('data').textContent);
const text = data.strings;
const S = data.timeline.slices;
const count = S.start.length;
const INSTANT = 2, OPEN = 1;

const byId = (id) => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === 'class') node.className = value;
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const plain = new Intl.NumberFormat('en-US');
const number = (value) => plain.format(value);
const plural = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;
const hex = (value) => `0x${value.toString(16)}`;
const duration = (ns) => (ns < 1000 ? `${ns} ns` : ns < 1e6 ? `${trim(ns / 1000)} µs` : ns < 1e9 ? `${trim(ns / 1e6)} ms` : `${trim(ns / 1e9)} s`);
const trim = (value) => value.toFixed(3).replace(/\.?0+$/, '');
const moment = (ns) => `${(ns / 1e9).toFixed(6)} s`;

const name = (i) => text[S.name[i]];
const category = (i) => text[S.category[i]];
const isInstant = (i) => (S.marks[i] & INSTANT) !== 0;
const where = (i) => (S.where[i] < 0 ? '' : text[S.where[i]]);
const rowTitle = (i) => data.timeline.rows[S.row[i]].title;

function pairs(list) {
  const found = [];
  for (let i = 0; i < list.length; i += 2) found.push([text[list[i]], String(list[i + 1])]);
  return found;
}
const given = (i) => pairs(data.timeline.arguments[S.arguments[i]]);
const results = (i) => pairs(data.timeline.arguments[S.results[i]]);

const WORDS = {
  hvc: 'hypercall', smc: 'SMC', abort: 'abort', trap: 'trap', op: 'op', function: 'function at EL2', symbol: 'kernel function',
  call: 'call into a module', guest: 'guest', exception: 'exception', event: 'trace event', page: 'page ownership', snapshot: 'snapshot',
};
// How instants look: what is not here is a slice.
const SHAPES = { page: 'diamond', event: 'dot', exception: 'dot', snapshot: 'dot' };

const style = () => getComputedStyle(document.documentElement);
let palette = {};
function readColours() {
  const now = style();
  palette = new Proxy({}, { get: (cache, key) => (cache[key] ??= now.getPropertyValue(`--${String(key)}`).trim()) });
}
readColours();

// Listeners that draw again: when colours or sizes change, and when something is selected.
const redraws = [];
const redraw = () => redraws.forEach((draw) => draw());
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { readColours(); redraw(); });

let selected = -1;
const selectionListeners = [];
function select(i, from) {
  selected = i;
  selectionListeners.forEach((listen) => listen(i, from));
}

// A canvas as large as its box, in device pixels; its context draws in CSS pixels.
function sized(canvas, height) {
  const width = canvas.clientWidth, ratio = devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width];
}
