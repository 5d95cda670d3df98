// The head of the page, and the tables.
function swatch(colour, shape) {
  const mark = el('i', { class: shape ?? '' });
  mark.style.background = colour;
  return mark;
}

function head() {
  const modules = data.modules.map((module) => module.name);
  byId('title').textContent = modules.length ? modules.join(', ') : 'No module at EL2';
  const machine = data.machine;
  byId('machine').textContent = [
    data.generation, machine.mode, machine.features.join(' '), plural(machine.cpus, 'CPU'),
    `${number(machine.ram / 2 ** 20)} MiB of RAM at ${hex(machine.ramBase)}`,
  ].filter(Boolean).join(' · ');
  const failed = data.boot.outcomes.find((outcome) => outcome.status !== 'loaded');
  const status = byId('status');
  if (data.boot.failure || failed) {
    status.classList.add('bad');
    status.textContent = data.boot.failure || failed.reason || `${failed.name}: ${failed.status}`;
  } else if (!data.boot.deprivileged) status.textContent = 'The host is not deprivileged';
  else status.textContent = `Booted: the host is deprivileged, ${data.boot.secure ? 'the system is secure' : 'the system is insecure'}`;
  const sum = (rows, kinds) => rows.filter((row) => kinds.includes(row.kind)).reduce((total, row) => total + row.calls, 0);
  const figures = [
    ['hypercalls', sum(data.costs.traps, ['hvc'])],
    ['SMCs', sum(data.costs.traps, ['smc'])],
    ['op calls', sum(data.costs.ops, ['op'])],
    ['ownership changes', data.memory.changes.length],
  ];
  if (data.counted) {
    const own = data.coverage.reduce((total, f) => [total[0] + f.executed, total[1] + f.total], [0, 0]);
    figures.push(['instructions at EL2', data.costs.traps.reduce((total, row) => total + row.total, 0)]);
    if (own[1]) figures.push(['of the EL2 code ran', `${Math.round((100 * own[0]) / own[1])}%`]);
  }
  byId('figures').append(...figures.map(([label, value]) =>
    el('div', {}, el('dt', {}, label), el('dd', {}, typeof value === 'number' ? number(value) : value))));
}

// A table whose columns sort: [title, value of a row, cell of a row, is a number].
function table(node, columns, rows, empty, tail) {
  const body = el('tbody');
  let order = null;
  const headings = columns.map(([title, value, , isNumber], index) => {
    const heading = el('th', { scope: 'col', class: isNumber ? 'n' : '' });
    if (!value) return heading.append(title), heading;
    const button = el('button', { type: 'button' }, title);
    button.addEventListener('click', () => {
      const down = order?.index === index ? !order.down : isNumber;
      order = { index, down };
      headings.forEach((other) => other.removeAttribute('aria-sort'));
      heading.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      fill();
    });
    heading.append(button);
    return heading;
  });
  function fill() {
    const sorted = [...rows];
    if (order) {
      const value = columns[order.index][1];
      const compare = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
      sorted.sort((a, b) => (order.down ? compare(b, a) : compare(a, b)));
    }
    body.replaceChildren(...sorted.map((row) => el('tr', {}, ...columns.map(([, value, cell, isNumber], index) =>
      el(index ? 'td' : 'th', { scope: index ? null : 'row', class: isNumber ? 'n' : '' },
        ...[cell ? cell(row) : isNumber ? number(value(row)) : value(row)].flat())))));
    if (!sorted.length) body.append(el('tr', {}, el('td', { class: 'empty', colspan: columns.length }, empty)));
    else if (tail) body.append(...tail());
  }
  node.append(el('thead', {}, el('tr', {}, ...headings)), body);
  fill();
}

const refusals = (row) => Object.entries(row.refused).map(([error, times]) => `${error}${times > 1 ? ` ×${times}` : ''}`).join(', ');

