// Two rankings of a query side by side. All text is set as text, never as markup.
(() => {
  const holder = document.getElementById("rankings-data");
  if (!holder) return;
  const data = JSON.parse(holder.content.textContent);
  const form = document.getElementById("rankings-form");
  const [search, list, left, right] = ["text", "query", "left", "right"].map((name) =>
    document.getElementById(`rankings-${name}`),
  );
  const count = document.getElementById("rankings-count");
  const sides = document.getElementById("rankings-sides");
  const top = Number(sides.dataset.top);
  const measure = sides.dataset.measure;

  function make(tag, text, attributes = {}) {
    const element = document.createElement(tag);
    if (text !== null) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  }

  const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
  const system = (select) => data.systems.indexOf(select.value);
  const lost = (query) => query.values[system(right)] - query.values[system(left)];

  // The queries that hold the words, from the most lost to the most won by the second system.
  function fill() {
    const words = search.value.trim().toLowerCase();
    const before = list.value;
    const found = data.queries
      .map((query, place) => ({ query, place }))
      .filter(({ query }) => `${query.text} ${query.id}`.toLowerCase().includes(words))
      .sort((a, b) => lost(a.query) - lost(b.query));
    list.replaceChildren(
      ...found.map(({ query, place }) =>
        make("option", `${signed(lost(query))}  ${query.text}`, { value: place }),
      ),
    );
    list.value = before;
    if (list.selectedIndex < 0) list.selectedIndex = 0;
    count.textContent = found.length === 1 ? "1 query" : `${found.length} queries`;
    show();
  }

  function side(query, own, other) {
    const relevant = ([, grade]) => grade !== null && grade >= data.minGrade;
    const ranked = query.passages
      .filter(([, , ranks]) => ranks[own])
      .sort((a, b) => a[2][own] - b[2][own]);
    const first = ranked.find(relevant);
    const box = make("div", null);
    const value = query.values[own].toFixed(3);
    const where = first ? `first relevant passage at rank ${first[2][own]}` : "none relevant found";
    box.append(make("h4", data.systems[own]), make("p", `${measure} ${value}, ${where}`));
    const table = make("table", null, { "aria-label": `Ranking by ${data.systems[own]}` });
    const head = table.createTHead().insertRow();
    for (const text of ["Rank", "Other", "Grade", "Passage"]) {
      head.append(make("th", text, { scope: "col" }));
    }
    const body = table.createTBody();
    for (const passage of ranked.filter((p) => p[2][own] <= top || relevant(p))) {
      const [place, grade, ranks] = passage;
      const row = body.insertRow();
      if (relevant(passage)) row.className = "relevant";
      row.append(
        make("td", ranks[own]),
        make("td", ranks[other] || "–"),
        make("td", grade === null ? "" : relevant(passage) ? `✓ ${grade}` : grade),
      );
      const cell = row.insertCell();
      cell.append(make("code", data.passages[place][0]), ` ${data.passages[place][1]}`);
    }
    box.append(ranked.length ? table : make("p", "No candidate was found for this query."));
    return box;
  }

  function show() {
    const query = data.queries[list.value];
    if (!query) {
      sides.replaceChildren(make("p", "No query has these words."));
      return;
    }
    const title = make("p", query.text, { class: "asked" });
    title.append(" ", make("code", query.id));
    const [a, b] = [system(left), system(right)];
    sides.replaceChildren(title, side(query, a, b), side(query, b, a));
  }

  for (const control of [search, left, right]) control.addEventListener("input", fill);
  list.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("rankings-needs").hidden = true;
  form.hidden = false;
  fill();
})();
