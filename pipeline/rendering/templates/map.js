// The map's page. Text of others' only ever becomes text nodes.
(async () => {
  const $ = (id) => document.getElementById(id);
  // The words first: the browser paints once before it is busy with the rest.
  await new Promise((done) => { requestAnimationFrame(() => setTimeout(done)); setTimeout(done, 500); });
  const library = document.createElement("script");
  library.textContent = $("plotly").textContent;
  document.head.append(library);
  $("plotly").remove();
  const holder = $("map-data");
  const data = JSON.parse(holder.textContent);
  holder.remove();
  const plot = $("plot");
  const MOST_HITS = 20, MOST_CHOSEN = 100, MOST_LETTERS = 240, MOST_NAMES = 2000;
  const SYMBOLS = ["circle", "diamond", "square"];
  const RAMP = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"];

  const inflate = async (text) => {
    const letters = atob(text), bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  };
  const strings = async (text) => JSON.parse(new TextDecoder().decode(await inflate(text)));

  const keys = await strings(data.keys);
  const places = new Float32Array(await inflate(data.places));
  const neighbours = new Int32Array(await inflate(data.neighbours));
  const cosines = new Int16Array(await inflate(data.cosines));
  const columns = new Map();
  for (const column of data.columns) {
    columns.set(column.name, column.kind === "number"
      ? { ...column, values: new Float32Array(await inflate(column.values)) }
      : { ...column, codes: new Uint32Array(await inflate(column.codes)), names: await strings(column.names) });
  }
  const thumbnails = new Map();
  const thumbnailRows = new Int32Array(await inflate(data.thumbnails.rows));
  const thumbnailSizes = new Uint32Array(await inflate(data.thumbnails.sizes));
  const gone = new Set(new Int32Array(await inflate(data.thumbnails.gone)));
  let offset = 0;
  thumbnailRows.forEach((row, i) => { thumbnails.set(row, [offset, offset += thumbnailSizes[i]]); });

  // ---- words -------------------------------------------------------------------------------------------------
  const printable = (text) => {
    const short = text.length > MOST_LETTERS
      ? `${text.slice(0, MOST_LETTERS / 2)} … ${text.slice(-MOST_LETTERS / 2)}` : text;
    return short.replace(/[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g, "\ufffd");
  };
  const element = (tag, className, ...children) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children);
    return made;
  };
  const count = (number) => number.toLocaleString("en");
  const say = (text) => { $("status").textContent = text; };
  const value = (column, row) => {
    if (column.kind === "category") return column.names[column.codes[row]];
    const number = column.values[row];
    return Number.isNaN(number) ? "(none)" : String(Number(number.toPrecision(5)));
  };
  const label = (row) => columns.has("label") ? value(columns.get("label"), row) : "";

  const thumbnail = (row) => {
    const at = thumbnails.get(row);
    if (!at) {
      const words = gone.has(row) ? "source is gone" : thumbnails.size ? "not among the thumbnails" : "no thumbnails";
      return element("div", "thumb none", words);
    }
    const image = element("img", "thumb");
    image.alt = "";
    image.src = "data:image/webp;base64," + data.thumbnails.text.slice(...at);
    // Stored as squares: what was filled up isn't of the image.
    const wide = columns.get("width").values[row], high = columns.get("height").values[row];
    const filled = 50 - 50 * Math.min(wide, high) / Math.max(wide, high);
    image.style.clipPath = wide > high ? `inset(${filled}% 0)` : `inset(0 ${filled}%)`;
    return image;
  };
  const brief = (row, more) => {
    const text = element("span", "text", element("bdi", "key", printable(keys[row])));
    text.append(element("bdi", "line", [label(row), more].filter(Boolean).join(" · ")));
    return text;
  };
  const rowButton = (row, more) => {
    const button = element("button", "", thumbnail(row), brief(row, more));
    button.type = "button";
    button.addEventListener("click", () => show(row, true));
    return button;
  };

  // ---- drawing -----------------------------------------------------------------------------------------------
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const webgl = Boolean(document.createElement("canvas").getContext("webgl"));
  const size = keys.length > 50000 ? 3 : keys.length > 5000 ? 4.5 : 7;
  let current = null;      // the column that colours
  let groups = [];         // {name, rows, symbol, colour, visible}, one trace each
  let selection = new Int32Array(0);
  let marked = null;

  // The shapes of points as small as those of a large map can't be told apart, and take twice as long as circles.
  const shapes = size > 3 ? SYMBOLS : SYMBOLS.slice(0, 1);
  const look = (code) => ({ colour: `c${code % 8 + 1}`, symbol: shapes[Math.floor(code / 8) % shapes.length] });

  const makeGroups = (column) => {
    const all = { name: column.name, rows: Int32Array.from(keys.keys()), symbol: "circle", colour: null };
    if (column.kind === "number") return [{ ...all, visible: true }];
    const sizes = new Uint32Array(column.shown + 1);
    const group = (row) => Math.min(column.codes[row], column.shown);
    for (let row = 0; row < keys.length; row++) sizes[group(row)]++;
    const rows = Array.from(sizes, (length) => new Int32Array(length));
    sizes.fill(0);
    for (let row = 0; row < keys.length; row++) rows[group(row)][sizes[group(row)]++] = row;
    const made = rows.map((some, code) => {
      const rest = code === column.shown || column.names[code] === "(none)";
      const name = code === column.shown ? `${count(column.names.length - code)} others` : column.names[code];
      return { name, rows: some, visible: true, ...(rest ? { colour: "muted", symbol: "circle" } : look(code)) };
    });
    return made.filter((one) => one.rows.length);
  };

  const trace = (one) => {
    const x = new Float32Array(one.rows.length), y = new Float32Array(one.rows.length);
    one.rows.forEach((row, i) => { x[i] = places[2 * row]; y[i] = places[2 * row + 1]; });
    const marker = { size, opacity: 0.75, symbol: one.symbol, line: { width: 0 } };
    if (one.colour) {
      marker.color = style(one.colour);
    } else {
      marker.color = Array.from(current.values, (number) => Number.isNaN(number) ? null : number);
      marker.colorscale = RAMP.map((colour, i) => [i / (RAMP.length - 1), colour]);
    }
    return { type: webgl ? "scattergl" : "scatter", mode: "markers", x, y, marker, hoverinfo: "none",
      visible: one.visible, unselected: { marker: { opacity: 0.12 } }, selectedpoints: chosenIn(one) };
  };

  const chosenIn = (one) => {
    if (!selection.length) return null;
    const chosen = new Set(selection);
    return Array.from(one.rows.keys()).filter((i) => chosen.has(one.rows[i]));
  };

  const axis = { visible: false, zeroline: false, showgrid: false };
  const layout = () => ({
    dragmode: plot.layout ? plot.layout.dragmode : "pan", hovermode: "closest", hoverdistance: 12, showlegend: false,
    margin: { l: 8, r: 8, t: 8, b: 8 }, paper_bgcolor: style("surface"), plot_bgcolor: style("surface"),
    newselection: { line: { color: style("ink"), width: 1 } }, activeselection: { fillcolor: style("first"), opacity: 0.1 },
    xaxis: { ...axis, ...(plot.layout ? { range: plot.layout.xaxis.range.slice(), autorange: false } : {}) },
    yaxis: { ...axis, scaleanchor: "x",
      ...(plot.layout ? { range: plot.layout.yaxis.range.slice(), autorange: false } : {}) },
    shapes: rings(),
  });

  const rings = () => {
    if (marked === null) return [];
    const near = Array.from(neighbours.subarray(marked * data.k, (marked + 1) * data.k));
    const ring = (row, radius, width, colour) => ({
      type: "circle", xref: "x", yref: "y", xsizemode: "pixel", ysizemode: "pixel",
      xanchor: places[2 * row], yanchor: places[2 * row + 1],
      x0: -radius, x1: radius, y0: -radius, y1: radius, line: { color: style(colour), width },
    });
    return [...near.map((row) => ring(row, 6, 1.5, "ink")), ring(marked, 9, 3, "second")];
  };

  // Without WebGL a plot of this size takes long, but it is drawn.
  const draw = () => Plotly.react(plot, groups.map(trace), layout());

  const colourBy = async (name) => {
    current = columns.get(name);
    groups = makeGroups(current);
    drawLegend();
    await draw();
  };

  // ---- legend ------------------------------------------------------------------------------------------------
  const SHAPES = { circle: "M7 2a5 5 0 1 0 .01 0z", diamond: "M7 1l6 6-6 6-6-6z", square: "M2.5 2.5h9v9h-9z" };
  const mark = (one) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 14 14");
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", SHAPES[one.symbol]);
    path.setAttribute("fill", `var(--${one.colour})`);
    svg.append(path);
    return svg;
  };

  const drawLegend = () => {
    const numbers = current.kind === "number";
    $("ramp").hidden = !numbers;
    $("legend").hidden = $("legend-buttons").hidden = numbers;
    if (numbers) {
      let low = Infinity, high = -Infinity;
      for (const number of current.values) {
        if (number < low) low = number;
        if (number > high) high = number;
      }
      const [first, last] = $("ramp").querySelectorAll("span");
      first.textContent = low <= high ? low.toPrecision(4) : "";
      last.textContent = low <= high ? high.toPrecision(4) : "no numbers";
      $("ramp").firstElementChild.style.background = `linear-gradient(to right, ${RAMP.join(", ")})`;
      $("legend").replaceChildren();
      return;
    }
    $("legend").replaceChildren(...groups.map((one, i) => {
      const box = element("input");
      box.type = "checkbox";
      box.checked = one.visible;
      box.addEventListener("change", () => setVisible([i], box.checked));
      const name = element("bdi", "name", printable(one.name));
      name.title = printable(one.name);
      return element("li", "", element("label", "", box, mark(one), name, element("span", "rows", count(one.rows.length))));
    }));
  };

  const setVisible = async (numbers, visible) => {
    for (const i of numbers) groups[i].visible = visible;
    $("legend").querySelectorAll("input").forEach((box, i) => { box.checked = groups[i].visible; });
    await Plotly.restyle(plot, { visible }, numbers);
    say(`${count(groups.reduce((sum, one) => sum + (one.visible ? one.rows.length : 0), 0))} rows shown.`);
  };

  // ---- hover, click, details ---------------------------------------------------------------------------------
  const rowOf = (point) => groups[point.curveNumber].rows[point.pointNumber];

  const hover = (event) => {
    const row = rowOf(event.points[0]);
    const card = $("card");
    card.replaceChildren(thumbnail(row), brief(row, current.name === "label" ? "" : `${current.name} ${value(current, row)}`));
    card.hidden = false;
    const stage = plot.getBoundingClientRect();
    const x = event.event.clientX - stage.left, y = event.event.clientY - stage.top;
    card.style.left = `${Math.max(4, Math.min(x + 16, stage.width - card.offsetWidth - 4))}px`;
    card.style.top = `${y + 16 + card.offsetHeight > stage.height ? Math.max(4, y - card.offsetHeight - 12) : y + 16}px`;
  };

  const show = async (row, move) => {
    marked = row;
    const head = element("div", "picked", thumbnail(row), element("bdi", "key text", printable(keys[row])));
    const facts = element("dl");
    for (const column of columns.values()) {
      facts.append(element("dt", "", column.name), element("dd", "", element("bdi", "", printable(value(column, row)))));
    }
    const near = element("ol", "near");
    for (let i = row * data.k; i < (row + 1) * data.k; i++) {
      near.append(element("li", "", rowButton(neighbours[i], `cosine ${(cosines[i] / 10000).toFixed(3)}`)));
    }
    const title = data.k ? `The ${data.k} nearest, by cosine of the vectors` : "It is the only row";
    $("row").replaceChildren(head, facts, element("p", "line", title), near);
    say(`Row ${printable(keys[row])}.`);
    await Plotly.relayout(plot, { shapes: rings(), ...(move ? centred(row) : {}) });
  };

  const ranges = () => [plot.layout.xaxis.range.map(Number), plot.layout.yaxis.range.map(Number)];
  const centred = (row) => {
    const change = {};
    ranges().forEach(([low, high], i) => {
      const at = places[2 * row + i], margin = 0.05 * (high - low);
      if (at > low + margin && at < high - margin) return;
      change[`${"xy"[i]}axis.range`] = [at - (high - low) / 2, at + (high - low) / 2];
    });
    return change;
  };

  // ---- search ------------------------------------------------------------------------------------------------
  let lower = null, waiting = null;
  const search = () => {
    const wanted = $("search").value.toLowerCase();
    if (!wanted) {
      $("found").textContent = "";
      $("hits").replaceChildren();
      return;
    }
    lower ??= keys.map((key) => key.toLowerCase());
    let total = 0;
    const hits = [];
    for (let row = 0; row < lower.length; row++) {
      if (lower[row].includes(wanted) && total++ < MOST_HITS) hits.push(row);
    }
    $("found").textContent = total === 0 ? "No key has that." : `${count(total)} ${total === 1 ? "key has" : "keys have"} that`
      + (total > MOST_HITS ? `, the first ${MOST_HITS} are shown.` : ".");
    $("hits").replaceChildren(...hits.map((row) => element("li", "", rowButton(row, ""))));
  };
  $("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 150); });
  $("search").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    clearTimeout(waiting);
    search();
    const first = $("hits").querySelector("button");
    if (first) first.click();
  });

  // ---- selection ---------------------------------------------------------------------------------------------
  const showSelection = () => {
    const any = selection.length > 0;
    $("save").disabled = $("clear").disabled = $("give").querySelector("button").disabled = !any;
    $("selected").textContent = any
      ? `${count(selection.length)} ${selection.length === 1 ? "row" : "rows"} selected` + (selection.length > MOST_CHOSEN
        ? `, the first ${MOST_CHOSEN} are listed.` : ".") : "No rows selected.";
    if (!any) {
      $("chosen").replaceChildren();
      return;
    }
    const head = element("tr", "", ...["key", "label"].map((name) => {
      const cell = element("th", "", name);
      cell.scope = "col";
      return cell;
    }));
    const body = Array.from(selection.subarray(0, MOST_CHOSEN), (row) => element("tr", "",
      element("td", "", element("bdi", "key", printable(keys[row]))), element("td", "", element("bdi", "", printable(corrections.get(keys[row]) ?? label(row))))));
    $("chosen").replaceChildren(element("table", "", element("caption", "", "Selected rows"), element("thead", "", head),
      element("tbody", "", ...body)));
  };
  const select = (rows) => {
    selection = Int32Array.from(rows).sort();
    showSelection();
  };
  const clearSelection = async () => {
    select([]);
    await Plotly.update(plot, { selectedpoints: null }, { selections: [] });
  };
  const selectInView = async () => {
    const [[left, right], [bottom, top]] = ranges();
    const found = [];
    for (const one of groups) {
      if (!one.visible) continue;
      for (const row of one.rows) {
        const x = places[2 * row], y = places[2 * row + 1];
        if (x >= left && x <= right && y >= bottom && y <= top) found.push(row);
      }
    }
    selection = Int32Array.from(found);
    await Plotly.update(plot, { selectedpoints: groups.map(chosenIn) }, { selections: [] });
    // Afterwards, because taking an outline away is reported as selecting nothing.
    select(found);
  };
  const save = () => {
    saveCsv("featuremill-keys.csv", "key", Array.from(selection, (row) => [keys[row]]));
    say(`${count(selection.length)} keys saved.`);
  };
  const give = $("give");
  if (columns.has("label")) {
    const names = columns.get("label").names.slice(0, MOST_NAMES).filter((name) => name !== "(none)" && !/[\ufffd…]/.test(name));
    give.querySelector("datalist").append(...names.map((name) => new Option(name, name)));
  }
  give.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = give.elements.label.value.trim();
    if (!text) return give.elements.label.focus();
    correct(Array.from(selection, (row) => keys[row]), text);
    give.elements.save.disabled = false;
    showSelection();
    say(`${count(selection.length)} rows labelled ${printable(text)}; ${count(corrections.size)} not saved yet.`);
  });
  give.elements.file.addEventListener("change", async () => {
    const rows = await continueFrom(give.elements.file);
    give.elements.save.disabled = !corrections.size;
    showSelection();
    say(`${count(rows)} labels of the file.`);
  });
  give.elements.save.addEventListener("click", () => {
    saveCorrections();
    say(`${count(corrections.size)} labels saved: train --labels labels.csv --labels-mode update takes them.`);
  });
  $("in-view").addEventListener("click", selectInView);
  $("clear").addEventListener("click", clearSelection);
  $("save").addEventListener("click", save);

  // ---- tools, keys, light and dark ---------------------------------------------------------------------------
  const zoom = (factor, right = 0, up = 0) => {
    const change = {};
    ranges().forEach(([low, high], i) => {
      const half = (high - low) / 2, centre = (low + high) / 2 + [right, up][i] * half;
      change[`${"xy"[i]}axis.range`] = [centre - half * factor, centre + half * factor];
    });
    return Plotly.relayout(plot, change);
  };
  const showAll = () => Plotly.relayout(plot, { "xaxis.autorange": true, "yaxis.autorange": true });
  $("zoom-in").addEventListener("click", () => zoom(0.6));
  $("zoom-out").addEventListener("click", () => zoom(1 / 0.6));
  $("zoom-all").addEventListener("click", showAll);
  const KEYS = {
    "+": () => zoom(0.6), "=": () => zoom(0.6), "-": () => zoom(1 / 0.6), "0": showAll,
    ArrowLeft: () => zoom(1, -0.2), ArrowRight: () => zoom(1, 0.2), ArrowUp: () => zoom(1, 0, 0.2),
    ArrowDown: () => zoom(1, 0, -0.2),
  };
  plot.addEventListener("keydown", (event) => {
    if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  const tools = document.querySelectorAll("[data-drag]");
  tools.forEach((button) => button.addEventListener("click", () => {
    tools.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    Plotly.relayout(plot, { dragmode: button.dataset.drag });
  }));
  $("all-on").addEventListener("click", () => setVisible(Array.from(groups.keys()), true));
  $("all-off").addEventListener("click", () => setVisible(Array.from(groups.keys()), false));
  for (const name of columns.keys()) $("colour").append(new Option(name, name));
  $("colour").value = data.color;
  $("colour").addEventListener("change", () => colourBy($("colour").value));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  // Points are drawn with soft edges; smoothing by the browser is four times the work where no graphics card does it.
  const getContext = HTMLCanvasElement.prototype.getContext;
  HTMLCanvasElement.prototype.getContext = function (kind, options) {
    return getContext.call(this, kind, kind.startsWith("webgl") ? { ...options, antialias: false } : options);
  };

  // ---- start -------------------------------------------------------------------------------------------------
  current = columns.get(data.color);
  groups = makeGroups(current);
  drawLegend();
  // Plotly's own ratio is 2, which is four times the work where no graphics card does it.
  const plotGlPixelRatio = window.devicePixelRatio;
  const settings = { displayModeBar: false, scrollZoom: true, responsive: true, plotGlPixelRatio };
  await Plotly.newPlot(plot, groups.map(trace), layout(), settings);
  plot.on("plotly_hover", hover);
  plot.on("plotly_unhover", () => { $("card").hidden = true; });
  // While something is selected plotly doesn't say that a point is left.
  plot.addEventListener("mouseleave", () => { $("card").hidden = true; });
  plot.on("plotly_click", (event) => show(rowOf(event.points[0]), false));
  plot.on("plotly_selected", (event) => { if (event && event.points) select(event.points.map(rowOf)); });
  plot.on("plotly_deselect", () => select([]));
  say(webgl ? `${count(keys.length)} rows shown.` : "This browser has no WebGL: drawing is slow.");
  performance.mark("map-drawn");
  document.body.dataset.ready = "true";
})().catch((error) => {
  document.getElementById("status").textContent = `The map can't be drawn: ${error.message}`;
  throw error;
});