function costColumns(withKind) {
  const columns = [
    ['Name', (row) => row.name, (row) => [withKind ? el('span', { class: 'tag' }, WORDS[row.kind]) : '', el('code', {}, row.name)]],
    ['Calls', (row) => row.calls, null, true],
    ['Refused', (row) => refusals(row), (row) => el('span', { class: 'refused' }, refusals(row))],
  ];
  if (data.counted) {
    for (const [title, key] of [['Min', 'min'], ['Median', 'median'], ['Max', 'max'], ['Total', 'total']]) {
      columns.push([title, (row) => row[key], (row) => (row.max ? number(row[key]) : '–'), true]);
    }
  }
  return columns;
}

function costTables() {
  byId('costs-note').textContent = data.counted
    ? 'Costs are instructions executed at EL2 from the beginning of a call to its end, with everything that it calls; an op that the emulator '
      + 'performs itself costs nothing but what it calls.'
    : 'Instructions were not counted in this run, so there are no costs here.';
  table(byId('traps'), costColumns(true), data.costs.traps, 'No trap reached EL2.');
  table(byId('ops'), costColumns(false), data.costs.ops, 'No op was called.');
  if (data.calls.length) {
    byId('made').hidden = false;
    table(byId('calls'), [
      ['Call', (call) => call.name, (call) => el('code', {}, `${call.name}(${call.args.join(', ')})`)],
      ['Result', (call) => call.result, (call) => el('code', {}, call.result)],
    ], data.calls, '');
  }
}

function bootTable() {
  const boot = data.boot, byName = new Map(data.modules.map((module) => [module.name, module]));
  const rows = boot.outcomes.map((outcome) => ({ ...outcome, ...byName.get(outcome.name), status: outcome.status }));
  const known = new Set(rows.map((row) => row.name));
  rows.push(...data.modules.filter((module) => !known.has(module.name)).map((module) => ({ ...module, reason: '' })));
  byId('boot-note').textContent = `The host is ${boot.deprivileged ? '' : 'not '}deprivileged${boot.deprivileged
    ? `, and the system is ${boot.secure ? 'secure' : 'insecure: protected VMs are refused'}` : ''}.${boot.failure ? ` It ended: ${boot.failure}` : ''}`;
  table(byId('modules'), [
    ['Module', (row) => row.name, (row) => el('code', {}, row.name)],
    ['Status', (row) => row.status, (row) => (row.status === 'loaded' || row.status === 'live' ? row.status : el('span', { class: 'refused' }, row.status))],
    ['Token', (row) => row.token ?? '', (row) => el('code', {}, row.token ?? '')],
    ['Hypercalls', (row) => Object.keys(row.hypercalls ?? {}).length,
      (row) => Object.entries(row.hypercalls ?? {}).map(([name, id]) => el('div', {}, el('code', {}, `${id} ${name}`)))],
    ...(rows.some((row) => row.reason) ? [['Reason', (row) => row.reason]] : []),
  ], rows, 'No module was loaded.');
}

// Line numbers in a row as ranges: 3-5, 8.
function ranges(lines) {
  const found = [];
  for (const line of lines) {
    const last = found[found.length - 1];
    if (last && line <= last[1] + 1) last[1] = line;
    else found.push([line, line]);
  }
  return found.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(', ');
}

function lineList(f) {
  if (!f.files.length) return '';
  const parts = f.files.map(({ file, lines }) => {
    const pick = (test) => ranges(lines.filter(test).map((line) => line[0]));
    const none = pick(([, done]) => !done), some = pick(([, done, all]) => done && done < all), full = pick(([, done, all]) => done === all);
    return el('div', { class: 'lines' }, el('b', {}, file), full ? `ran: ${full}  ` : '',
      some ? el('u', {}, `in part: ${some}  `) : '', none ? el('s', {}, `not run: ${none}`) : '');
  });
  return el('details', {}, el('summary', {}, 'lines'), ...parts);
}

