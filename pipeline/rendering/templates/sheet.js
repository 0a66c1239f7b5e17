(() => {
  const form = document.querySelector(".labelling"), dialog = document.querySelector("dialog");
  const tiles = new Map();
  // A row may stand in several sections.
  for (const tile of document.querySelectorAll(".tile[data-key]")) {
    const key = JSON.parse(tile.dataset.key);
    tiles.set(key, [...(tiles.get(key) ?? []), tile]);
  }
  const box = (tile) => tile.querySelector(".pick");
  const selected = () => [...tiles].filter(([, some]) => some.some((tile) => box(tile).checked)).map(([key]) => key);
  const update = () => {
    for (const [key, some] of tiles) {
      const label = corrections.get(key);
      if (label === undefined) continue;
      for (const tile of some) tile.querySelector(".given").textContent = label ? `now ${label}` : "now no label";
    }
    const count = selected().length;
    form.classList.toggle("active", count + corrections.size > 0);
    form.querySelector("output").textContent = `${count || "None"} selected`;
    form.querySelectorAll("button:not([name=save])").forEach((button) => { button.disabled = !count; });
    form.elements.save.disabled = !corrections.size;
    form.elements.save.textContent = corrections.size ? `Save ${corrections.size} as CSV` : "Save labels as CSV";
  };
  const give = (labelOf) => {
    for (const key of selected()) {
      const label = labelOf(tiles.get(key)[0]);
      correct([key], label);
      for (const tile of tiles.get(key)) box(tile).checked = false;
    }
    update();
  };
  document.addEventListener("change", (event) => {
    if (!event.target.matches(".pick")) return;
    const key = JSON.parse(event.target.closest(".tile").dataset.key);
    tiles.get(key).forEach((tile) => { box(tile).checked = event.target.checked; });
    update();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const label = form.elements.label.value.trim();
    if (label) give(() => label); else form.elements.label.focus();
  });
  form.elements.none.addEventListener("click", () => give(() => ""));
  form.elements.suggested?.addEventListener("click", () => give((tile) => JSON.parse(tile.dataset.suggested)));
  form.elements.file.addEventListener("change", async () => { await continueFrom(form.elements.file); update(); });
  form.elements.save.addEventListener("click", () => { saveCorrections(); update(); });
  document.addEventListener("click", (event) => {
    const frame = event.target.closest("button.frame");
    if (!frame) return;
    const close = document.createElement("button");
    close.textContent = "Close";
    close.addEventListener("click", () => dialog.close());
    const words = document.createElement("p");
    words.textContent = frame.querySelector("img").alt;
    dialog.replaceChildren(frame.querySelector("img").cloneNode(), words, close);
    dialog.showModal();
  });
})();
