"use strict";

/** Maps of the image: unpacking, averaging and drawing them. */
const heatmap = (() => {
  function bytes(base64) {
    return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  }

  /** Unpacks rows of bytes: value = step * (byte - zero), with a step and a zero for each row. */
  function decode({ steps, zeros, cells }) {
    const packed = bytes(cells);
    const size = packed.length / steps.length;
    return steps.map((step, row) =>
      Float64Array.from(
        packed.subarray(row * size, (row + 1) * size),
        (byte) => step * (byte - zeros[row]),
      ),
    );
  }

  function mean(rows, indices) {
    if (indices.length === 1) return rows[indices[0]];
    const sum = new Float64Array(rows[indices[0]].length);
    for (const index of indices)
      rows[index].forEach((value, cell) => (sum[cell] += value / indices.length));
    return sum;
  }

  function largest(values) {
    return values.reduce((result, value) => Math.max(result, Math.abs(value)), 0);
  }

  /**
   * Where `count` evenly spaced samples fall between the centres of `cells` cells: the two cells
   * and the share of the second. A cubic share has no kinks at the centres and never overshoots.
   */
  function axis(count, cells) {
    return Array.from({ length: count }, (_, index) => {
      const position = Math.min(Math.max(((index + 0.5) * cells) / count - 0.5, 0), cells - 1);
      const low = Math.floor(position);
      const fraction = position - low;
      return [low, Math.min(low + 1, cells - 1), fraction ** 2 * (3 - 2 * fraction)];
    });
  }

  /**
   * A function that draws maps in the given 256 colours, from -1 or 0 (not `signed`) to 1, each
   * colour for as much of the range as matplotlib gives it.
   */
  function painter({ colors: base64, signed, fade }) {
    const colors = bytes(base64);

    /** Writes the colour of a value in [-1, 1]; it fades out towards 0. */
    function write(pixels, offset, value) {
      const bounded = Math.min(Math.max(value, -1), 1);
      const share = signed ? (bounded + 1) / 2 : Math.max(bounded, 0);
      const entry = 3 * Math.min(Math.floor(256 * share), 255);
      pixels[offset] = colors[entry];
      pixels[offset + 1] = colors[entry + 1];
      pixels[offset + 2] = colors[entry + 2];
      pixels[offset + 3] = 255 * Math.abs(bounded) ** fade;
    }

    /** Draws a map over the whole canvas; `limit` takes the last colour. Colours are not mixed. */
    return function paint(canvas, values, [height, width], limit) {
      // Every pixel is written from here: the canvas belongs in main memory.
      const context = canvas.getContext("2d", { willReadFrequently: true });
      const image = context.createImageData(canvas.width, canvas.height);
      const columns = axis(canvas.width, width);
      const line = new Float64Array(width);
      let offset = 0;
      for (const [top, bottom, share] of limit > 0 ? axis(canvas.height, height) : []) {
        for (let cell = 0; cell < width; cell++) {
          const above = values[top * width + cell] / limit;
          line[cell] = above + share * (values[bottom * width + cell] / limit - above);
        }
        for (const [left, right, share] of columns) {
          write(image.data, offset, line[left] + share * (line[right] - line[left]));
          offset += 4;
        }
      }
      context.putImageData(image, 0, 0);
    };
  }

  /** Gives a canvas the shape of an image (`ratio`, width to height), at least a pixel a cell. */
  function fit(canvas, ratio, [height, width], longest) {
    canvas.width = Math.max(width, Math.round(longest * Math.min(1, ratio)));
    canvas.height = Math.max(height, Math.round(longest * Math.min(1, 1 / ratio)));
  }

  /** Where the map is strongest, in words; empty for a map of zeros. */
  function place(values, [height, width]) {
    const peak = largest(values);
    if (peak === 0) return "";
    const cell = values.findIndex((value) => Math.abs(value) === peak);
    const third = (position, names) => names[Math.floor(3 * position)];
    const row = third((Math.floor(cell / width) + 0.5) / height, ["top", "", "bottom"]);
    const column = third(((cell % width) + 0.5) / width, ["left", "", "right"]);
    return [row, column].filter(Boolean).join(" ") || "centre";
  }

  return { decode, mean, largest, painter, fit, place };
})();
