// The timeline: one band a row (CPU and exception level), one lane a depth, drawn on a canvas.
const LANE = 20, PAD = 6, AXIS = 24, LABEL = 104, NARROW_LABEL = 58, LEAST = 1e-6;

function timeline() {
  const chart = byId('chart'), canvas = byId('canvas'), overview = byId('overview'), tip = byId('tip');
  const rows = data.timeline.rows.map((row) => ({ ...row, depth: 0, lanes: [] }));
  const axes = {
    time: { start: S.start, length: S.length, label: (value) => duration(Math.round(value) + 0) },
    order: { start: S.order, length: S.span, label: (value) => `#${number(Math.round(value) + 0)}` },
  };
  // Slices of a lane come one after the other, so that the visible ones are found by bisection. Instants have lanes of their own.
  for (let i = 0; i < count; i++) {
    const row = rows[S.row[i]];
    const lane = (row.lanes[S.depth[i]] ??= { slices: [], instants: [] });
    lane[isInstant(i) ? 'instants' : 'slices'].push(i);
    row.depth = Math.max(row.depth, S.depth[i] + 1);
  }
  let top = AXIS;
  for (const row of rows) {
    row.top = top;
    row.height = row.depth * LANE + 2 * PAD;
    top += row.height;
  }
  const height = top;
  let axis = axes.time, view = { from: 0, to: 1 }, whole = { from: 0, to: 1 }, hits = [], hovered = -1, wanted = '';

  function extent() {
    let from = Infinity, to = -Infinity;
    for (let i = 0; i < count; i++) {
      from = Math.min(from, axis.start[i]);
      to = Math.max(to, axis.start[i] + axis.length[i]);
    }
    const margin = (to - from || 1) * 0.012;
    whole = count ? { from: from - margin, to: to + margin } : { from: 0, to: 1 };
  }
  const left = () => (canvas.clientWidth < 640 ? NARROW_LABEL : LABEL);
  const x = (value, width) => left() + ((value - view.from) / (view.to - view.from)) * (width - left());
  const value = (px, width) => view.from + ((px - left()) / (width - left())) * (view.to - view.from);

  function setView(from, to) {
    const room = whole.to - whole.from, least = Math.max(axis === axes.time ? 20 : 3, room * LEAST);
    const length = Math.min(Math.max(to - from, least), room);
    const begin = Math.min(Math.max(from - (length - (to - from)) / 2, whole.from), whole.to - length);
    view = { from: begin, to: begin + length };
    draw();
  }
  const zoom = (factor, at = (view.from + view.to) / 2) => setView(at - (at - view.from) * factor, at + (view.to - at) * factor);
  const move = (share) => {
    const by = (view.to - view.from) * share, length = view.to - view.from;
    const from = Math.min(Math.max(view.from + by, whole.from), whole.to - length);
    setView(from, from + length);
  };
  const fit = () => setView(whole.from, whole.to);
  function show(i, closely) {
    const from = axis.start[i], to = from + axis.length[i];
    if (closely) setView(from - Math.max(to - from, 4) * 0.4, to + Math.max(to - from, 4) * 0.4);
    else if (from < view.from || to > view.to) {
      const length = Math.max(view.to - view.from, (to - from) * 1.3);
      setView((from + to - length) / 2, (from + to + length) / 2);
    }
  }

  // The first slice of a lane that ends behind the left edge.
  function firstVisible(list, edge) {
    let low = 0, high = list.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (axis.start[list[middle]] + axis.length[list[middle]] < edge) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  function ruler(context, width) {
    const room = (view.to - view.from) / Math.max(2, (width - left()) / 110);
    const power = 10 ** Math.floor(Math.log10(room));
    let step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= room);
    if (axis === axes.order) step = Math.max(1, Math.round(step));
    context.font = `11px ${palette.sans}`;
    context.textBaseline = 'middle';
    for (let at = Math.ceil(view.from / step) * step; at <= view.to; at += step) {
      const px = Math.round(x(at, width)) + 0.5;
      if (px < left()) continue;
      context.strokeStyle = palette.grid;
      context.beginPath();
      context.moveTo(px, AXIS - 5);
      context.lineTo(px, height);
      context.stroke();
      context.fillStyle = palette.faint;
      const label = axis.label(at);
      if (px + context.measureText(label).width / 2 < width) {
        context.textAlign = 'center';
        context.fillText(label, Math.max(px, left() + context.measureText(label).width / 2 + 2), AXIS / 2);
      }
    }
  }

  const textColour = () => (matchMedia('(prefers-color-scheme: dark)').matches ? '#0f1115' : '#ffffff');
  const dimmed = (i) => wanted && !name(i).toLowerCase().includes(wanted);

  function drawSlices(context, width, row, lane, depth) {
    const y = row.top + PAD + depth * LANE, ink = textColour();
    let edge = -1;
    for (let at = firstVisible(lane.slices, view.from); at < lane.slices.length; at++) {
      const i = lane.slices[at];
      if (axis.start[i] > view.to) break;
      const from = Math.max(x(axis.start[i], width), left()), to = Math.min(x(axis.start[i] + axis.length[i], width), width + 2);
      const wide = Math.max(to - from, 1);
      // What would cover a pixel that is painted already is left out, and so is what follows up to the next pixel.
      if (to <= edge && i !== selected && i !== hovered) {
        at = Math.max(at, Math.min(firstVisible(lane.slices, value(edge, width)), lane.slices.length) - 1);
        continue;
      }
      edge = Math.floor(from) + 1;
      context.globalAlpha = dimmed(i) ? 0.18 : 1;
      context.fillStyle = palette[category(i)];
      const gap = wide > 4 ? 0.75 : 0;
      context.beginPath();
      if (wide > 6) context.roundRect(from + gap / 2, y + 1, wide - gap, LANE - 2, 2.5);
      else context.rect(from, y + 1, wide, LANE - 2);
      context.fill();
      if (wide > 24) {
        context.fillStyle = ink;
        context.font = `500 11.5px ${palette.sans}`;
        context.textAlign = 'left';
        context.fillText(fitted(context, name(i), wide - 9), from + 5, y + LANE / 2 + 0.5);
      }
      if (i === selected || i === hovered) outline(context, from, y + 1, wide, LANE - 2, i === selected);
      hits.push([from, y, Math.max(wide, 3), LANE, i]);
    }
    context.globalAlpha = 1;
  }

  // As much of a name as there is room for.
  function fitted(context, whole, room) {
    if (context.measureText(whole).width <= room) return whole;
    let fits = 0, high = whole.length;
    while (fits < high) {
      const middle = (fits + high + 1) >> 1;
      if (context.measureText(`${whole.slice(0, middle)}…`).width <= room) fits = middle;
      else high = middle - 1;
    }
    return fits > 1 ? `${whole.slice(0, fits)}…` : '';
  }

  function outline(context, left, top, width, high, strong) {
    context.strokeStyle = palette.ink;
    context.lineWidth = strong ? 2 : 1;
    context.strokeRect(left + 0.5, top + 0.5, width - 1, high - 1);
    context.lineWidth = 1;
  }

  function drawInstants(context, width, row, lane, depth) {
    const y = row.top + PAD + depth * LANE + LANE / 2;
    let last = -9;
    for (let at = firstVisible(lane.instants, view.from); at < lane.instants.length; at++) {
      const i = lane.instants[at];
      if (axis.start[i] > view.to) break;
      const px = x(axis.start[i], width);
      if (px < left() || (px - last < 1.2 && i !== selected)) continue;
      last = px;
      const r = i === selected || i === hovered ? 6.5 : 4.5;
      context.globalAlpha = dimmed(i) ? 0.18 : 1;
      context.fillStyle = palette[category(i)];
      context.beginPath();
      if (SHAPES[category(i)] === 'diamond') {
        context.moveTo(px, y - r);
        context.lineTo(px + r, y);
        context.lineTo(px, y + r);
        context.lineTo(px - r, y);
        context.closePath();
      } else context.arc(px, y, r - 0.5, 0, 2 * Math.PI);
      context.fill();
      context.strokeStyle = i === selected ? palette.ink : palette.panel;
      context.lineWidth = 1.2;
      context.stroke();
      context.lineWidth = 1;
      hits.push([px - 6, y - 8, 12, 16, i]);
    }
    context.globalAlpha = 1;
  }

  function drawFlows(context, width) {
    const visible = data.timeline.flows.filter(([a, b]) => axis.start[b] >= view.from && axis.start[a] <= view.to);
    const chosen = visible.length <= 160 ? visible : visible.filter(([a, b]) => a === selected || b === selected);
    for (const [a, b] of chosen) {
      const from = x(axis.start[a], width), to = x(axis.start[b], width);
      if (from < left() || to > width + 40) continue;
      const down = rows[S.row[a]].top + PAD + (S.depth[a] + 1) * LANE - 1, end = rows[S.row[b]].top + PAD + S.depth[b] * LANE;
      context.strokeStyle = a === selected || b === selected ? palette.ink : palette.faint;
      context.globalAlpha = a === selected || b === selected ? 1 : 0.6;
      context.beginPath();
      context.moveTo(from + 1, down);
      context.bezierCurveTo(from + 1, down + (end - down) * 0.6, to + 1, down + (end - down) * 0.4, to + 1, end - 1);
      context.stroke();
      context.beginPath();
      context.moveTo(to + 1, end + 1);
      context.lineTo(to - 2, end - 4);
      context.lineTo(to + 4, end - 4);
      context.fillStyle = context.strokeStyle;
      context.fill();
    }
    context.globalAlpha = 1;
  }

  function draw() {
    const [context, width] = sized(canvas, height);
    hits = [];
    rows.forEach((row, index) => {
      if (index % 2 === 0) {
        context.fillStyle = palette.row;
        context.fillRect(0, row.top, width, row.height);
      }
    });
    ruler(context, width);
    context.save();
    context.beginPath();
    context.rect(left(), 0, width, height);
    context.clip();
    context.textBaseline = 'middle';
    for (const row of rows) row.lanes.forEach((lane, depth) => drawSlices(context, width, row, lane, depth));
    drawFlows(context, width);
    for (const row of rows) row.lanes.forEach((lane, depth) => drawInstants(context, width, row, lane, depth));
    context.restore();
    context.textAlign = 'left';
    for (const row of rows) {
      const middle = row.top + PAD + LANE / 2;
      context.fillStyle = palette.ink;
      context.font = `600 12px ${palette.sans}`;
      context.fillText(row.level.replace(' (guest)', ''), 12, middle);
      context.fillStyle = palette.faint;
      context.font = `11px ${palette.sans}`;
      if (left() === LABEL) context.fillText(row.level.includes('guest') ? 'guest' : `CPU ${row.cpu}`, 46, middle);
    }
    context.strokeStyle = palette.line;
    context.beginPath();
    context.moveTo(left() - 0.5, 0);
    context.lineTo(left() - 0.5, height);
    context.stroke();
    drawOverview();
  }

  // The whole run is drawn once for each axis, width and palette; the frame around what is in view goes over it.
  const strip = document.createElement('canvas');
  let drawn = '';
  const HIGH = 42;
  function drawStrip(width) {
    const key = `${width} ${axis === axes.time} ${palette.paper}`;
    if (key === drawn) return;
    drawn = key;
    const ratio = devicePixelRatio || 1, context = strip.getContext('2d');
    strip.width = Math.round(width * ratio);
    strip.height = HIGH * ratio;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const lane = Math.max(2, Math.min(7, (HIGH - 10) / Math.max(1, rows.length))), painted = rows.map(() => -1);
    const upper = (HIGH - lane * rows.length) / 2;
    for (let i = 0; i < count; i++) {
      if (S.depth[i] > 0 || isInstant(i)) continue;
      const from = overviewX(axis.start[i], width), to = Math.max(overviewX(axis.start[i] + axis.length[i], width), from + 1);
      if (to <= painted[S.row[i]]) continue;
      painted[S.row[i]] = Math.floor(from) + 1;
      context.fillStyle = palette[category(i)];
      context.fillRect(from, upper + S.row[i] * lane, to - from, lane - 1);
    }
  }
  const overviewX = (v, width) => left() + ((v - whole.from) / (whole.to - whole.from)) * (width - left());

  function drawOverview() {
    const [context, width] = sized(overview, HIGH);
    drawStrip(width);
    if (strip.width) context.drawImage(strip, 0, 0, width, HIGH);
    const from = overviewX(view.from, width), to = overviewX(view.to, width);
    context.fillStyle = palette.paper;
    context.globalAlpha = 0.72;
    context.fillRect(left(), 0, from - left(), HIGH);
    context.fillRect(to, 0, width - to, HIGH);
    context.globalAlpha = 1;
    context.strokeStyle = palette.accent;
    context.strokeRect(from + 0.5, 0.5, Math.max(to - from - 1, 2), HIGH - 1);
  }

  function under(event) {
    const box = canvas.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    // Instants are on top and were added last.
    for (let at = hits.length - 1; at >= 0; at--) {
      const [left, top, width, high, i] = hits[at];
      if (px >= left && px <= left + width && py >= top && py < top + high) return i;
    }
    return -1;
  }

  function showTip(event, i) {
    if (i < 0) return (tip.hidden = true);
    const lines = [...given(i), ...results(i).map(([key, v]) => [`→ ${key}`, v])].slice(0, 12);
    tip.replaceChildren(el('b', {}, name(i)),
      el('span', { class: 'sub' }, [WORDS[category(i)], moment(S.start[i]), isInstant(i) ? null : duration(S.length[i]),
        cost(i)].filter(Boolean).join(' · ')),
      ...lines.map(([key, v]) => el('code', {}, `${key} = ${v}`)), where(i) ? el('span', { class: 'sub' }, where(i)) : '');
    tip.hidden = false;
    const box = chart.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    tip.style.left = `${Math.max(4, Math.min(px + 14, box.width - tip.offsetWidth - 6))}px`;
    tip.style.top = `${py + 16 + tip.offsetHeight > box.height && py > tip.offsetHeight + 12 ? py - tip.offsetHeight - 10 : py + 16}px`;
    return false;
  }
  const cost = (i) => (data.counted && !isInstant(i) && S.instructions[i] ? plural(S.instructions[i], 'instruction') : null);

  function detail(i) {
    if (i < 0) return byId('detail').replaceChildren();
    const facts = [['Begins', `${duration(S.start[i])} after boot`]];
    if (!isInstant(i)) facts.push(['Takes', duration(S.length[i]) + (S.marks[i] & OPEN ? ', not ended' : '')]);
    if (cost(i)) facts.push(['Costs', `${cost(i)} at EL2`]);
    facts.push(['On', rowTitle(i)]);
    if (where(i)) facts.push(['At', where(i)]);
    if (S.parent[i] >= 0) facts.push(['Inside', name(S.parent[i])]);
    const list = (entries) => el('dl', {}, ...entries.flatMap(([key, v]) => [el('dt', {}, key), el('dd', {}, v)]));
    const values = [...given(i), ...results(i).map(([key, v]) => [`→ ${key}`, v])];
    const card = el('div', { class: 'card' }, el('h3', {}, name(i), el('small', {}, WORDS[category(i)])), list(facts), values.length ? list(values) : '');
    card.style.borderLeftColor = palette[category(i)];
    return byId('detail').replaceChildren(card);
  }

  // Mouse and touch
  let drag = null;
  canvas.addEventListener('pointerdown', (event) => {
    if (event.button) return;
    drag = { px: event.clientX, view, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener('pointermove', (event) => {
    if (!drag) {
      const i = under(event);
      if (i !== hovered) { hovered = i; draw(); }
      showTip(event, i);
      return;
    }
    const by = event.clientX - drag.px;
    if (Math.abs(by) > 3) drag.moved = true;
    if (drag.moved) {
      chart.classList.add('moving');
      tip.hidden = true;
      const scale = (drag.view.to - drag.view.from) / (canvas.clientWidth - left());
      const length = drag.view.to - drag.view.from, from = Math.min(Math.max(drag.view.from - by * scale, whole.from), whole.to - length);
      setView(from, from + length);
    }
  });
  canvas.addEventListener('pointerup', (event) => {
    if (drag && !drag.moved) select(under(event), 'chart');
    drag = null;
    chart.classList.remove('moving');
  });
  canvas.addEventListener('pointerleave', () => { hovered = -1; tip.hidden = true; draw(); });
  canvas.addEventListener('dblclick', (event) => { const i = under(event); if (i >= 0) show(i, true); });
  canvas.addEventListener('wheel', (event) => {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      zoom(Math.exp(event.deltaY * 0.004), value(event.clientX - canvas.getBoundingClientRect().left, canvas.clientWidth));
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      move((event.deltaX || event.deltaY) / 800);
    }
  }, { passive: false });
  let brush = false;
  const centre = (event) => {
    const box = overview.getBoundingClientRect(), inner = overview.clientWidth - left();
    const at = whole.from + ((event.clientX - box.left - left()) / inner) * (whole.to - whole.from), half = (view.to - view.from) / 2;
    const from = Math.min(Math.max(at - half, whole.from), whole.to - 2 * half);
    setView(from, from + 2 * half);
  };
  overview.addEventListener('pointerdown', (event) => { brush = true; overview.setPointerCapture(event.pointerId); centre(event); });
  overview.addEventListener('pointermove', (event) => { if (brush) centre(event); });
  overview.addEventListener('pointerup', () => { brush = false; });

  // Keyboard
  function neighbour(key) {
    if (selected < 0) return count ? 0 : -1;
    const own = S.row[selected];
    if (key === 'ArrowUp') return S.parent[selected] >= 0 ? S.parent[selected] : selected;
    const step = key === 'ArrowLeft' ? -1 : 1;
    for (let i = selected + step; i >= 0 && i < count; i += step) {
      if (key === 'ArrowDown' ? S.parent[i] === selected : S.row[i] === own) return i;
    }
    return selected;
  }
  chart.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = {
      w: () => zoom(0.6), '+': () => zoom(0.6), s: () => zoom(1.6), '-': () => zoom(1.6), a: () => move(-0.25), d: () => move(0.25),
      0: fit, f: () => selected >= 0 && show(selected, true), Escape: () => select(-1, 'chart'),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (act) act();
    else if (event.key.startsWith('Arrow')) {
      const i = neighbour(event.key);
      if (i >= 0) { select(i, 'keys'); show(i, false); }
    } else return;
    event.preventDefault();
  });

  byId('zoom-in').addEventListener('click', () => zoom(0.5));
  byId('zoom-out').addEventListener('click', () => zoom(2));
  byId('fit').addEventListener('click', fit);
  byId('find').addEventListener('input', (event) => { wanted = event.target.value.trim().toLowerCase(); draw(); });
  document.querySelectorAll('input[name=axis]').forEach((input) => input.addEventListener('change', () => {
    axis = axes[input.value];
    extent();
    fit();
    if (selected >= 0) show(selected, false);
  }));
  selectionListeners.push((i, from) => {
    if (i >= 0 && from !== 'chart') show(i, false);
    detail(i);
    draw();
  });
  const seen = new Set();
  for (let i = 0; i < count; i++) seen.add(category(i));
  const legend = () => byId('legend').replaceChildren(...Object.keys(WORDS).filter((key) => seen.has(key)).map((key) =>
    el('li', {}, swatch(palette[key], SHAPES[key]), WORDS[key])));
  redraws.push(draw, legend);
  extent();
  view = whole;
  legend();
  draw();
}
