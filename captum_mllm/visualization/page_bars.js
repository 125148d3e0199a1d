/** Words that are shaded by a weight, and lists of bars. */
const bars = (() => {
  function shade(span, weight, limit) {
    span.style.setProperty("--weight", limit > 0 ? (Math.abs(weight) / limit).toFixed(3) : 0);
    span.classList.toggle("against", weight < 0);
  }

  /**
   * Rows of a label, a bar and a value; no rows, no section. A row with a `choice` has a button
   * with that value for its label.
   */
  function fill(section, rows) {
    section.hidden = rows.length === 0;
    section.querySelector("ol").replaceChildren(
      ...rows.map(({ label, weight, limit, value, strong, choice, chosen }) => {
        const item = document.createElement("li");
        const [name, length, amount] = ["name", "length", "value"].map((part) => {
          const isButton = part === "name" && choice !== undefined;
          const span = document.createElement(isButton ? "button" : "span");
          span.className = part;
          return span;
        });
        name.lang = "";
        name.classList.toggle("strong", Boolean(strong));
        tokens.showExactly(name, label);
        name.title = name.textContent;
        if (choice !== undefined) {
          name.type = "button";
          name.value = choice;
          name.title = `Why not “${tokens.spoken(label)}”?`;
          name.ariaLabel = name.title;
          name.ariaPressed = chosen;
        }
        shade(length, weight, limit);
        amount.textContent = value;
        item.append(name, length, amount);
        return item;
      }),
    );
  }

  return { shade, fill };
})();
