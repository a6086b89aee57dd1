// The ways in which a picture arrives: chosen, photographed, dropped, pasted, or one of the samples.

import { request } from "./api.js";
import { byId } from "./dom.js";

/** Calls `take` with every file that arrives, and `failed` with the `Problem` of a sample that does not. */
export function listen(take, failed) {
  for (const input of [byId("file"), byId("photo")]) {
    input.addEventListener("change", () => {
      if (input.files.length) take(input.files[0]);
      input.value = ""; // the same file again is a change, too
    });
  }
  listenToDrops(take);
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (!file) return;
    event.preventDefault();
    take(file);
  });
  byId("samples").addEventListener("click", async (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    try {
      take(await sample(button.dataset.sample), button);
    } catch (error) {
      failed(error);
    }
  });
}

async function sample(name) {
  const blob = await (await request(`samples/${name}`)).blob();
  return new File([blob], name, { type: blob.type });
}

function listenToDrops(take) {
  let depth = 0; // dragenter and dragleave also come from the children
  const dragging = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dragging", depth > 0);
  };
  const holdsFile = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragenter", (event) => holdsFile(event) && dragging(1));
  document.addEventListener("dragleave", (event) => holdsFile(event) && dragging(-1));
  document.addEventListener("dragover", (event) => holdsFile(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    dragging(-depth);
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
}
