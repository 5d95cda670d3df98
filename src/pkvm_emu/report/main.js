// Puts everything up, and draws again when the window changes.
head();
costTables();
coverageTable();
bootTable();
logTable();
timeline();
memory();
recordList();
let waiting = 0;
addEventListener('resize', () => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(redraw);
});
addEventListener('beforeprint', redraw);
document.documentElement.dataset.ready = 'yes';
