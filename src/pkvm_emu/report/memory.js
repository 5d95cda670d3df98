// The ownership map: RAM in blocks of 2 MiB, one block page by page, at the moment that the slider says.
const BLOCK_PAGES = 512, BLOCK_COLUMNS = 32, CHECKPOINT = 1000, PAGE = 4096;

function memory() {
  const M = data.memory, changes = M.changes, slider = byId('moment');
  const blocks = Math.ceil(M.pages / BLOCK_PAGES);
  const checkpoints = [new Uint8Array(M.pages)];
  let state = new Uint8Array(M.pages), now = 0, chosen = 0, hot = null;

  function apply(into, [, pfn, pages, kind]) {
    const first = Math.max(pfn - M.base, 0), last = Math.min(pfn - M.base + pages, M.pages);
    if (first < last) into.fill(kind, first, last);
  }
  function goTo(index) {
    if (index < now) {
      const from = Math.floor(index / CHECKPOINT);
      state = checkpoints[from].slice();
      now = from * CHECKPOINT;
    }
    while (now < index) {
      apply(state, changes[now]);
      now += 1;
      if (now % CHECKPOINT === 0 && !checkpoints[now / CHECKPOINT]) checkpoints[now / CHECKPOINT] = state.slice();
    }
    hot = index ? changes[index - 1] : null;
    if (hot && hot[1] >= M.base && hot[1] < M.base + M.pages) chosen = Math.floor((hot[1] - M.base) / BLOCK_PAGES);
    slider.value = index;
    slider.setAttribute('aria-valuetext', describe());
    byId('earlier').disabled = index === 0;
    byId('later').disabled = index === changes.length;
    draw();
  }
  const colour = (kind) => palette[`k-${M.kinds[kind].key.replaceAll('_', '-')}`];
  function describe() {
    if (!hot) return 'Before the first change: all of RAM is the host’s.';
    const [, pfn, pages, , op, before, after] = hot;
    return `${text[op]}: ${plural(pages, 'page')} at ${hex(pfn * PAGE)}, ${text[before]} to ${text[after]}`;
  }

  // How many pages of each kind are in a block.
  function counts(block) {
    const found = new Uint32Array(M.kinds.length), end = Math.min((block + 1) * BLOCK_PAGES, M.pages);
    for (let page = block * BLOCK_PAGES; page < end; page++) found[state[page]] += 1;
    return found;
  }

  const columns = (width) => (width < 520 ? 32 : 64);
  function drawRam() {
    const canvas = byId('ram'), across = columns(canvas.clientWidth), down = Math.ceil(blocks / across);
    const cell = canvas.clientWidth / across, high = Math.max(cell, 13);
    const [context] = sized(canvas, Math.ceil(down * high) + 2);
    for (let block = 0; block < blocks; block++) {
      const px = (block % across) * cell, py = Math.floor(block / across) * high, found = counts(block);
      const wide = cell - 1.5, tall = high - 1.5;
      context.fillStyle = colour(0);
      context.fillRect(px, py, wide, tall);
      // From the bottom, in proportion, but never too little to be seen.
      let filled = 0;
      for (let kind = 1; kind < found.length; kind++) {
        if (!found[kind]) continue;
        const part = Math.min(Math.max((found[kind] / BLOCK_PAGES) * tall, tall / 4), tall - filled);
        filled += part;
        context.fillStyle = colour(kind);
        context.fillRect(px, py + tall - filled, wide, part);
      }
    }
    const px = (chosen % across) * cell, py = Math.floor(chosen / across) * high;
    context.strokeStyle = palette.ink;
    context.lineWidth = 2;
    context.strokeRect(px - 0.5, py - 0.5, cell - 0.5, high - 0.5);
    byId('ram-caption').textContent = `RAM from ${hex(M.base * PAGE)} to ${hex((M.base + M.pages) * PAGE)}; a cell is 2 MiB, a row ${across * 2} MiB. `
      + 'What is not the host’s fills a cell from below. Click a cell, or use the arrow keys, to see its pages.';
  }

  function drawBlock() {
    const canvas = byId('block'), across = BLOCK_COLUMNS, first = chosen * BLOCK_PAGES;
    const cell = canvas.clientWidth / across, [context] = sized(canvas, Math.ceil((BLOCK_PAGES / across) * cell) + 2);
    for (let page = 0; page < BLOCK_PAGES && first + page < M.pages; page++) {
      const px = (page % across) * cell, py = Math.floor(page / across) * cell, pfn = M.base + first + page;
      context.fillStyle = colour(state[first + page]);
      context.fillRect(px, py, cell - 1, cell - 1);
      if (hot && pfn >= hot[1] && pfn < hot[1] + hot[2] && hot[2] < BLOCK_PAGES) {
        context.strokeStyle = palette.ink;
        context.lineWidth = 1.5;
        context.strokeRect(px + 0.25, py + 0.25, cell - 1.5, cell - 1.5);
      }
    }
    const start = (M.base + first) * PAGE;
    byId('block-caption').textContent = `The 512 pages from ${hex(start)} to ${hex(start + BLOCK_PAGES * PAGE)}, a row 128 KiB; what changed last is outlined.`;
  }

  function drawWords() {
    const total = new Uint32Array(M.kinds.length);
    for (let page = 0; page < M.pages; page++) total[state[page]] += 1;
    const rows = M.kinds.map((kind, index) => ({ kind, index, pages: total[index] })).filter((row) => row.pages);
    const size = (pages) => (pages >= 256 ? `${trim(pages / 256)} MiB` : `${pages * 4} KiB`);
    byId('kinds').replaceChildren(el('caption', { class: 'hidden' }, 'Pages of each kind at this moment'),
      el('thead', {}, el('tr', {}, el('th', { scope: 'col' }, 'Whose'), el('th', { scope: 'col', class: 'n' }, 'Pages'), el('th', { scope: 'col', class: 'n' }, 'Size'))),
      el('tbody', {}, ...rows.map((row) => el('tr', {}, el('th', { scope: 'row' }, swatch(colour(row.index)), row.kind.text),
        el('td', { class: 'n' }, number(row.pages)), el('td', { class: 'n' }, size(row.pages))))));
    if (!hot) return byId('change').replaceChildren(describe());
    const [time, pfn, pages, , op, before, after, origin] = hot;
    return byId('change').replaceChildren(el('span', { class: 'when' }, `${now} of ${changes.length} · ${moment(time)}`),
      el('code', {}, text[op]), ` ${plural(pages, 'page')} at `, el('code', {}, hex(pfn * PAGE)), el('span', { class: 'arrow' }, ': '),
      text[before], el('span', { class: 'arrow' }, ' → '), text[after], text[origin] ? ` (by ${text[origin]})` : '');
  }
  function draw() {
    drawRam();
    drawBlock();
    drawWords();
  }

  slider.max = changes.length;
  byId('memory-note').textContent = changes.length
    ? 'Who has which page. The slider goes from the state before boot through every change of ownership.'
    : 'No page changed hands.';
  slider.addEventListener('input', () => goTo(Number(slider.value)));
  byId('earlier').addEventListener('click', () => goTo(Math.max(0, now - 1)));
  byId('later').addEventListener('click', () => goTo(Math.min(changes.length, now + 1)));
  byId('ram').addEventListener('click', (event) => {
    const canvas = byId('ram'), box = canvas.getBoundingClientRect(), across = columns(canvas.clientWidth);
    const cell = canvas.clientWidth / across, high = Math.max(cell, 13);
    const block = Math.floor((event.clientY - box.top) / high) * across + Math.floor((event.clientX - box.left) / cell);
    if (block >= 0 && block < blocks) { chosen = block; draw(); }
  });
  byId('ram').addEventListener('keydown', (event) => {
    const across = columns(byId('ram').clientWidth);
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    chosen = Math.min(Math.max(chosen + by, 0), blocks - 1);
    draw();
  });
  // A record of an ownership change shows that moment here.
  const byTime = new Map(changes.map((change, index) => [`${change[0]} ${change[1]}`, index + 1]));
  selectionListeners.push((i) => {
    if (i < 0 || category(i) !== 'page') return;
    const page = given(i).find(([key]) => key === 'page');
    const index = page && byTime.get(`${S.start[i]} ${Math.floor(Number(page[1]) / PAGE)}`);
    if (index !== undefined) goTo(index);
  });
  redraws.push(draw);
  goTo(changes.length);
}
