/** The page: which word of the answer is current, and every view of it. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { decode, mean, largest, fit, place } = heatmap;
  const paint = heatmap.painter(data);
  const element = (id) => document.getElementById(id);

  const maps = decode(data.maps);
  const weights = data.weights && decode(data.weights);
  const scales = data.scales.map((view) => ({ ...view, rows: decode(view.maps) }));

  const product = (values, indices) => indices.reduce((result, index) => result * values[index], 1);
  const percent = new Intl.NumberFormat("en", { style: "percent", maximumSignificantDigits: 3 });
  const probability = (value) => (value > 0 && value < 1e-4 ? "<0.01%" : percent.format(value));
  // Two digits: the maps and weights travel with eight bits.
  const number = (value) => String(Number(value.toPrecision(2))).replace("-", "−");

  // A unit is a list of answer tokens: those of a word, or one alone.

  const list = element("answer-text");
  const promptSpans = [];
  let units = [];
  let unitSpans = [];
  let current = 0;
  let pinned = false;
  let shared = true;
  let limits = null;

  const text = (unit) => unit.map((index) => data.answer[index]).join("");

  /** The weight of each prompt token and of each earlier unit, which is the sum over its tokens. */
  function earlierWeights(index) {
    const row = mean(weights, units[index]);
    const prompt = row.subarray(0, data.prompt.length);
    const answer = units
      .slice(0, index)
      .map((unit) => unit.reduce((sum, token) => sum + row[prompt.length + token], 0));
    return { prompt, answer, peak: Math.max(largest(prompt), largest(answer)) };
  }

  function divide(mode) {
    const token = units.length ? units[current][0] : null;
    units = mode === "words" ? data.words : data.answer.map((_, index) => [index]);
    list.replaceChildren();
    list.classList.toggle("tokens", mode === "tokens");
    unitSpans = units.map((unit) => {
      const span = tokens.appendTo(list, "unit", text(unit));
      span.setAttribute("role", "option");
      span.setAttribute("aria-label", tokens.spoken(text(unit)));
      return span;
    });
    const peaks = (rows) => units.map((unit) => largest(mean(rows, unit)));
    const mapPeaks = peaks(maps);
    limits = {
      map: largest(mapPeaks),
      weight: weights && largest(units.map((_, index) => earlierWeights(index).peak)),
      scale: largest(scales.flatMap((view) => peaks(view.rows))),
    };
    current =
      token === null
        ? mapPeaks.indexOf(limits.map)
        : units.findIndex((unit) => unit.includes(token));
    update();
  }

  // Views of the current unit

  function updateImage(values) {
    const peak = largest(values);
    const limit = shared ? limits.map : peak;
    paint(element("overlay"), values, data.maps.grid, limit);
    element("no-evidence").hidden = peak > 0;
    element("legend").hidden = limit === 0;
    const [low, high] = [data.signed ? -limit : 0, limit].map(number);
    element("lowest").textContent = low;
    element("highest").textContent = high;
    const unit = data.unit ? `, in ${data.unit}` : "";
    element("range-of-colours").setAttribute(
      "aria-label",
      `Attribution to the image${unit}, colours from ${low} to ${high}`,
    );
    const sign = data.signed ? "for (red) or against (blue)" : "for";
    const reach = peak < limit ? `, of which this word reaches ${number(peak)}` : "";
    element("meaning").textContent =
      `How much each place of the image speaks ${sign} the word${unit}. ` +
      (shared
        ? `${high} is the most of all words${reach}.`
        : `${high} is the most of this word: weak words are coloured like strong ones.`);
    const reached = limit > 0 ? peak / limit : 0;
    element("reach").style.setProperty("--reach", data.signed ? (1 + reached) / 2 : reached);
    element("reach").hidden = !shared;
  }

  function updateScales(unit) {
    for (const view of scales) {
      const values = mean(view.rows, unit);
      paint(view.canvas, values, view.maps.grid, shared ? limits.scale : largest(values));
      if (view.probs) view.caption.textContent = probability(product(view.probs, unit));
    }
  }

  function shade(span, weight, limit) {
    span.style.setProperty("--weight", limit > 0 ? (Math.abs(weight) / limit).toFixed(3) : 0);
    span.classList.toggle("against", weight < 0);
  }

  /** Rows of a label, a bar and a value; no rows, no section. */
  function fillBars(section, rows) {
    section.hidden = rows.length === 0;
    section.querySelector("ol").replaceChildren(
      ...rows.map(({ label, weight, limit, value, strong }) => {
        const item = document.createElement("li");
        const [name, length, amount] = ["name", "length", "value"].map((part) => {
          const span = document.createElement("span");
          span.className = part;
          return span;
        });
        name.lang = "";
        name.classList.toggle("strong", Boolean(strong));
        tokens.showExactly(name, label);
        name.title = name.textContent;
        shade(length, weight, limit);
        amount.textContent = value;
        item.append(name, length, amount);
        return item;
      }),
    );
  }

  function updateWeights() {
    const { prompt, answer, peak } = earlierWeights(current);
    const limit = shared ? limits.weight : peak;
    promptSpans.forEach((span, index) => shade(span, prompt[index], limit));
    unitSpans.forEach((span, index) => shade(span, answer[index] ?? 0, limit));
    const strongest = [
      ...data.prompt.map((label, index) => ({ label, weight: prompt[index] })),
      ...answer.map((weight, index) => ({ label: text(units[index]), weight })),
    ]
      .filter(({ weight }) => weight !== 0)
      .sort((first, second) => Math.abs(second.weight) - Math.abs(first.weight))
      .slice(0, 5);
    fillBars(
      element("earlier"),
      strongest.map(({ label, weight }) => ({ label, weight, limit, value: number(weight) })),
    );
  }

  function updateDetail(unit) {
    const many = unit.length > 1;
    tokens.show(element("current"), text(unit).trim() || text(unit));
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
    if (data.predictions) {
      element("predictions-heading").textContent =
        `Top predictions${many ? `, first of ${unit.length} tokens` : ""}`;
      const answered = data.answer[unit[0]];
      fillBars(
        element("predictions"),
        data.predictions[unit[0]].slice(0, 8).map(([label, share]) => ({
          label,
          weight: share,
          limit: 1,
          value: probability(share),
          strong: label === answered,
        })),
      );
    }
  }

  function update() {
    const unit = units[current];
    const values = mean(maps, unit);
    unitSpans.forEach((span, index) => {
      span.tabIndex = index === current ? 0 : -1;
      span.setAttribute("aria-selected", index === current);
    });
    list.classList.toggle("pinned", pinned);
    updateImage(values);
    updateScales(unit);
    if (weights) updateWeights();
    if (element("detail")) updateDetail(unit);
    const strongest = place(values, data.maps.grid);
    element("live").textContent = [
      tokens.spoken(text(unit)),
      data.probs && `probability ${probability(product(data.probs, unit))}`,
      strongest ? `strongest in the image: ${strongest}` : "no evidence in the image",
      pinned && "pinned",
    ]
      .filter(Boolean)
      .join(", ");
  }

  // Input

  function select(index, pin) {
    if (index < 0 || (index === current && pin === pinned)) return;
    current = index;
    pinned = pin;
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
    item.classList.toggle("explained", image === data.explained);
    item.querySelector("img").src = source;
    item.querySelector("span").textContent =
      `image ${image + 1}${image === data.explained ? ", explained" : ""}`;
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
      } else if (data.thumbnails.length > 0) {
        const mark = document.createElement("span");
        mark.className = "image-mark";
        mark.textContent = `image ${image + 1}`;
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
  if (data.prompt.length === 0 && data.thumbnails.length === 0) element("prompt").remove();
  if (data.cut) element("cut").hidden = false;
  else element("cut").remove();
  if (data.answer.length === 1) element("help").remove();
  if (data.words.length === 1) element("range").remove();
  if ([maps, ...scales.map((view) => view.rows)].flat().every((row) => largest(row) === 0))
    element("slider").remove();
  if (data.words.length === data.answer.length) element("units").remove();
  if (!data.predictions) element("predictions").remove();
  if (!weights) element("earlier").remove();
  if (!data.probs) element("probability").remove();
  if (!data.probs && !data.predictions && !weights) element("detail").remove();
  if (scales.length === 0) element("scales").remove();

  document.documentElement.style.setProperty("--ratio", data.ratio);
  data.thumbnails.forEach(addThumbnail);
  data.turns.forEach(addTurn);
  if (element("prompt")) {
    foldPrompt(false);
    element("fold").addEventListener("click", (event) =>
      foldPrompt(event.target.ariaExpanded === "false"),
    );
    window.addEventListener("resize", () => foldPrompt(element("fold").ariaExpanded === "true"));
  }
  fit(element("overlay"), data.ratio, data.maps.grid, 512);
  for (const view of scales) {
    const item = element("scale").content.cloneNode(true);
    view.canvas = item.querySelector("canvas");
    view.caption = item.querySelector("span");
    item.querySelector("img").src = element("image").src;
    item.querySelector("b").textContent = `${view.scale}×`;
    fit(view.canvas, data.ratio, view.maps.grid, 128);
    element("scales").querySelector("ul").append(item);
  }
  const ramp = Float64Array.from({ length: 256 }, (_, index) =>
    data.signed ? (2 * index) / 255 - 1 : index / 255,
  );
  paint(element("bar"), ramp, [1, 256], 1);
  divide("words");
})();
