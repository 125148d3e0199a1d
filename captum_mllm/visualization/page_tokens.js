/** Text of tokens. It comes from a model: it is shown, never interpreted. */
const tokens = (() => {
  const SYMBOLS = { "\n": "↵", "\t": "⇥" };
  const UNSEEN = /[\0-\x1f\x7f-\x9f\xad\u200b\u2028-\u202e\u2060-\u2069\ufeff]|\p{Cs}/gu;

  function symbol(character) {
    const code = character.codePointAt(0);
    if (SYMBOLS[character]) return SYMBOLS[character];
    return code >= 0xd800 && code < 0xe000
      ? "\ufffd"
      : `<U+${code.toString(16).toUpperCase().padStart(4, "0")}>`;
  }

  function mark(content) {
    const span = document.createElement("span");
    span.className = "mark";
    span.textContent = content;
    return span;
  }

  /** Outer spaces and what they enclose. */
  function split(text) {
    const [, before, inner, after] = /^( *)([^]*?)( *)$/.exec(text);
    return { before, inner, after };
  }

  /** Fills `parent` with `text`, with a symbol for each character that cannot be seen. */
  function show(parent, text) {
    parent.replaceChildren();
    if (text === "") parent.append(mark("∅"));
    else if (split(text).inner === "") parent.append(mark("␣".repeat(text.length)));
    else {
      let seen = 0;
      for (const { 0: character, index } of text.matchAll(UNSEEN)) {
        parent.append(text.slice(seen, index), mark(symbol(character)));
        seen = index + character.length;
        if (character === "\n" && text[seen] !== "\n") parent.append("\n");
      }
      parent.append(text.slice(seen));
    }
  }

  /** Like `show`, with outer spaces made visible: two tokens may differ by nothing else. */
  function showExactly(parent, text) {
    const { before, inner, after } = split(text);
    show(parent, inner || text);
    if (inner && before) parent.prepend(mark("␣".repeat(before.length)));
    if (inner && after) parent.append(mark("␣".repeat(after.length)));
  }

  /** Appends `text` to a running text as an element; its outer spaces stay outside of it. */
  function appendTo(parent, className, text) {
    const span = document.createElement("span");
    const { before, inner, after } = split(text);
    span.className = className;
    show(span, inner || text);
    parent.append(before, span, after);
    return span;
  }

  /** What a screen reader says. */
  function spoken(text) {
    if (text === "") return "empty token";
    if (split(text).inner === "") return "space";
    if (/^\s+$/.test(text)) return text.includes("\n") ? "line break" : "white space";
    return text.trim().replace(UNSEEN, symbol);
  }

  return { show, showExactly, appendTo, spoken };
})();
