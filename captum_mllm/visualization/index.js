"use strict";
{
  const search = document.getElementById("search");
  const count = document.getElementById("count");
  const nothing = document.getElementById("nothing");
  const rows = Array.from(document.querySelectorAll("#entries > li"), (item) => ({
    item,
    text: item.textContent.toLowerCase(),
  }));

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { item, text } of rows) {
      const fits = words.every((word) => text.includes(word));
      item.hidden = !fits;
      shown += fits;
    }
    count.textContent = words.length ? `${shown} of ${rows.length}` : String(rows.length);
    nothing.hidden = shown > 0;
  };
  search.addEventListener("input", filter);
  // A browser may keep what was typed before the page was loaded again.
  filter();
}
