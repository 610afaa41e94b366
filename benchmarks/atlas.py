"""What the atlas costs: prints the measures, judges nothing.

    python benchmarks/atlas.py                    # 222 simulated papers of 4 claims and 3 figures
    python benchmarks/atlas.py --papers 40

- build: all pages from cached results, nothing moved, one paper's evidence edited; size on disk
- browser: first paint, load and filter latency of an index with 1,000 claims (Chromium and playwright, if here)
- lines of JavaScript and CSS written by hand
"""

import argparse
import importlib.util
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CLAIMS, FIGURES = 4, 3
RUN_ALL = """
import json
from pathlib import Path
from papertrial.engine.runner import make_unit
for plan in sorted(Path("data/scratch/plan/smoke/simulated").glob("*.json")):
    for unit in json.loads(plan.read_text())["units"].values():
        make_unit(unit["path"], "cpu")
"""
LATENCY = """async words => {
  const field = document.querySelector("[name=q]"), start = performance.now();
  field.value = words;
  field.dispatchEvent(new Event("input", {bubbles: true}));
  await new Promise(done => requestAnimationFrame(() => setTimeout(done)));  // until it has been painted
  return performance.now() - start;
}"""


def simulate(folder: Path, papers: int) -> None:
    """A checkout of skeletons with several claims and figures each, and their results."""
    spec = importlib.util.spec_from_file_location("engine_benchmark", ROOT / "benchmarks/engine.py")
    engine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine)
    engine.simulate(folder, papers)
    for card in (folder / "config/papers/simulated").glob("*.yaml"):
        text = card.read_text()
        claim = re.search(r"  - id: c1\n(?:    .*\n)+", text).group()
        more = "".join(claim.replace("c1", f"c{i}") for i in range(2, CLAIMS + 1))
        card.write_text(text.replace(claim, claim + more))
    for file in (folder / "workflow/papertrial/papers/simulated").glob("*/evidence.py"):
        text = file.read_text()
        judge, figure = text[text.index("@claim") : text.index("@figure")], text[text.index("@figure") :]
        text += "".join(
            "\n\n" + judge.replace('"c1"', f'"c{i}"').replace("def fewer", f"def c{i}_fewer").rstrip() + "\n"
            for i in range(2, CLAIMS + 1)
        )
        text += "".join(
            "\n\n" + figure.replace("def iterations", f"def iterations_{i}").rstrip() + "\n"
            for i in range(2, FIGURES + 1)
        )
        file.write_text(text)


def python(folder: Path, *arguments: str) -> str:
    """Wall and CPU seconds of one call."""
    env = {**os.environ, "PYTHONPATH": str(folder / "workflow"), "OMP_NUM_THREADS": "1"}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=folder, env=env, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{time.perf_counter() - start:.1f} s ({cpu:.1f} CPU s)"


def build(folder: Path, papers: int) -> None:
    simulate(folder, papers)
    atlas = ("-m", "papertrial", "atlas", "smoke")
    python(folder, *atlas)
    python(folder, "-c", RUN_ALL)
    print(f"all pages of {papers} simulated papers from cached results: {python(folder, *atlas)}")
    print(f"nothing moved: {python(folder, *atlas)}")
    evidence = folder / "workflow/papertrial/papers/simulated/paper_0/evidence.py"
    evidence.write_text(evidence.read_text().replace("Every dot", "Each dot"))
    print(f"one paper's evidence edited: {python(folder, *atlas)}")
    files = [f for f in (folder / "reports/smoke").rglob("*") if f.is_file()]
    print(f"size: {sum(f.stat().st_size for f in files) / 1e6:.1f} MB in {len(files)} files")


def browser(folder: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or importlib.util.find_spec("playwright") is None:
        print("browser: Chromium or playwright isn't here")
        return
    from playwright.sync_api import sync_playwright

    page_file = _thousand_claims(folder)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        loads, latencies = [], []
        for _ in range(3):
            page = opened.new_page()
            page.goto(page_file.as_uri())
            loads.append(
                page.evaluate(
                    "[performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN,"
                    " performance.timing.loadEventEnd - performance.timing.navigationStart]"
                )
            )
            latencies += [page.evaluate(LATENCY, words) for words in ("ill-conditioned", "paper-7", "paper-7 c2", "")]
            page.close()
        opened.close()
    paint, load = (statistics.median(values) for values in zip(*loads, strict=True))
    print(
        f"1,000 claims ({page_file.stat().st_size / 1e6:.2f} MB): first paint {paint:.0f} ms, loaded {load:.0f} ms,",
        end="",
    )
    print(f" filter to painted {statistics.median(latencies):.0f} ms (median), {max(latencies):.0f} ms (slowest)")


def _thousand_claims(folder: Path) -> Path:
    """The simulated records over and over under new names, as one index."""
    sys.path.insert(0, str(ROOT / "workflow"))
    from papertrial.atlas import pages
    from papertrial.engine.cards import load_card

    known: list[tuple[Any, Any]] = []
    for card in (folder / "config/papers/simulated").glob("*.yaml"):
        record = json.loads((folder / f"reports/smoke/simulated/{card.stem}.json").read_text())
        known.append((load_card(card), record))
    records, cards = [], {}
    for i in range(1000 // CLAIMS):
        card, record = known[i % len(known)]
        slug, chapter = f"paper-{i}", f"chapter-{i // 21}"
        cards[f"{chapter}/{slug}"] = card.model_copy(update={"slug": slug, "chapter": chapter})
        records.append({**record, "slug": slug, "chapter": chapter})
    file = folder / "reports/smoke/thousand.html"
    file.write_text(pages.index("laptop", records, cards), encoding="utf-8")
    return file


def lines() -> None:
    for kind in ("js", "css"):
        files = sorted((ROOT / "workflow/papertrial/atlas/templates").glob(f"*.{kind}"))
        print(f"{kind}: {sum(len(f.read_text().splitlines()) for f in files)} lines by hand")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--papers", type=int, default=222)
    args = parser.parse_args()
    lines()
    with tempfile.TemporaryDirectory() as name:
        build(Path(name), args.papers)
        browser(Path(name))


if __name__ == "__main__":
    main()
