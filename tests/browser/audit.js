// What anybody needs of a page, whatever it shows. Each function returns the problems, a line each.
({
  structure() {
    const problems = [], all = (selector) => [...document.querySelectorAll(selector)];
    const blame = (what, elements) => elements.forEach((one) => problems.push(`${what}: ${one.outerHTML.slice(0, 160)}`));
    if (document.documentElement.lang !== "en") problems.push("no language");
    if (!document.title.trim()) problems.push("no title");
    if (all("main").length !== 1) problems.push("not one main landmark");
    if (all("h1").length !== 1) problems.push("not one h1");
    const headings = all("h1, h2, h3, h4, h5, h6");
    blame("a level of headings is left out", headings.filter((one, i) => one.tagName[1] - (headings[i - 1]?.tagName[1] ?? 0) > 1));
    blame("an empty heading", headings.filter((one) => !one.textContent.trim()));
    const ids = all("[id]").map((one) => one.id);
    if (new Set(ids).size !== ids.length) problems.push("an id stands twice");
    blame("no such id", all("[aria-labelledby]").filter((one) => !document.getElementById(one.getAttribute("aria-labelledby"))));
    const name = (one) => one.getAttribute("aria-label") || one.labels?.[0]?.textContent || one.getAttribute("alt")
      || document.getElementById(one.getAttribute("aria-labelledby"))?.textContent || one.textContent;
    // Without a name where the words beside it are the button's.
    blame("an image without alt", all("img").filter((one) => !one.hasAttribute("alt")));
    const named = "[role=img], [role=region], [role=group], [role=toolbar], section, button, input, select, [tabindex='0']";
    blame("no name", all(named).filter((one) => !name(one).trim()));
    const regions = all("section, [role=region]").map(name);
    blame("two regions of one name", all("section, [role=region]").filter((one, i) => regions.indexOf(name(one)) !== i));
    blame("a table without a caption", all("table").filter((one) => !one.caption));
    blame("a head without a scope", all("th").filter((one) => !one.scope));
    // A keyboard has to reach what a mouse scrolls.
    blame("scrolls, and can't be focused", all("body *").filter((one) => {
      const scrolls = (size, client, style) => size > client + 1 && ["auto", "scroll"].includes(style);
      const {overflowX, overflowY} = getComputedStyle(one);
      return (scrolls(one.scrollWidth, one.clientWidth, overflowX) || scrolls(one.scrollHeight, one.clientHeight, overflowY))
        && one.tabIndex < 0 && !one.querySelector("button, input, select, [tabindex='0']");
    }));
    if (document.getAnimations().length) problems.push("something moves, whatever the reader prefers");
    return problems;
  },

  // Of a matrix, whose columns are many, the rest is scrolled to.
  cut(width) {
    return [...document.querySelectorAll("h1, h2, h3, caption, summary, thead th, figcaption")]
    .filter((one) => one.getClientRects().length && !one.closest(".matrix thead")).map((one) => {
      const range = document.createRange();
      range.selectNodeContents(one);
      return [one.textContent.trim(), range.getBoundingClientRect()];
    }).filter(([, box]) => box.left < 0 || box.right > width).map(([text]) => `cut off: ${text.slice(0, 80)}`);
  },

  // The colours at the middle of each piece of text are laid over each other, from the bottom to the text's own.
  contrast(least) {
    const number = (css) => { const found = css.match(/[\d.]+/g); return found ? found.map(Number) : [0, 0, 0, 0]; };
    const over = ([red, green, blue, alpha = 1], opacity, below) =>
      [red, green, blue].map((one, i) => alpha * opacity * one + (1 - alpha * opacity) * below[i]);
    const shine = (colour) => {
      const [red, green, blue] = colour.map((one) => one / 255).map((one) => one <= .04045 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4);
      return .2126 * red + .7152 * green + .0722 * blue;
    };
    const opacity = (one) => one ? Number(getComputedStyle(one).opacity) * opacity(one.parentElement) : 1;
    const paint = (one, below) => {
      const style = getComputedStyle(one);
      if (!(one instanceof SVGElement)) return over(number(style.backgroundColor), opacity(one), below);
      if (one instanceof SVGSVGElement || style.fill === "none" || one.closest("text")) return below;
      return over(number(style.fill), style.fillOpacity * opacity(one), below);
    };
    const problems = [];
    const alike = new Map();
    let checked = 0;
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const text = walker.currentNode, holder = text.parentElement;
      if (!text.data.trim() || holder.closest("script, style, noscript, option, :disabled")) continue;
      // Of words that are styled alike some are enough; a plot's stand on different grounds.
      const kind = `${holder.tagName} ${holder.className}`;
      alike.set(kind, (alike.get(kind) ?? 0) + 1);
      if (alike.get(kind) > 5 && !(holder instanceof SVGElement)) continue;
      holder.scrollIntoView({block: "center", inline: "center"});
      const range = document.createRange();
      range.selectNodeContents(text);
      const box = range.getClientRects()[0];
      if (!box?.width) continue;
      const there = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2).reverse();
      const end = there.indexOf(holder);
      if (end < 0) continue;
      checked++;
      const below = there.slice(0, end + 1).reduce((colour, one) => paint(one, colour), [255, 255, 255]);
      const style = getComputedStyle(holder);
      const drawn = over(number(holder instanceof SVGElement ? style.fill : style.color), opacity(holder), below);
      const [dark, light] = [shine(drawn), shine(below)].sort((a, b) => a - b);
      const contrast = (light + .05) / (dark + .05);
      if (contrast < least) problems.push(`contrast ${contrast.toFixed(2)}: ${text.data.trim().slice(0, 60)} of ${holder.outerHTML.slice(0, 160)}`);
    }
    scrollTo(0, 0);
    return [checked, problems];
  },

  unseenFocus() {
    return [...document.querySelectorAll("button:enabled, input:enabled, select:enabled, a[href], [tabindex='0']")]
    .filter((one) => {
      one.focus();
      const {outlineStyle, outlineWidth} = getComputedStyle(one);
      return document.activeElement === one && (outlineStyle === "none" || parseFloat(outlineWidth) < 1);
    }).map((one) => `its focus can't be seen: ${one.outerHTML.slice(0, 160)}`);
  },
})
