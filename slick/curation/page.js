// The table of rows: search, filters, sorting. All texts are inserted as text nodes, never as HTML.
"use strict";
(() => {
  const rows = JSON.parse(document.getElementById("data").textContent);
  const PAGE_SIZE = 50;
  const SHORT = 160;
  const NOT_LABELLED = "not labelled";
  const CATEGORIES = ["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"];
  const hasGroups = new Set(rows.map((row) => row.group || "")).size > 2;
  const byId = (id) => document.getElementById(id);
  const state = { sort: "number", descending: false, shown: PAGE_SIZE };

  const element = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const categoryOf = (row) => row.category || NOT_LABELLED;
  const rank = (row) => CATEGORIES.indexOf(row.category) + 1 || CATEGORIES.length + 1;
  const share = (row, hits, total) => (row.counts && row.counts[total] ? row.counts[hits] / row.counts[total] : -1);
  const answerText = (row) => [...(row.greedy || []), ...(row.sampled || [])].map((answer) => answer[0]).join("\n");

  const COLUMNS = [
    { key: "number", label: "Row", value: (row) => row.number },
    { key: "prompt", label: "Prompt", value: (row) => row.prompt || "" },
    { key: "target", label: "Target", value: (row) => row.target || "" },
    { key: "category", label: "Category", value: rank },
    { key: "share", label: "P(correct)", value: (row) => share(row, 0, 1) + share(row, 2, 3) / 1000 },
    { key: "answers", label: "Most frequent answers", value: answerText },
  ];

  const searchText = (row) => [
    row.number, row.context, row.prompt, row.target, row.reason, row.detail, row.group, answerText(row),
  ].filter((part) => part !== undefined).join("\n").normalize("NFC").toLowerCase();

  /** Adds a text to a cell; long texts are cut, with a button that shows all. */
  const addText = (cell, text) => {
    if (text.length <= SHORT + 20) { cell.append(text); return; }
    const content = element("span", "", text.slice(0, SHORT) + "…");
    const button = element("button", "", "Show all");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => {
      const open = button.getAttribute("aria-expanded") === "true";
      content.textContent = open ? text.slice(0, SHORT) + "…" : text;
      button.textContent = open ? "Show all" : "Show less";
      button.setAttribute("aria-expanded", String(!open));
    });
    cell.append(content, button);
  };

  const addAnswers = (cell, kind, answers, all) => {
    if (!answers || !answers.length) return;
    const line = element("p");
    line.append(element("span", "kind", kind + " "));
    answers.forEach(([text, num, hit], i) => {
      line.append(i ? ", " : "", element("span", hit ? "hit" : "", text || "(empty)"), ` ${num}${hit ? " ✓" : ""}`);
    });
    const listed = answers.reduce((sum, answer) => sum + answer[1], 0);
    if (all > listed) line.append(`, others ${all - listed}`);
    cell.append(line);
  };

  const CELLS = {
    number: (cell, row) => cell.append(row.number.toLocaleString("en") + (row.turn ? `, turn ${row.turn}` : "")),
    prompt: (cell, row) => {
      addText(cell, row.context ? `${row.context}\n${row.prompt || ""}` : row.prompt || "");
      if (hasGroups && row.group) cell.append(element("p", "kind", row.group));
    },
    target: (cell, row) => addText(cell, row.target || ""),
    category: (cell, row) => {
      if (row.category) { cell.append(element("i", row.category), row.category); return; }
      cell.append(`${NOT_LABELLED}: ${row.reason}`);
      if (row.detail) { const detail = element("p", "kind"); addText(detail, row.detail); cell.append(detail); }
    },
    share: (cell, row) => {
      if (!row.counts) return;
      const [greedyHits, greedy, hits, samples] = row.counts;
      cell.append(element("p", "", `greedy ${greedyHits}/${greedy}`));
      if (samples) cell.append(element("p", "", `samples ${hits}/${samples}`));
    },
    answers: (cell, row) => {
      const counts = row.counts || [0, 0, 0, 0];
      addAnswers(cell, "greedy:", row.greedy, counts[1]);
      addAnswers(cell, "samples:", row.sampled, counts[3]);
    },
  };

  const addRow = (body, row) => {
    const line = element("tr");
    for (const { key, label } of COLUMNS) {
      const cell = element("td", key === "prompt" || key === "target" ? "text" : "");
      cell.dataset.label = label;
      CELLS[key](cell, row);
      line.append(cell);
    }
    body.append(line);
  };

  const selectedRows = () => {
    const words = byId("search").value.normalize("NFC").toLowerCase().split(/\s+/).filter(Boolean);
    const category = byId("category").value;
    const reason = byId("reason").value;
    return rows.filter((row) => (!category || categoryOf(row) === category) && (!reason || row.reason === reason) &&
      words.every((word) => (row.search ??= searchText(row)).includes(word)));
  };

  const sortRows = (selected) => {
    const { value } = COLUMNS.find((column) => column.key === state.sort);
    const sign = state.descending ? -1 : 1;
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
    return selected.map((row, i) => [value(row), i, row])
      .sort((a, b) => sign * compare(a[0], b[0]) || a[1] - b[1]).map((item) => item[2]);
  };

  const render = () => {
    const selected = sortRows(selectedRows());
    const body = document.createDocumentFragment();
    selected.slice(0, state.shown).forEach((row) => addRow(body, row));
    byId("table").tBodies[0].replaceChildren(body);
    const shown = Math.min(state.shown, selected.length).toLocaleString("en");
    const matching = selected.length.toLocaleString("en");
    byId("status").textContent = selected.length === rows.length
      ? `${shown} of ${matching} rows shown.`
      : `${shown} of ${matching} matching rows shown, of ${rows.length.toLocaleString("en")}.`;
    byId("more").hidden = selected.length <= state.shown;
    document.querySelectorAll("#table th").forEach((head, i) => {
      const order = state.descending ? "descending" : "ascending";
      head.setAttribute("aria-sort", COLUMNS[i].key === state.sort ? order : "none");
    });
  };

  const sortBy = (key) => {
    state.descending = state.sort === key && !state.descending;
    state.sort = key;
    byId("sort").value = key;
    render();
  };

  const fillSelect = (id, all, values) => {
    const counts = new Map();
    values.forEach((value) => counts.set(value, (counts.get(value) || 0) + 1));
    const options = [["", `${all} (${values.length.toLocaleString("en")})`]];
    [...counts].sort((a, b) => b[1] - a[1]).forEach(([value, num]) => {
      options.push([value, `${value} (${num.toLocaleString("en")})`]);
    });
    byId(id).replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  };

  const restart = () => { state.shown = PAGE_SIZE; render(); };

  const columns = element("colgroup");
  COLUMNS.forEach(({ key, label }) => {
    columns.append(element("col", key));
    const head = element("th");
    head.scope = "col";
    const button = element("button", "", label);
    button.type = "button";
    button.addEventListener("click", () => sortBy(key));
    head.append(button);
    document.querySelector("#table thead tr").append(head);
    byId("sort").append(new Option(label, key));
  });
  byId("table").prepend(columns);
  fillSelect("category", "all", rows.map(categoryOf));
  fillSelect("reason", "all", rows.filter((row) => row.reason).map((row) => row.reason));
  byId("search").addEventListener("input", restart);
  byId("category").addEventListener("change", restart);
  byId("reason").addEventListener("change", restart);
  byId("sort").addEventListener("change", () => { state.sort = byId("sort").value; state.descending = false; render(); });
  byId("more").addEventListener("click", () => { state.shown += PAGE_SIZE; render(); });
  document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
  render();
})();
