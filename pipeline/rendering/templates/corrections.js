"use strict";
// Rows that got a label here, and the label file that `train --labels FILE --labels-mode update` takes.
const corrections = new Map();
const saveCsv = (name, head, rows) => {
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  const lines = rows.map((row) => row.map(quoted).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([[head, ...lines, ""].join("\r\n")], { type: "text/csv;charset=utf-8" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};
let unsaved = false;
const correct = (keys, label) => {
  keys.forEach((key) => corrections.set(key, label));
  unsaved = true;
};
const saveCorrections = () => {
  saveCsv("labels.csv", "key,label", [...corrections]);
  unsaved = false;
};
// Goes on with a file that such a page saved: what it says lies below what is given from now on.
const continueFrom = async (input) => {
  const plain = (text) => text.replaceAll('""', '"');
  const text = await input.files[0].text();
  const rows = [...text.matchAll(/^"((?:[^"]|"")*)","((?:[^"]|"")*)"/gm)].map((row) => [plain(row[1]), plain(row[2])]);
  rows.filter(([key]) => !corrections.has(key)).forEach(([key, label]) => corrections.set(key, label));
  input.value = "";
  return rows.length;
};
addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