function coverageTable() {
  byId('coverage-note').textContent = data.counted
    ? 'Instructions of each function of a module’s EL2 code that were executed at least once.'
    : 'The code that ran was not watched, so nothing is known about coverage.';
  const calls = new Map(data.costs.functions.map((row) => [row.name, row]));
  const share = (f) => (f.total ? f.executed / f.total : 0);
  table(byId('functions'), [
    ['Function', (f) => f.name, (f) => [el('code', {}, f.name), lineList(f)]],
    ['Module', (f) => f.module],
    ['Calls', (f) => calls.get(f.name)?.calls ?? 0, null, true],
    ['Median cost', (f) => calls.get(f.name)?.median ?? -1, (f) => (calls.has(f.name) ? number(calls.get(f.name).median) : '–'), true],
    ['Executed', share, (f) => {
      const fill = el('i', { class: f.executed && f.executed < f.total ? 'some' : '' });
      fill.style.width = `${100 * share(f)}%`;
      return [el('span', { class: 'bar', 'aria-hidden': 'true' }, fill), el('span', { class: 'of' }, `${number(f.executed)} / ${number(f.total)}`)];
    }, true],
  ], data.coverage, 'No module has code at EL2.');
}

function logTable() {
  byId('dmesg').append(el('tbody', {}, ...data.log.map(([level, time, line]) =>
    el('tr', { class: level <= 3 ? 'err' : level === 4 && /warn|fail|error|bug/i.test(line) ? 'warn' : '' },
      el('td', {}, (time / 1e9).toFixed(6)), el('td', {}, line)))));
}

// The list of records draws only the lines that are in view.
function recordList() {
  const LINE = 26;
  const box = byId('list'), space = el('div', { class: 'space', role: 'rowgroup' });
  box.append(space);
  const words = new Array(count);
  const wordsOf = (i) => (words[i] ??= [name(i), WORDS[category(i)], rowTitle(i), ...given(i).flat()].join(' ').toLowerCase());
  let shown = [];
  const apply = () => {
    const wanted = byId('filter').value.trim().toLowerCase();
    shown = [];
    for (let i = 0; i < count; i++) if (!wanted || wordsOf(i).includes(wanted)) shown.push(i);
    space.style.height = `${shown.length * LINE}px`;
    byId('record-count').textContent = shown.length === count ? plural(count, 'record') : `${number(shown.length)} of ${plural(count, 'record')}`;
    box.setAttribute('aria-rowcount', shown.length);
    draw();
  };
  const draw = () => {
    const first = Math.max(0, Math.floor(box.scrollTop / LINE) - 6), last = Math.min(shown.length, first + Math.ceil(box.clientHeight / LINE) + 12);
    const lines = [];
    for (let at = first; at < last; at++) {
      const i = shown[at];
      const values = [...given(i), ...results(i).map(([key, value]) => [`→ ${key}`, value])].map(([key, value]) => `${key}=${value}`).join('  ');
      const line = el('div', { class: i === selected ? 'line on' : 'line', role: 'row', 'aria-rowindex': at + 1 },
        el('span', { class: 't', role: 'cell' }, moment(S.start[i])),
        el('span', { class: 'k', role: 'cell' }, swatch(palette[category(i)], SHAPES[category(i)]), WORDS[category(i)]),
        el('span', { class: 'w', role: 'cell' }, rowTitle(i).replace('CPU ', '')),
        el('span', { class: 'name', role: 'cell', title: name(i) }, name(i)),
        el('span', { class: 'a', role: 'cell' }, values));
      line.style.top = `${at * LINE}px`;
      line.addEventListener('click', () => select(i, 'list'));
      lines.push(line);
    }
    space.replaceChildren(...lines);
  };
  box.addEventListener('scroll', draw);
  byId('filter').addEventListener('input', () => { box.scrollTop = 0; apply(); });
  selectionListeners.push((i, from) => {
    const at = shown.indexOf(i);
    if (from !== 'list' && at >= 0) box.scrollTop = at * LINE - box.clientHeight / 2;
    draw();
  });
  redraws.push(draw);
  apply();
}
