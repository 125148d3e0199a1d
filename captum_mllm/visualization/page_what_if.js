/** What the model says without a region of the image, in words and as outlines on it. */
const hidden = (() => {
  const percent = new Intl.NumberFormat("en", { style: "percent" });

  /** What was hidden for a unit: each with the word's own row. */
  function of({ what_ifs: found }, unit) {
    return (found ?? []).flatMap((view) =>
      view.words
        .filter(({ tokens }) => tokens.some((token) => unit.includes(token)))
        .map((word) => ({ ...view, word })),
    );
  }

  function heading({ removed, in_image: changed }) {
    const region = `the region of “${tokens.spoken(removed)}”`;
    return changed ? `If ${region} is hidden` : `If nothing attends to ${region}`;
  }

  function rows({ word }) {
    return [
      ["the image as it is", word.before],
      ["without the region", word.after],
      ["without another region", word.elsewhere],
    ].map(([label, share]) => ({ label, weight: share, limit: 1, value: percent.format(share) }));
  }

  const says = (text) => (text === null ? "still says so" : `says “${tokens.spoken(text)}”`);

  /** What comes of it, in words. */
  function sentence({ area, word, answer }) {
    const whole = answer ? `, and answers “${tokens.spoken(answer)}”` : "";
    return (
      `Without the region (outlined, ${percent.format(area)} of the image) the model ` +
      `${says(word.says)}${whole}. Without another of the same area (dashed) it ` +
      `${says(word.says_elsewhere)}.`
    );
  }

  /** Draws the regions that lie in the image at a place. */
  function outline(drawing, found, place) {
    const shown = found.filter((view) => view.place === place);
    if (shown.length) drawing.setAttribute("viewBox", `0 0 ${shown[0].size.join(" ")}`);
    drawing.replaceChildren(
      ...shown.flatMap((view) =>
        ["control", "region"].map((name) => {
          const path = document.createElementNS(drawing.namespaceURI, "path");
          path.setAttribute("d", view[name]);
          path.setAttribute("class", name === "control" ? "elsewhere" : "region");
          return path;
        }),
      ),
    );
  }

  return { of, heading, rows, sentence, outline };
})();
