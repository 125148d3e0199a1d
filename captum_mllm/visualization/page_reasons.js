/** What a word rests on, and the risk that the image does not show it. */
const reasons = (() => {
  const NAMES = { answer: "earlier words", prior: "neither" };
  const percent = new Intl.NumberFormat("en", { style: "percent" });

  /** Rows of bars, the share of each part in what speaks for a unit; none without reasons. */
  function rows({ reasons: found }, unit) {
    if (!found) return [];
    const parts = found.names.map((_, column) =>
      unit.reduce((sum, token) => sum + found.values[token][column], 0),
    );
    const total = parts.reduce((sum, part) => sum + Math.max(part, 0), 0);
    return found.names.map((name, column) => {
      const share = total > 0 ? Math.max(parts[column], 0) / total : 0;
      const against = parts[column] < 0 && percent.format(share) === "0%";
      return {
        label: NAMES[name] ?? name,
        weight: share,
        limit: 1,
        value: against ? "against" : percent.format(share),
      };
    });
  }

  function riskOf({ risks }, unit) {
    return risks?.find(({ tokens: own }) => own.some((token) => unit.includes(token)));
  }

  /** Marks a word that the image may not show, by a line under it and in what is read aloud. */
  function mark(data, unit, span) {
    const found = riskOf(data, unit);
    if (!found || found.level === "low") return;
    span.classList.add(`risk-${found.level}`);
    span.setAttribute(
      "aria-label",
      `${span.getAttribute("aria-label")}, ${found.level} risk that the image does not show it`,
    );
  }

  /** A sentence on the risk of a unit; empty without one. */
  function sentence(data, unit) {
    const found = riskOf(data, unit);
    if (!found) return "";
    const kind = found.calibrated ? percent.format(found.risk) : "not calibrated, a ranking";
    const why = found.why.length ? `: ${found.why.join("; ")}` : "";
    return `${found.level} risk that the image does not show it (${kind})${why}`;
  }

  return { rows, mark, sentence };
})();
