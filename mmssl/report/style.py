"""The report's style sheet and its one script. Both stand in the page itself: a report loads nothing."""

CSS = """
:root { color-scheme: light dark; --page: #f6f6f3; --card: #fff; --ink: #1d2127; --soft: #59616c; --line: #dcdedb;
  --faint: #eceeea; --link: #005a91; --good: #00684a; --warn: #8a5200; --bad: #a83c00; --good-bg: #e3f3ec;
  --warn-bg: #fdf0d9; --bad-bg: #fbe6dc; --none-bg: #eceeea;
  --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #cc79a7; --s4: #e69f00; --s5: #56b4e9; --s6: #6b6b6b; --s7: #b8a900; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1c2026; --ink: #e6e8ea; --soft: #a2abb6;
  --line: #353b44; --faint: #272c34; --link: #7cc4f2; --good: #5fd3ab; --warn: #f0b95a; --bad: #ff9b6a;
  --good-bg: #163229; --warn-bg: #38290f; --bad-bg: #3d2115; --none-bg: #272c34;
  --s0: #56b4e9; --s1: #f0803c; --s2: #2fc79b; --s3: #dd9fc4; --s4: #e69f00; --s5: #2f8fd0; --s6: #b0b0b0; --s7: #f0e442; } }
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums lining-nums; }
main, header, footer, nav { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 36px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 10px; letter-spacing: -.015em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 44px 0 12px; letter-spacing: -.01em; scroll-margin-top: 12px; }
h3 { font-size: 1rem; margin: 28px 0 8px; }
p { margin: 0 0 12px; max-width: 72ch; }
a { color: var(--link); }
.kind { color: var(--soft); margin: 0 0 4px; font-size: .9rem; }
.chips { display: flex; flex-wrap: wrap; gap: 8px; margin: 0 0 18px; padding: 0; list-style: none; }
.chip { display: inline-flex; gap: 6px; align-items: baseline; padding: 2px 12px; border-radius: 999px; font-size: .9rem;
  font-weight: 600; border: 1px solid currentColor; white-space: nowrap; }
.good { color: var(--good); background: var(--good-bg); } .warn { color: var(--warn); background: var(--warn-bg); }
.bad { color: var(--bad); background: var(--bad-bg); } .unknown { color: var(--soft); background: var(--none-bg); }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 20px 0 0; padding: 10px 0 0; list-style: none;
  border-top: 1px solid var(--line); font-size: .95rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; min-width: 0; }
.card + .card { margin-top: 16px; }
.verdict { color: var(--ink); border-left: 5px solid; margin-bottom: 18px; }
.verdict.good { border-left-color: var(--good); } .verdict.warn { border-left-color: var(--warn); }
.verdict.bad { border-left-color: var(--bad); } .verdict.unknown { border-left-color: var(--soft); }
.verdict p { margin: 0; } .verdict ul { margin: 8px 0 0; padding-left: 20px; } .verdict li + li { margin-top: 4px; }
.verdict .head { font-weight: 650; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px 24px; margin: 0; }
.facts dt { color: var(--soft); font-size: .82rem; } .facts dd { margin: 0; font-weight: 550; }
.command { margin: 16px 0 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 16px; align-items: start; }
.grid > .card { margin: 0; } .grid > .full { grid-column: 1 / -1; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px; align-items: start; }
.pair > .card { margin: 0; }
figure { margin: 0; } figcaption { margin: 0 0 8px; } figcaption strong { display: block; font-size: .98rem; }
figcaption span, .note { color: var(--soft); font-size: .88rem; }
.none { color: var(--soft); }
.scroll { overflow-x: auto; max-width: 100%; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; overflow-wrap: normal; }
caption { text-align: left; color: var(--soft); font-size: .88rem; padding-bottom: 8px; }
th, td { text-align: right; padding: 8px 10px; border-top: 1px solid var(--line); vertical-align: top; white-space: nowrap; }
thead th { border-top: 0; color: var(--soft); font-weight: 600; font-size: .82rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } tbody th { font-weight: 600; }
td.text, th.text { text-align: left; white-space: normal; min-width: 16ch; }
td b { font-weight: 650; } .span { display: block; color: var(--soft); font-size: .85em; }
ul.words { margin: 0 0 16px; padding-left: 20px; } ul.words li + li { margin-top: 6px; }
.mark { font-weight: 700; }
pre { margin: 0; font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; white-space: pre;
  overflow: auto; max-width: 100%; background: var(--faint); border-radius: 8px; padding: 12px 14px; overflow-wrap: normal; }
pre.tall { max-height: 560px; } details pre { max-height: 260px; user-select: all; }
code { font: .9em ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
summary { cursor: pointer; color: var(--link); font-size: .88rem; padding: 4px 0; width: fit-content; }
details > *:not(summary) { margin-top: 6px; } .grid details, .pair details, .card > details { margin-top: 6px; }
svg.chart { display: block; width: 100%; height: auto; overflow: visible; touch-action: pan-y; }
.narrow { display: none; }
.chart text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; fill: var(--soft);
  font-variant-numeric: tabular-nums; }
.chart .axis { fill: var(--soft); } .chart .group { font-weight: 650; fill: var(--ink); font-size: 12px; }
.chart .legend text, .intervals .series text { fill: var(--ink); }
.chart .rule { stroke: var(--line); stroke-width: 1; } .chart .base, .chart .tick { stroke: var(--soft); stroke-width: 1; }
.chart .series path { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.chart .series circle { fill: var(--c); } .chart .series .ring { fill: var(--card); stroke: var(--c); stroke-width: 2; }
.chart .cursor line { stroke: var(--soft); stroke-dasharray: 2 3; }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); }
.s4 { --c: var(--s4); } .s5 { --c: var(--s5); } .s6 { --c: var(--s6); } .s7 { --c: var(--s7); }
.read { min-height: 1.5em; color: var(--soft); font-size: .82rem; margin: 2px 0 0; }
.picture img { display: block; max-width: 100%; height: auto; border-radius: 6px; margin: 0 auto; background: #fff; }
.picture img.map { background: none; width: 100%; max-width: 760px; }
dl.table { display: grid; grid-template-columns: minmax(9ch, max-content) minmax(0, 1fr); gap: 4px 18px; margin: 0; font-size: .9rem; }
dl.table dt { color: var(--soft); max-width: 26ch; } dl.table dd { margin: 0; }
footer { color: var(--soft); font-size: .85rem; margin-top: 56px; padding-bottom: 40px; }
@media (max-width: 700px) {
  main, header, footer, nav { padding: 0 16px; } header { padding-top: 24px; } footer { padding-bottom: 32px; }
  h1 { font-size: 1.6rem; } .card { padding: 14px; } .grid, .pair { grid-template-columns: minmax(0, 1fr); }
  .facts { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 12px 16px; }
  .wide { display: none; } .narrow { display: block; }
  dl.table { grid-template-columns: minmax(0, 1fr); gap: 0; } dl.table dd { margin-bottom: 8px; }
}
@media print {
  :root { color-scheme: light; --page: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #ccc; --faint: #f4f4f4;
    --link: #000; --good: #00684a; --warn: #8a5200; --bad: #a83c00; --good-bg: #fff; --warn-bg: #fff; --bad-bg: #fff;
    --none-bg: #fff; --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #cc79a7; --s4: #e69f00; --s5: #56b4e9;
    --s6: #6b6b6b; --s7: #b8a900; }
  body { font-size: 11pt; } nav, .read, details:not([open]) { display: none; } h2, h3 { break-after: avoid; }
  .card, figure, tr { break-inside: avoid; } .card:has(pre.tall) { break-inside: auto; }
  pre, pre.tall, details pre { max-height: none; white-space: pre-wrap; overflow: visible; overflow-wrap: anywhere; }
  .scroll { overflow: visible; } th, td { white-space: normal; }
}
"""

