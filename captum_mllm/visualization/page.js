/** The page: which word of the answer is current, and every view of it. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { decode, mean, largest, fit, place } = heatmap;
  const paint = heatmap.painter(data);
  const element = (id) => document.getElementById(id);

  // For each explained image: its map of each answer token.
  const images = data.maps.map((packed, place) => ({
    name: data.names[data.explained[place]],
    ratio: data.ratios[place],
    grid: packed.grid,
    rows: decode(packed),
  }));
  const several = images.length > 1;
  const weights = data.weights && decode(data.weights);
  const scales = data.scales.map((view) => ({
    ...view,
    images: view.maps.map((packed) => ({ grid: packed.grid, rows: decode(packed) })),
  }));

  // Rows of the first alternative of the first token, its second, and so on.
  const contrasts = data.alternatives && {
    ranks: data.alternatives.ranks,
    images: data.alternatives.maps.map(decode),
    weights: data.alternatives.weights && decode(data.alternatives.weights),
  };
  const contrastLimit = contrasts && largest(contrasts.images.flat().map(largest));

  const product = (values, indices) => indices.reduce((result, index) => result * values[index], 1);
  const percent = new Intl.NumberFormat("en", { style: "percent", maximumSignificantDigits: 3 });
  const probability = (value) => (value > 0 && value < 1e-4 ? "<0.01%" : percent.format(value));
  const wholePercent = new Intl.NumberFormat("en", { style: "percent" });
  // Two digits: the maps and weights travel with eight bits.
  const number = (value) => String(Number(value.toPrecision(2))).replace("-", "−");

  const shownImages = several ? "images" : "image";

  // A unit is a list of answer tokens: those of a word, or one alone.

  const list = element("answer-text");
  const promptSpans = [];
  let units = [];
  let unitSpans = [];
  let current = 0;
  let pinned = false;
  // Which alternative to the current word was chosen.
  let instead = null;
  let shared = true;
  let limits = null;

  const text = (unit) => unit.map((index) => data.answer[index]).join("");

  const mapsOf = (images, unit) => images.map(({ rows }) => mean(rows, unit));
  const peakOf = (maps) => largest(maps.map(largest));
  const highestOf = (maps) =>
    maps.reduce((result, values) => values.reduce((a, b) => Math.max(a, b), result), 0);

  const colorOf = (place) => `var(--image-${place % 6})`;

  /** Where the chosen alternative to the current unit is among the rows of alternatives. */
  const contrastRow = () =>
    units[current][0] * contrasts.ranks[0].length + instead;
  /** The text of the chosen alternative. */
  function alternative() {
    const token = units[current][0];
    return data.predictions[token][contrasts.ranks[token][instead]][0];
  }

  /** The share of each image in the evidence for a unit. */
  function sharesOf(unit) {
    return images.map((_, place) =>
      unit.reduce((sum, token) => sum + data.shares[token][place] / unit.length, 0),
    );
  }

  /** A line below a word, with a part for each image: the fainter, the less speaks for the word. */
  function underline(span, unit) {
    const highest = highestOf(mapsOf(images, unit));
    const strength = highest > 0 ? 20 + (80 * highest) / limits.map : 0;
    let end = 0;
    const stops = sharesOf(unit).map((share, place) => {
      const start = end;
      end += 100 * share;
      const color = `color-mix(in srgb, ${colorOf(place)} ${strength.toFixed(1)}%, transparent)`;
      return `${color} ${start.toFixed(2)}% ${end.toFixed(2)}%`;
    });
    span.style.setProperty("--shares", `linear-gradient(to right, ${stops.join(", ")})`);
  }

  /** The weight of each prompt token and of each earlier unit, which is the sum over its tokens. */
  function earlierWeights(index, row = mean(weights, units[index])) {
    const prompt = row.subarray(0, data.prompt.length);
    const answer = units
      .slice(0, index)
      .map((unit) => unit.reduce((sum, token) => sum + row[prompt.length + token], 0));
    return { prompt, answer, peak: Math.max(largest(prompt), largest(answer)) };
  }

  function divide(mode) {
    const token = units.length ? units[current][0] : null;
    instead = null;
    units = mode === "words" ? data.words : data.answer.map((_, index) => [index]);
    list.replaceChildren();
    list.classList.toggle("tokens", mode === "tokens");
    unitSpans = units.map((unit) => {
      const span = tokens.appendTo(list, "unit", text(unit));
      span.setAttribute("role", "option");
      span.setAttribute("aria-label", tokens.spoken(text(unit)));
      reasons.mark(data, unit, span);
      return span;
    });
    const peaks = (images) => units.map((unit) => peakOf(mapsOf(images, unit)));
    const mapPeaks = peaks(images);
    limits = {
      map: largest(mapPeaks),
      weight: weights && largest(units.map((_, index) => earlierWeights(index).peak)),
      scale: largest(scales.flatMap((view) => peaks(view.images))),
    };
    if (data.shares) unitSpans.forEach((span, index) => underline(span, units[index]));
    current =
      token === null
        ? mapPeaks.indexOf(limits.map)
        : units.findIndex((unit) => unit.includes(token));
    update();
  }

  // Views of the current unit

  function updateImages(maps, unit) {
    const peak = peakOf(maps);
    const contrasted = instead !== null;
    const limit = shared ? (contrasted ? contrastLimit : limits.map) : peak;
    images.forEach(({ canvas, grid }, place) => paint(canvas, maps[place], grid, limit));
    if (data.shares)
      sharesOf(unit).forEach((share, place) => {
        images[place].caption.textContent =
          highestOf(maps) > 0 && !contrasted ? wholePercent.format(share) : "";
      });
    element("no-evidence").hidden = peak > 0;
    element("legend").hidden = limit === 0;
    const [low, high] = [data.signed ? -limit : 0, limit].map(number);
    element("lowest").textContent = low;
    element("highest").textContent = high;
    const label = data.unit ? `, in ${data.unit}` : "";
    element("range-of-colours").setAttribute(
      "aria-label",
      `Attribution to the ${shownImages}${label}, colours from ${low} to ${high}`,
    );
    const than = contrasted ? ` rather than for “${tokens.spoken(alternative())}”` : "";
    const every = contrasted ? "alternatives" : "words";
    const sign = data.signed ? "for (red) or against (blue)" : "for";
    const reach = peak < limit ? `, of which this word reaches ${number(peak)}` : "";
    element("meaning").textContent =
      `How much each place of the ${shownImages} speaks ${sign} the word${than}${label}. ` +
      (shared
        ? `${high} is the most of all ${every}${reach}.`
        : `${high} is the most of this word: weak words are coloured like strong ones.`);
    const reached = limit > 0 ? peak / limit : 0;
    element("reach").style.setProperty("--reach", data.signed ? (1 + reached) / 2 : reached);
    element("reach").hidden = !shared;
  }

  function updateScales(unit) {
    // Scales have no contrasts.
    if (scales.length) element("scales").hidden = instead !== null;
    for (const view of scales) {
      const maps = mapsOf(view.images, unit);
      const limit = shared ? limits.scale : peakOf(maps);
      view.images.forEach(({ canvas, grid }, place) => paint(canvas, maps[place], grid, limit));
      if (view.probs) view.caption.textContent = probability(product(view.probs, unit));
    }
  }

  function updateWeights() {
    const row = instead === null ? undefined : contrasts.weights?.[contrastRow()];
    const { prompt, answer, peak } = earlierWeights(current, row);
    const limit = shared && !row ? limits.weight : peak;
    promptSpans.forEach((span, index) => bars.shade(span, prompt[index], limit));
    unitSpans.forEach((span, index) => bars.shade(span, answer[index] ?? 0, limit));
    const strongest = [
      ...data.prompt.map((label, index) => ({ label, weight: prompt[index] })),
      ...answer.map((weight, index) => ({ label: text(units[index]), weight })),
    ]
      .filter(({ weight }) => weight !== 0)
      .sort((first, second) => Math.abs(second.weight) - Math.abs(first.weight))
      .slice(0, 5);
    bars.fill(
      element("earlier"),
      strongest.map(({ label, weight }) => ({ label, weight, limit, value: number(weight) })),
    );
  }

  function updateDetail(unit) {
    const many = unit.length > 1;
    tokens.show(element("current"), text(unit).trim() || text(unit));
    element("instead").textContent =
      instead === null ? "" : `rather than “${tokens.spoken(alternative())}”`;
    element("pinned").hidden = !pinned;
    if (data.probs) {
      element("probability").querySelector("b").textContent = probability(
        product(data.probs, unit),
      );
      element("probability").classList.toggle("explained", many);
      element("probability").title = many
        ? `The product of the probabilities of its ${unit.length} tokens`
        : "The probability that the model gave this token";
    }
    if (data.reasons) bars.fill(element("reasons"), reasons.rows(data, unit));
    const risk = reasons.sentence(data, unit);
    element("risk").hidden = !risk;
    element("risk").textContent = risk;
    if (data.predictions) {
      element("predictions-heading").textContent =
        `Top predictions${many ? `, first of ${unit.length} tokens` : ""}`;
      const answered = data.answer[unit[0]];
      const ranks = contrasts?.ranks[unit[0]] ?? [];
      bars.fill(
        element("predictions"),
        data.predictions[unit[0]].slice(0, Math.max(8, ranks.length + 1)).map((row, rank) => ({
          label: row[0],
          weight: row[1],
          limit: 1,
          value: probability(row[1]),
          strong: row[0] === answered && !ranks.includes(rank),
          choice: ranks.includes(rank) ? ranks.indexOf(rank) : undefined,
          chosen: instead !== null && ranks[instead] === rank,
        })),
      );
    }
    element("what-ifs")?.replaceChildren(
      ...hidden.of(data, unit).map((view) => {
        const item = element("what-if").content.cloneNode(true).firstElementChild;
        item.querySelector("h3").textContent = hidden.heading(view);
        bars.fill(item, hidden.rows(view));
        item.querySelector("p").textContent = hidden.sentence(view);
        return item;
      }),
    );
  }

  function update() {
    const unit = units[current];
    const maps =
      instead === null
        ? mapsOf(images, unit)
        : contrasts.images.map((rows) => rows[contrastRow()]);
    unitSpans.forEach((span, index) => {
      span.tabIndex = index === current ? 0 : -1;
      span.setAttribute("aria-selected", index === current);
    });
    list.classList.toggle("pinned", pinned);
    updateImages(maps, unit);
    updateScales(unit);
    if (data.what_ifs)
      images.forEach(({ drawing }, place) => hidden.outline(drawing, hidden.of(data, unit), place));
    if (weights) updateWeights();
    if (element("detail")) updateDetail(unit);
    const peaks = maps.map(largest);
    const first = peaks.indexOf(largest(peaks));
    const strongest = place(maps[first], images[first].grid);
    const name = several ? images[first].name : "the image";
    element("live").textContent = [
      tokens.spoken(text(unit)),
      instead !== null && `rather than ${tokens.spoken(alternative())}`,
      data.probs && `probability ${probability(product(data.probs, unit))}`,
      strongest ? `strongest in ${name}: ${strongest}` : `no evidence in the ${shownImages}`,
      ...(data.shares && highestOf(maps) > 0
        ? sharesOf(unit).map((share, i) => `${images[i].name} ${wholePercent.format(share)}`)
        : []),
      reasons.sentence(data, unit),
      ...hidden.of(data, unit).map(hidden.sentence),
      pinned && "pinned",
    ]
      .filter(Boolean)
      .join(", ");
  }

  // Input

  function select(index, pin, choice = null) {
    if (index < 0 || (index === current && pin === pinned && choice === instead)) return;
    current = index;
    pinned = pin;
    instead = choice;
    update();
  }

  const unitAt = (event) => unitSpans.indexOf(event.target.closest(".unit"));

  list.addEventListener("pointerover", (event) => {
    if (event.pointerType !== "touch" && !pinned) select(unitAt(event), false);
  });
  list.addEventListener("click", (event) => {
    const index = unitAt(event);
    select(index, !(pinned && index === current));
  });
  list.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const last = units.length - 1;
    const forward = getComputedStyle(list).direction === "rtl" ? -1 : 1;
    const targets = {
      ArrowRight: current + forward,
      ArrowLeft: current - forward,
      Home: 0,
      End: last,
    };
    if (event.key in targets) select(Math.min(Math.max(targets[event.key], 0), last), pinned);
    else if (event.key === "Enter" || event.key === " ") select(current, !pinned);
    else return;
    event.preventDefault();
    unitSpans[current].focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") select(current, false);
  });
  element("predictions")?.addEventListener("click", (event) => {
    const button = event.target.closest("li")?.querySelector("button");
    if (!button) return;
    const choice = Number(button.value);
    select(current, true, choice === instead ? null : choice);
    // The rows are new ones, and the keyboard stays where it was.
    element("predictions").querySelector(`button[value="${choice}"]`).focus();
  });
  element("slider").addEventListener("input", (event) => {
    document.documentElement.style.setProperty("--opacity", event.target.value / 100);
  });
  element("range").addEventListener("change", (event) => {
    shared = event.target.value === "shared";
    update();
  });
  element("units").addEventListener("change", (event) => divide(event.target.value));

  // The prompt: its turns, with thumbnails where there are several images

  function addThumbnail(source, image) {
    const item = element("thumbnail").content.cloneNode(true).firstElementChild;
    const explained = data.explained.includes(image);
    item.classList.toggle("explained", explained);
    item.querySelector("img").src = source;
    item.querySelector("span").textContent =
      `${data.names[image]}${explained ? ", explained" : ""}`;
    element("thumbnails").append(item);
  }

  function addTurn({ role, parts }) {
    const turn = element("turn").content.cloneNode(true).firstElementChild;
    const [heading, text] = [turn.querySelector("h3"), turn.querySelector("p")];
    tokens.show(heading, role);
    if (!role || data.turns.length === 1) heading.remove();
    for (const [place, { span, image }] of parts.entries()) {
      if (span) {
        // A gap, where the template or an unknown word stands between two texts.
        if (place > 0 && parts[place - 1].span && !/^\s/.test(data.prompt[span[0]] ?? " "))
          text.append(" ");
        for (const token of data.prompt.slice(...span))
          promptSpans.push(tokens.appendTo(text, "context", token));
      } else if (data.count > 1) {
        const mark = document.createElement("span");
        mark.className = "image-mark";
        mark.textContent = data.names[image];
        text.append(place > 0 ? " " : "", mark, " ");
      }
    }
    // The space of the first word would indent it.
    const first = text.firstChild;
    if (first?.nodeType === Node.TEXT_NODE) first.textContent = first.textContent.trimStart();
    if (text.hasChildNodes()) element("turns").append(turn);
  }

  /** Folds a prompt that is too tall to leave the answer in sight, unless the reader unfolds it. */
  function foldPrompt(unfolded) {
    const [turns, button] = [element("turns"), element("fold")];
    turns.classList.add("folded");
    const isLong = turns.scrollHeight > turns.clientHeight + 1;
    const isFolded = isLong && !unfolded;
    turns.classList.toggle("folded", isFolded);
    // What scrolls can be reached by keys.
    turns.tabIndex = isFolded ? 0 : -1;
    // The question stands at the end of a chat.
    if (isFolded && data.turns.length > 1) turns.scrollTop = turns.scrollHeight;
    button.hidden = !isLong;
    button.ariaExpanded = String(!isFolded);
    button.textContent = isFolded ? "show all" : "show less";
  }

  // What was not given leaves nothing behind.

  const source = [data.method, data.model].filter(Boolean).join(" · ");
  element("source").textContent = source;
  if (!source) element("source").remove();
  if (!element("title").textContent) element("title").remove();
  if (data.prompt.length === 0 && data.count === 1) element("prompt").remove();
  if (!data.shares) element("shares-help").remove();
  if (data.cut) element("cut").hidden = false;
  else element("cut").remove();
  if (data.answer.length === 1) element("help").remove();
  if (data.words.length === 1) element("range").remove();
  const drawn = [images, ...scales.map((view) => view.images)].flat();
  if (drawn.every(({ rows }) => rows.every((row) => largest(row) === 0)))
    element("slider").remove();
  if (data.words.length === data.answer.length) element("units").remove();
  if (!contrasts) element("alternatives-help").remove();
  if (!data.predictions) element("predictions").remove();
  if (!weights) element("earlier").remove();
  if (!data.reasons) element("reasons").remove();
  else element("reasons-heading").textContent += data.reasons.exact ? "" : " (weak estimate)";
  if (!data.probs) element("probability").remove();
  if (!data.what_ifs) element("what-ifs").remove();
  if (!["probs", "predictions", "weights", "reasons", "risks", "what_ifs"].some((name) => data[name]))
    element("detail").remove();
  if (scales.length === 0) element("scales").remove();

  element("no-evidence").textContent = `no evidence in the ${shownImages}`;
  document.body.classList.toggle("several", several);
  document.documentElement.style.setProperty("--ratio", data.ratios[0]);
  data.thumbnails.forEach(addThumbnail);
  data.turns.forEach(addTurn);
  if (element("prompt")) {
    foldPrompt(false);
    element("fold").addEventListener("click", (event) =>
      foldPrompt(event.target.ariaExpanded === "false"),
    );
    window.addEventListener("resize", () => foldPrompt(element("fold").ariaExpanded === "true"));
  }
  document.querySelectorAll(".stage").forEach((stage, place) => {
    const image = images[place];
    image.source = stage.querySelector("img").src;
    image.canvas = stage.querySelector("canvas");
    image.caption = stage.querySelector("b");
    if (data.what_ifs) {
      image.drawing = element("regions").content.cloneNode(true).firstElementChild;
      stage.querySelector(".frame").append(image.drawing);
    }
    stage.style.setProperty("--ratio", image.ratio);
    stage.querySelector("span").textContent = image.name;
    if (data.shares) stage.style.setProperty("--mark", colorOf(place));
    else stage.querySelector("i").remove();
    if (!several) stage.querySelector("figcaption").remove();
    fit(image.canvas, image.ratio, image.grid, 512);
  });
  /** Many images scroll in their place; what scrolls can be reached by keys. */
  function reachStages() {
    const stages = element("stages");
    stages.tabIndex = stages.scrollHeight > stages.clientHeight + 1 ? 0 : -1;
  }
  reachStages();
  window.addEventListener("resize", reachStages);
  for (const view of scales) {
    const item = element("scale").content.cloneNode(true);
    view.caption = item.querySelector("span");
    item.querySelector("b").textContent = `${view.scale}×`;
    for (const [place, image] of view.images.entries()) {
      const { source, ratio } = images[place];
      const frame = document.createElement("div");
      const shown = document.createElement("img");
      image.canvas = document.createElement("canvas");
      frame.className = "frame";
      frame.style.setProperty("--ratio", ratio);
      shown.src = source;
      shown.alt = "";
      image.canvas.ariaHidden = "true";
      fit(image.canvas, ratio, image.grid, 128);
      frame.append(shown, image.canvas);
      item.querySelector(".frames").append(frame);
    }
    element("scales").querySelector("ul").append(item);
  }
  const ramp = Float64Array.from({ length: 256 }, (_, index) =>
    data.signed ? (2 * index) / 255 - 1 : index / 255,
  );
  paint(element("bar"), ramp, [1, 256], 1);
  divide("words");
})();
