// Sorts the tables of numbers by the column whose head is clicked. Nothing is loaded, nothing is kept.
document.querySelectorAll("table.dataframe").forEach((table) => {
  const body = table.tBodies[0], rows = body ? [...body.rows] : [];
  if (rows.length < 3) return;
  // The names of the index stand in a second row of heads: the head of a column is the last one with a text.
  const heads = [];
  [...table.tHead.rows].forEach((row) => [...row.cells].forEach((cell, place) => {
    if (cell.textContent.trim()) heads[place] = cell;
  }));
  // A cell over several rows would be torn apart: each row gets its own.
  const spread = () => rows.forEach((row, at) => [...row.cells].forEach((cell, place) => {
    for (let more = cell.rowSpan - 1; more > 0; more--) {
      const copy = cell.cloneNode(true);
      copy.removeAttribute("rowspan");
      rows[at + more].insertBefore(copy, rows[at + more].cells[place] || null);
    }
    cell.removeAttribute("rowspan");
  }));
  const text = (row, place) => row.cells[place].textContent.trim();
  const number = (words) => parseFloat(words.replace("\u2212", "-"));
  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    return isNaN(x) || isNaN(y) ? a.localeCompare(b) : x - y;
  };
  heads.forEach((head, place) => {
    const sort = () => {
      const up = head.getAttribute("aria-sort") === "descending" || !head.hasAttribute("aria-sort") && place < 2;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      spread();
      rows.sort((a, b) => {
        const [x, y] = [text(a, place), text(b, place)];
        // What is empty stays at the end, whichever way.
        return x && y ? (up ? 1 : -1) * compare(x, y) : !x - !y;
      });
      body.append(...rows);
    };
    head.classList.add("sorts");
    head.tabIndex = 0;
    head.title = "sort by this column";
    head.onclick = sort;
    head.onkeydown = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); } };
  });
});
