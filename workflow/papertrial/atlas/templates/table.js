// The index's table: search, filters and sorting; the form is the state, and the address holds the form.
(() => {
  const form = document.querySelector("#filters"), table = document.querySelector("#table"), body = table.tBodies[0];
  const verdicts = [...form.querySelectorAll("[name=verdict]")].map(box => box.value);
  const squares = new Map([...document.querySelectorAll("[data-for]")].map(square => [square.dataset.for, square]));
  const rows = [...body.rows].map((tr, place) =>
    ({...tr.dataset, tr, place, text: `${tr.id} ${tr.textContent}`.toLowerCase(), square: squares.get(tr.id)}));
  const field = name => form.elements[name];
  const within = (x, range) => { const [low, high] = range.split("-"); return x >= +low && (high === "" || x <= +high); };
  const days = date => (Date.now() - Date.parse(date)) / 864e5;
  const filters = {
    q: (row, words) => words.toLowerCase().split(/\s+/).every(word => row.text.includes(word)),
    cost: (row, range) => row.cost !== "" && within(+row.cost, range),
    age: (row, range) => row.when !== "" && within(Math.max(0, days(row.when)), range),
    ...Object.fromEntries(["chapter", "control", "tier", "data", "where"].map(k => [k, (row, v) => row[k] === v])),
  };
  // Sorting: numbers as numbers, verdicts in their order, what is missing last whichever way.
  const keys = {verdict: r => verdicts.indexOf(r.verdict), control: r => r.control && verdicts.indexOf(r.control),
                claim: r => r.tr.cells[1].textContent, cost: r => r.cost && +r.cost};
  const collator = new Intl.Collator("en", {numeric: true});
  const compare = (a, b) => typeof a === "number" ? a - b : collator.compare(a, b);

  function state() {  // what the form says, without what it leaves open
    return new URLSearchParams([...new FormData(form)].filter(([k, v]) => v.trim() !== "" && k !== "scale"));
  }
  function show() {
    const asked = state(), chosen = asked.getAll("verdict"), counts = Object.fromEntries(verdicts.map(v => [v, 0]));
    const active = [...asked].filter(([name]) => name in filters);
    let shown = 0;
    for (const row of rows) {
      const fits = active.every(([name, value]) => filters[name](row, value));
      if (fits) counts[row.verdict]++;  // as if no verdict were chosen, so the five counts add up
      const seen = fits && (!chosen.length || chosen.includes(row.verdict));
      row.tr.hidden = !seen;
      row.square?.classList.toggle("off", !seen);
      shown += seen;
    }
    for (const v of verdicts) field("n-" + v.replace(" ", "-")).value = counts[v];
    document.querySelector("#shown").value = `${shown} of ${rows.length} claims`;
    document.querySelector("#nothing").hidden = shown > 0;
  }
  function sort() {
    const [, down, name] = field("sort").value.match(/(-?)(.*)/), key = keys[name] ?? (r => r[name] ?? r.place);
    const valued = rows.map(row => [key(row), row]), sign = down ? -1 : 1;
    valued.sort(([a, r], [b, s]) => (a === "") - (b === "") || sign * compare(a, b) || r.place - s.place);
    body.append(...valued.map(([, row]) => row.tr));
    for (const th of table.tHead.rows[0].cells) {
      if (th.dataset.key === name) th.setAttribute("aria-sort", down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    }
  }
  let sorted = "", pause;
  function update() {
    if (field("sort").value !== sorted) { sorted = field("sort").value; sort(); }
    show();
    clearTimeout(pause);
    pause = setTimeout(() => {
      const asked = state().toString();
      try {
        history.replaceState(null, "", location.pathname + (asked && `?${asked}`) + location.hash);
      } catch { /* inside another document, such as snakemake's report, there is no address to keep it in */ }
    }, 150);
  }
  function restore() {  // the form as the address has it
    const asked = new URLSearchParams(location.search);
    for (const input of form.querySelectorAll("input, select:not([name=scale])")) {
      if (input.type === "checkbox") input.checked = asked.getAll(input.name).includes(input.value);
      else input.value = asked.get(input.name) ?? "";
    }
  }
  function reveal() {  // a row that is linked to is shown, whatever the filters say
    const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (row?.hidden) { form.reset(); update(); row.scrollIntoView({block: "center"}); }
  }
  for (const th of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...th.childNodes);
    button.onclick = () => {
      const key = th.dataset.key, by = field("sort");
      by.value = by.value === key ? `-${key}` : key;
      update();
    };
    th.append(button);
  }
  form.addEventListener("input", event => {
    if (event.target.name !== "scale") return update();
    location.href = `../${event.target.value}/index.html${location.search}`;
  });
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update));
  addEventListener("hashchange", reveal);
  form.hidden = false;
  restore();
  update();
  reveal();
})();
