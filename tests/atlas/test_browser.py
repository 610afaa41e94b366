"""The atlas in a real browser: Chromium through Playwright; skipped where either is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sync = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium", allow_module_level=True)

ROOT = Path(__file__).parents[2]
REVIEW = ROOT / "reports/review"
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 900}


@pytest.fixture(scope="session")
def browser():
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


class Tab:
    """A page that keeps what it complained about and what it asked the network for."""

    def __init__(self, browser, **options) -> None:
        self.page = browser.new_context(viewport=DESK, **options).new_page()
        self.page.set_default_timeout(60_000)
        self.complaints, self.requests = [], []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))

    def open(self, file: Path, query: str = "") -> "Tab":
        self.page.goto(file.as_uri() + query)
        return self

    def rows(self) -> list[str]:
        return self.page.eval_on_selector_all("#table tbody tr:not([hidden])", "rows => rows.map(r => r.id)")

    def told(self) -> tuple[str, dict[str, int]]:
        counts = self.page.eval_on_selector_all(
            "[name=verdict]", "boxes => boxes.map(b => [b.value, +b.closest('label').querySelector('output').value])"
        )
        return self.page.locator("#shown").inner_text(), dict(counts)

    def address(self) -> str:
        self.page.wait_for_timeout(400)  # the address follows a little later
        return self.page.url.partition("?")[2]


@pytest.fixture
def tab(browser):
    made = Tab(browser)
    yield made
    made.page.context.close()
    assert not made.complaints
    assert not [url for url in made.requests if not url.startswith(("file:", "data:"))]


def expected(site, fits) -> set[str]:
    return {f"{r['slug']}.{c['id']}" for r in site.records for c in r["claims"] if fits(r, c)}


def test_filters_show_what_they_say(tab, site):
    page = tab.open(site.folder / "index.html").page
    assert len(tab.rows()) == 1000
    page.select_option("[name=chapter]", "convex")
    page.select_option("[name=where]", "run")
    fits = expected(site, lambda r, c: r["chapter"] == "convex" and r["source"] == "run")
    assert set(tab.rows()) == fits
    page.check("[value=replicated]")
    page.check("[value=vacuous]")
    both = expected(
        site,
        lambda r, c: r["chapter"] == "convex" and r["source"] == "run" and c["verdict"] in ("replicated", "vacuous"),
    )
    assert set(tab.rows()) == both and both
    shown, counts = tab.told()
    assert shown == f"{len(both)} of 1000 claims"
    assert sum(counts.values()) == len(fits) and counts["replicated"] + counts["vacuous"] == len(both)
    page.fill("[name=q]", "paper-05 CLAIM .c2")
    assert set(tab.rows()) == {row for row in both if row.startswith("paper-05") and row.endswith(".c2")}
    page.fill("[name=q]", "no such words")
    assert tab.rows() == [] and page.locator("#nothing").is_visible()
    page.click("text=Show all >> nth=0")
    assert len(tab.rows()) == 1000
    page.select_option("[name=cost]", "60-300")
    assert set(tab.rows()) == expected(site, lambda r, c: 60 <= r["cost"]["cpu_s"] <= 300 and r["source"] != "none")
    page.select_option("[name=cost]", "")
    page.select_option("[name=age]", "0-7")
    assert tab.rows() == []
    page.select_option("[name=age]", "365-")
    assert len(tab.rows()) == 1000


def test_a_view_can_be_shared(browser, tab, site):
    page = tab.open(site.folder / "index.html").page
    page.select_option("[name=chapter]", "physics")
    page.check("[value='not replicated']")
    page.check("[value=inconclusive]")
    page.fill("[name=q]", "claim 3")
    page.locator("thead button", has_text="Cost").click()
    page.locator("thead button", has_text="Cost").click()
    address = tab.address()
    assert "chapter=physics" in address and "sort=-cost" in address and address.count("verdict=") == 2
    other = Tab(browser).open(site.folder / "index.html", "?" + address)
    assert other.rows() == tab.rows() and other.rows()
    costs = {r["slug"]: r["cost"]["cpu_s"] if r["source"] != "none" else -1 for r in site.records}
    found = [costs[row.partition(".")[0]] for row in other.rows()]
    assert found == sorted(found, reverse=True)
    assert other.page.locator("th[data-key=cost]").get_attribute("aria-sort") == "descending"
    assert not other.complaints
    other.page.context.close()


def test_keyboard_alone(tab, site):
    page = tab.open(site.folder / "index.html").page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.focus("[name=q]")
    page.keyboard.type("paper-007")
    assert len(tab.rows()) == 4
    page.focus("thead button")
    page.keyboard.press("Enter")
    order = ["replicated", "not replicated", "inconclusive", "vacuous", "not measured"]
    verdicts = page.eval_on_selector_all("tbody tr:not([hidden])", "rows => rows.map(r => r.dataset.verdict)")
    assert verdicts == sorted(verdicts, key=order.index)
    page.focus("tbody tr:not([hidden]) a")
    page.keyboard.press("Enter")
    page.wait_for_url("**/paper-007.html*") if (site.folder / "alignment/paper-007.html").exists() else None


def test_a_row_that_is_linked_to_is_shown(tab, site):
    page = tab.open(site.folder / "index.html", "?chapter=convex#paper-000.c2").page
    assert page.locator("[id='paper-000.c2']").is_visible()
    page.select_option("[name=chapter]", "physics")
    page.locator(".picture a").first.click()
    assert page.locator("[id='paper-000.c1']").is_visible()
    assert page.locator(".picture i.off").count() == 0


def test_without_javascript_a_plain_table_remains(browser, site):
    tab = Tab(browser, java_script_enabled=False).open(site.folder / "index.html")
    assert not tab.page.locator("#filters").is_visible()
    assert tab.page.locator("tbody tr").count() == 1000 and tab.page.locator("tbody tr").last.is_visible()
    assert not tab.complaints
    tab.page.context.close()


def pages_of(site) -> list[Path]:
    first, second, *_ = site.cards
    return [site.folder / name for name in ("index.html", "across.html", f"{first}.html", f"{second}.html")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_and_accessibility(browser, site, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    small = type(site)(site.folder.parent / f"small-{scheme}" / "laptop", 10)  # axe needs seconds for a thousand rows
    small.write()
    tab = Tab(browser, color_scheme=scheme)
    for file in pages_of(small):
        page = tab.open(file).page
        for size in (DESK, PHONE):
            page.set_viewport_size(size)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= size["width"], f"{file.name}: {wide} pixels wide at {size['width']}"
            assert findings(axe, page) == [], file.name
    assert not tab.complaints
    tab.page.context.close()


def findings(axe, page) -> list[str]:
    """Serious and critical findings of axe-core, with where."""
    found = axe.run(page).response["violations"]
    return [
        f"{v['id']}: {n['html'][:150]} {n['failureSummary'][:300]}"
        for v in found
        if v["impact"] in ("serious", "critical")
        for n in v["nodes"][:3]
    ]


def test_copy_button(tab, site):
    page = tab.open(site.folder / f"{next(iter(site.cards))}.html").page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("button", has_text="Copy").nth(1).click()
    page.wait_for_selector("text=Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "snakemake --cores all reports/laptop/alignment/paper-000.html"


def test_a_thousand_claims_load_and_filter_quickly(tab, site):
    """Generous limits for a busy machine; benchmarks/atlas.py prints the times."""
    page = tab.open(site.folder / "index.html").page
    assert page.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart") < 10_000
    page.fill("[name=q]", "paper-01")
    assert len(tab.rows()) == 40


@pytest.mark.slow
def test_the_recorded_atlas(browser, tmp_path):
    """This checkout's recorded results as a site: each chapter's first paper, and pictures to look at."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for name in ("workflow", "config", "data/recorded"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "workflow"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "papertrial", "atlas", "laptop"], cwd=tmp_path, env=env, check=True)
    target = tmp_path / "reports/laptop"
    REVIEW.mkdir(parents=True, exist_ok=True)
    recorded = sorted((tmp_path / "data/recorded").glob("*/*.json"))
    firsts = {f.parent.name: target / f.parent.name / f"{f.stem}.html" for f in reversed(recorded)}
    for name, file in {"index": target / "index.html", "across": target / "across.html", **firsts}.items():
        tab = Tab(browser).open(file)
        tab.page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        tab.page.wait_for_load_state("networkidle")
        assert findings(axe, tab.page) == [], name
        tab.page.screenshot(path=REVIEW / f"{name}.png", full_page=name != "index")
        tab.page.set_viewport_size(PHONE)
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name
        tab.page.screenshot(path=REVIEW / f"{name}-phone.png")
        broken = tab.page.eval_on_selector_all("img", "all => all.filter(i => !i.naturalWidth).map(i => i.src)")
        assert not broken and not tab.complaints
        assert all(url.startswith(("file:", "data:")) for url in tab.requests)
        tab.page.context.close()