SCRIPT = """
for (const svg of document.querySelectorAll('svg[data-low]')) {
  const d = svg.dataset, box = svg.viewBox.baseVal, cursor = svg.querySelector('.cursor');
  const left = +d.left, right = +d.right, low = +d.low, high = +d.high;
  const lines = [...svg.querySelectorAll('.series[data-x]')].map(g => (
    {name: g.dataset.name, x: g.dataset.x.split(' ').map(Number), y: g.dataset.y.split(' ')}));
  const read = document.createElement('p');
  read.className = 'read';
  read.setAttribute('aria-hidden', 'true');
  svg.after(read);
  const nearest = (xs, at) => xs.reduce((best, x, i) => Math.abs(x - at) < Math.abs(xs[best] - at) ? i : best, 0);
  svg.addEventListener('pointermove', event => {
    const rect = svg.getBoundingClientRect(), px = (event.clientX - rect.left) / rect.width * box.width;
    const at = low + (px - left) / (right - left) * (high - low), all = lines.flatMap(line => line.x);
    const x = all[nearest(all, at)], place = left + (x - low) / (high - low) * (right - left);
    cursor.setAttribute('transform', `translate(${place} 0)`);
    cursor.setAttribute('visibility', 'visible');
    read.textContent = `${d.xTitle} ${x}: ` + lines.filter(line => line.x.includes(x))
      .map(line => (lines.length > 1 ? line.name + ' ' : '') + line.y[line.x.indexOf(x)]).join(', ');
  });
  svg.addEventListener('pointerleave', () => { cursor.setAttribute('visibility', 'hidden'); read.textContent = ''; });
}
"""
