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
