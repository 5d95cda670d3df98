"""The page about a run, as text and in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from browser import Browser, find_chromium

from pkvm_emu.build.builder import build_module
from pkvm_emu.errors import UsageError
from pkvm_emu.machine.profile import MachineProfile
from pkvm_emu.report import save_html, to_html
from pkvm_emu.report.costs import error_of
from pkvm_emu.system import System, boot

EVENTS = Path(__file__).parents[2] / "modules/pkvm_events"
CMDLINE = "hyp_event=vault_open,vault_close,__hyp_printk,host_hcall"
SMALL = MachineProfile(ram_size=64 << 20)
PAGE = 0x4240_0000
NASTY = "</script><script>window.broken = 1</script><img src=http://example.invalid/x onerror=alert(1)><!-- \u2028"

COUNT_COLOURS = """(() => {
    const canvas = document.getElementById('canvas'), seen = new Set();
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    for (let i = 0; i < pixels.length; i += 4) seen.add(pixels[i] << 16 | pixels[i + 1] << 8 | pixels[i + 2]);
    return seen.size;
})()"""

needs_browser = pytest.mark.skipif(find_chromium() is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def module(tmp_path_factory) -> Path:
    return build_module(EVENTS, tmp_path_factory.mktemp("page") / "pkvm_events.ko", "16").path


@pytest.fixture(scope="module")
def system(module: Path) -> System:
    """A run with a bit of everything."""
    system = boot(16, [module], CMDLINE, SMALL, timeline=True)
    for key in range(8):
        system.call("pkvm_events_hyp_open", key)
    system.smc(0x8400_0000)
    vm = system.create_vm()
    vm.donate(PAGE, 0x8000_0000)
    vm.share(0x8000_0000)
    system.kernel.log.write(NASTY)
    return system


@pytest.fixture(scope="module")
def page(system: System, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "out.html"
    save_html(path, system.timeline, [("pkvm_events_hyp_open", (1,), "SMCCC_RET_SUCCESS")])
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def shown(browser, page):
    """The page, opened anew; it must neither complain nor ask for anything by the end of the test."""
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(page)
    yield browser
    assert browser.complaints == []
    assert set(browser.requests) == {page.as_uri()}


def data_of(text: str):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found[1])


# The text


def test_the_page_holds_everything_and_asks_for_nothing(page) -> None:
    text = page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert policy[1].startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy[1]
    assert not re.search(r"""(?:src|href)\s*=\s*["']?[^"'#\s]""", re.sub(r"<script.*?</script>", "", text, flags=re.S))
    assert "url(" not in text
    assert "@import" not in text


def test_strings_of_the_guest_cannot_leave_the_data(page, system: System) -> None:
    text = page.read_text()
    assert "window.broken" in text
    assert "<script>window.broken" not in text
    assert data_of(text)["log"][-1][2] == NASTY
    assert text.count("</script>") == 2


def test_the_same_run_gives_the_same_page(module) -> None:
    def run() -> str:
        system = boot(16, [module], CMDLINE, SMALL, timeline=True)
        system.call("pkvm_events_hyp_open", 3)
        return to_html(system.timeline)

    assert run() == run()


def test_costs_are_those_of_the_recording(page, system: System) -> None:
    data = data_of(page.read_text())
    row = next(row for row in data["costs"]["traps"] if row["name"] == "pkvm_events_hyp_open")
    spent = sorted(
        item.instructions
        for item in system.timeline.slices()
        if item.begin.name == "pkvm_events_hyp_open" and item.begin.flow < 0
    )
    assert (row["calls"], row["min"], row["max"], row["total"]) == (8, spent[0], spent[-1], sum(spent))
    ops = {row["name"]: row["calls"] for row in data["costs"]["ops"]}
    assert ops == {"tracing_reserve_entry": 16, "tracing_commit_entry": 16, "tracing_mod_hyp_printk": 8}


@pytest.mark.parametrize(
    ("category", "results", "error"),
    [
        ("op", (("result", -1),), "EPERM"),
        ("op", (("result", 5),), None),
        ("op", (), None),
        ("hvc", (("x0", 0), ("x1", -22)), "EINVAL"),
        ("hvc", (("x0", -1), ("x1", 0)), "NOT_SUPPORTED"),
        ("smc", (("x0", -1),), "NOT_SUPPORTED"),
        ("smc", (("x0", 0), ("x1", -1)), None),
    ],
)
def test_what_counts_as_refused(category: str, results, error: str | None) -> None:
    assert error_of(category, results) == error


def test_a_page_that_cannot_be_written_is_told(system: System, tmp_path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        save_html(tmp_path / "none" / "out.html", system.timeline)


# In a browser


@needs_browser
def test_the_head_says_what_ran_and_how_it_went(shown) -> None:
    assert shown.texts("h1") == ["pkvm_events"]
    assert shown.texts("#status")[0].startswith("Booted: the host is deprivileged, the system is secure")
    figures = dict(zip(shown.texts("#figures dt"), shown.texts("#figures dd"), strict=True))
    assert figures["op calls"] == "40"
    assert figures["SMCs"] == "1"


@needs_browser
def test_tables_have_a_row_for_each_thing_and_sort(shown) -> None:
    names = shown.texts("#ops tbody code")
    assert sorted(names) == ["tracing_commit_entry", "tracing_mod_hyp_printk", "tracing_reserve_entry"]
    assert "hypercallpkvm_events_hyp_open" in shown.texts("#traps tbody th")
    shown.run("document.querySelector('#traps thead button').click()")
    names = shown.texts("#traps tbody th code")
    assert names == sorted(names)
    assert shown.run("document.querySelector('#traps th').getAttribute('aria-sort')") == "ascending"
    assert shown.texts("#functions tbody th code")[-1] == "pkvm_events_hyp_init"
    assert "5 / 5" in shown.texts("#functions tbody tr:last-child td")
    assert shown.texts("#modules tbody th") == ["pkvm_events"]
    assert "128 pkvm_events_hyp_open" in shown.texts("#modules tbody code")
    assert NASTY in shown.texts("#dmesg td")
    assert shown.run("window.broken") is None


@needs_browser
def test_hovering_shows_arguments_and_a_click_selects(shown) -> None:
    box = shown.run(
        "(() => { const b = document.getElementById('canvas').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
    )
    found = ""
    for step in range(400):
        x = box[0] + 110 + step * (box[2] - 112) / 400
        shown.mouse("mouseMoved", x, box[1] + 24 + 6 + 10)
        if shown.run("document.getElementById('tip').hidden"):
            continue
        found = shown.run("document.getElementById('tip').innerText")
        if "pkvm_events_hyp_open" in found:
            shown.click(x, box[1] + 24 + 6 + 10)
            break
    assert "hypercall" in found
    assert "id = 0xc6000080" in found
    assert "→ x0 = 0" in found
    assert shown.texts("#detail h3") == ["pkvm_events_hyp_openhypercall"]
    assert "CPU 0 EL1" in shown.texts("#detail dd")


@needs_browser
def test_keys_go_from_slice_to_slice_and_zoom(shown) -> None:
    shown.run("document.getElementById('chart').focus()")
    seen = []
    for _ in range(3):
        shown.key("ArrowRight")
        seen += shown.texts("#detail h3")
    assert len(seen) == 3
    shown.key("ArrowDown")
    shown.key("ArrowUp")
    assert shown.texts("#detail h3")[0] == seen[-1]
    before = shown.run("document.getElementById('canvas').toDataURL()")
    shown.key("f")
    zoomed = shown.run("document.getElementById('canvas').toDataURL()")
    assert zoomed != before
    shown.key("0")
    assert shown.run("document.getElementById('canvas').toDataURL()") == before
    shown.key("Escape")
    assert shown.texts("#detail h3") == []


@needs_browser
def test_the_slider_goes_through_the_changes_of_ownership(shown, system: System) -> None:
    changes = list(system.timeline.page_changes)
    assert shown.run("document.getElementById('moment').max") == str(len(changes))
    assert shown.run("document.getElementById('later').disabled")

    def pages() -> dict[str, int]:
        rows = shown.run(
            "[...document.querySelectorAll('#kinds tbody tr')].map((row) => [...row.cells].map((c) => c.textContent))"
        )
        return {row[0]: int(row[1].replace(",", "")) for row in rows}

    assert pages()["a guest's, shared with the host"] == 1
    shown.run(
        "(() => { const s = document.getElementById('moment'); s.value = 0; s.dispatchEvent(new Event('input')); })()"
    )
    assert pages() == {"the host's": (64 << 20) // 4096}
    shown.run("document.getElementById('later').click()")
    assert pages()["the hypervisor's"] == changes[0].event.pages
    assert changes[0].event.op in shown.texts("#change")[0]


@needs_browser
def test_the_list_draws_what_is_in_view_and_filters(shown, system: System) -> None:
    total = len(system.timeline.slices())
    assert shown.texts("#record-count") == [f"{total:,} records"]
    assert len(shown.texts("#list .space .line")) < 60
    shown.run(
        "(() => { const f = document.getElementById('filter'); f.value = 'vault_open'; f.dispatchEvent(new Event('input')); })()"
    )
    assert shown.texts("#list .space .name") == ["vault_open"] * 8
    shown.run("document.querySelector('#list .space .line').click()")
    assert shown.texts("#detail h3") == ["vault_opentrace event"]


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1400, 900), (420, 800)])
def test_it_fits_its_window_in_both_schemes(shown, page, tmp_path, width: int, height: int, dark: bool) -> None:
    shown.open(page, width, height, dark)
    assert shown.run("document.documentElement.scrollWidth") <= width
    paper = shown.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(19, 21, 25)" if dark else "rgb(252, 252, 250)")
    picture = shown.screenshot(tmp_path / "page.png")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > 20_000
    # Bands, slices and text: the canvas is not empty.
    colours = shown.run(COUNT_COLOURS)
    assert colours > 20


@needs_browser
def test_a_page_about_nothing_works(browser, tmp_path) -> None:
    system = boot(16, profile=SMALL)
    system.record_timeline(instructions=False)
    save_html(tmp_path / "empty.html", system.timeline)
    browser.complaints.clear()
    browser.open(tmp_path / "empty.html")
    assert browser.texts("h1") == ["No module at EL2"]
    assert "were not counted" in browser.texts("#costs-note")[0]
    assert browser.texts("#ops .empty") == ["No op was called."]
    assert browser.complaints == []


@needs_browser
def test_a_failed_run_says_why(browser, system: System, tmp_path) -> None:
    system.timeline.failure = "EL2 panic: something <b>bad</b>"
    save_html(tmp_path / "failed.html", system.timeline)
    system.timeline.failure = ""
    browser.open(tmp_path / "failed.html")
    assert browser.texts("#status.bad") == ["EL2 panic: something <b>bad</b>"]
