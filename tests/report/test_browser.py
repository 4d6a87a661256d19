"""What a browser makes of a report: it fits the screen, and its script runs under the page's own policy."""

from __future__ import annotations

import html as entities
import json
import re
import shutil
import subprocess

import pytest

from mmssl.report import html

pytestmark = pytest.mark.requires("browser")

PROBE = """<script>
document.querySelectorAll('details').forEach(d => d.open = true);
const wide = [...document.querySelectorAll('body *')].filter(e => {
  const r = e.getBoundingClientRect();
  return r.right > innerWidth + 0.5 && !e.closest('.scroll, pre, svg');
}).map(e => e.tagName + '.' + e.className);
const svg = document.querySelector('.narrow svg') && innerWidth <= 700
  ? document.querySelector('.narrow svg') : document.querySelector('.wide svg');
const r = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent('pointermove', {clientX: r.left + r.width * 0.6, clientY: r.top + 40}));
parent.postMessage(JSON.stringify({width: innerWidth, scroll: document.documentElement.scrollWidth, wide,
  read: svg.nextElementSibling.textContent, shown: document.querySelectorAll('.chart').length,
  dark: getComputedStyle(document.body).backgroundColor}), '*');
</script>"""
# A headless window cannot be narrower than 500 pixels; a frame can, and has a screen's media queries.
FRAME = """<!DOCTYPE html><script>addEventListener('message', e => (document.body.dataset.probe = e.data));</script>
<body><iframe src="probe.html" width="{0}" height="{1}" style="border:0"></iframe></body>"""


def chromium(folder, file, *flags):
    """Runs a headless browser with a profile of its own; returns what it prints."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(path for path in map(shutil.which, names) if path)
    quiet = (
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "hide-scrollbars",
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", *(f"--{flag}" for flag in quiet)]
    command = [program, *options, f"--user-data-dir={folder / 'profile'}", *flags, file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def probe(folder, page, width, height, *flags):
    """Measures a copy of the page, at the size of a screen, that allows one more script: the probe."""
    policy = re.compile(r"script-src &#x27;sha256-[^;]*&#x27;")
    source, changed = policy.subn("script-src 'unsafe-inline'", page.read_text(encoding="utf-8"))
    assert changed == 1
    (folder / "probe.html").write_text(source.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width, height))
    found = re.search(
        r'data-probe="([^"]*)"', chromium(folder, frame, "--dump-dom", "--virtual-time-budget=5000", *flags)
    )
    assert found, "the probe did not run"
    return json.loads(entities.unescape(found[1]))


@pytest.fixture
def pages(make_run, tmp_path):
    """A report of one run and one of several, with long names."""
    long = "image/a_method_with_quite_a_long_name_that_does_not_break_anywhere_at_all"
    runs = [
        make_run("20261120-1-aaa"),
        make_run("20261120-2-bbb", {"recipe": long}, seed=1),
        make_run("20261120-3-ccc", seed=2),
    ]
    command = '{"command": "mmssl pretrain ' + "x" * 300 + '", "path": "/' + "long" * 80 + '"}'
    (runs[1] / "environment.json").write_text(command)
    return [html.write(runs[1], tmp_path / "one.html"), html.write(runs, tmp_path / "many.html")]


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_no_horizontal_overflow(pages, tmp_path, width, height):
    for page in pages:
        seen = probe(tmp_path, page, width, height)
        assert seen["width"] == width
        assert seen["scroll"] <= width, seen["wide"]
        assert seen["wide"] == []
        assert re.match(r"step \d+: .*0\.\d+", seen["read"])
        picture = tmp_path / "shot.png"
        chromium(tmp_path, page, f"--window-size={width},{height}", f"--screenshot={picture}")
        assert_drawn(picture, width)


def assert_drawn(picture, width):
    """The screenshot has the asked width and is not blank."""
    from PIL import Image

    with Image.open(picture) as image:
        assert image.width == width
        assert len(image.convert("RGB").resize((64, 64)).getcolors(64 * 64)) > 20


def test_the_policy_lets_the_pages_own_script_run(pages, tmp_path):
    """Only the script makes read-outs, so the policy's digest fits it; a further script is refused."""
    page = pages[0]
    page.write_text(
        page.read_text(encoding="utf-8").replace("</body>", "<script>document.title = 'broken into'</script></body>")
    )
    seen = chromium(tmp_path, page, "--dump-dom")
    assert seen.count('<p class="read"') == seen.count("data-low=") > 5
    assert "<title>broken into" not in seen


def test_dark_screens_get_a_dark_page(pages, tmp_path):
    colours = [
        probe(tmp_path, pages[0], 390, 844, f"--blink-settings=preferredColorScheme={kind}")["dark"] for kind in (1, 0)
    ]
    light, dark = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert light > 600 and dark < 150
