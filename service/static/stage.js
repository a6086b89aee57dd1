// The picture and its views. Every drawing is the service's own. The overlay is two of them, without heat and with
// nothing but heat, one over the other: so the slider needs no request and what the centre crop cuts off stays shaded.

import { drawing } from "./api.js";
import { byId } from "./dom.js";
import { showDrawingTime } from "./answer.js";

const CUT_OFF = "Shaded parts are cut off by the centre crop: the model does not see them.";

const PROTECTS = { lfgm: "lfgm", stream_detail: "energy" }; // the score behind a strategy of the model

const SEEN = {
  lfgm: "How much high-frequency detail each patch has in the mean of its channels (LFGM)",
  energy: "How much high-frequency detail each patch has in all of its channels",
};

let picture = null; // {file, name, id}
let drawings = new Map(); // address of a drawing → promise of {url, stages}
let limits = { heatmap_max_side: 1024 };
let merges = []; // [{layer, before, tokens}]
let protecting = null; // the score by which the model protects tokens, if it is one of the two
let newest = 0;

export const current = () => ({ picture, query: described() });

export function useModel(card) {
  limits = card.limits;
  const patches = card.grid[0] * card.grid[1];
  merges = card.config.merge_layers.map((layer) => ({
    layer,
    before: layer > 0 ? card.schedule[layer - 1] : patches,
    tokens: card.schedule[layer],
  }));
  const merging = card.schedule.at(-1) < patches && card.config.alpha > 0;
  protecting = merging ? PROTECTS[card.config.scoring] : null;
  byId("block").max = String(merges.length - 1);
  byId("block").value = byId("block").max;
  adjust();
}

/** Takes another picture; shows nothing yet. */
export function usePicture(taken) {
  for (const pending of drawings.values()) pending.then(({ url }) => URL.revokeObjectURL(url), () => {});
  drawings = new Map();
  picture = taken;
}

/** Shows the chosen view; calls `failed` with a `Problem` if the service refuses it. */
export async function show(failed) {
  adjust();
  if (!picture) return;
  const turn = ++newest;
  byId("frame").setAttribute("aria-busy", "true");
  try {
    const [base, heat] = await Promise.all([drawn(layers().base), layers().heat ? drawn(layers().heat) : null]);
    if (turn !== newest) return;
    byId("base").className = view();
    await place(byId("base"), base);
    await place(byId("heat"), heat);
    byId("base").alt = `${picture.name}: ${byId("caption").textContent}`;
    byId("empty").hidden = true;
    byId("controls").hidden = byId("caption").hidden = false;
    showDrawingTime((heat ?? base).stages);
  } catch (error) {
    if (turn === newest) failed(error);
  } finally {
    if (turn === newest) byId("frame").setAttribute("aria-busy", "false");
  }
}

async function place(image, made) {
  image.hidden = made === null;
  if (made === null || image.src === made.url) return;
  image.src = made.url;
  await image.decode();
}

function drawn(query) {
  const address = String(new URLSearchParams(query));
  if (!drawings.has(address)) {
    const owner = drawings;
    const made = drawing(picture, query).then(({ blob, stages }) => ({ url: URL.createObjectURL(blob), stages }));
    made.catch(() => owner.delete(address)); // to be asked for again
    drawings.set(address, made);
  }
  return drawings.get(address);
}

const view = () => document.querySelector("input[name=view]:checked").value;
const score = () => document.querySelector("input[name=score]:checked").value;
const colormap = () => byId("colormap").value;
const merge = () => merges[Number(byId("block").value)];
const size = () => Math.min(1024, limits.heatmap_max_side);

/** The drawings that make up the view. */
function layers() {
  const plain = { view: "overlay", opacity: 0, size: size(), format: "webp" };
  if (view() === "overlay") return { base: plain, heat: { ...plain, opacity: 1, ...painted() } };
  if (view() === "score") return { base: { view: "score", ...painted(), size: size() } };
  if (view() === "merged") return { base: { view: "merged", ...layer(), size: size() } };
  return { base: plain };
}

/** The one drawing of /heatmap that shows the same as the page. */
function described() {
  if (view() === "overlay") return { view: "overlay", ...painted(), opacity: byId("opacity").value / 100 };
  if (view() === "score") return { view: "score", ...painted() };
  if (view() === "merged") return { view: "merged", ...layer() };
  return { view: "original" };
}

const painted = () => ({ score: score(), colormap: colormap() });
const layer = () => (merge() ? { layer: merge().layer } : {});

/** Controls and words of the view, and the opacity: no request. */
export function adjust() {
  for (const control of document.querySelectorAll("[data-for]")) {
    control.hidden = !control.dataset.for.split(" ").includes(view());
  }
  byId("ramp").dataset.map = colormap();
  byId("opacity-value").textContent = `${byId("opacity").value} %`;
  byId("heat").style.opacity = String(byId("opacity").value / 100);
  if (merge()) {
    const told = `${Number(byId("block").value) + 1} of ${merges.length}: ${merge().before} → ${merge().tokens} tokens`;
    byId("block-value").textContent = told;
    byId("block").setAttribute("aria-valuetext", told.replace("→", "to"));
  }
  byId("caption").textContent = caption();
}

/** What the score means for the tokens. */
const fate = () =>
  score() === protecting
    ? ": what is detailed is protected, what is smooth is merged."
    : ". The model does not merge by this score.";

function caption() {
  if (view() === "overlay") {
    return `${SEEN[score()]}${fate()} ${CUT_OFF}`;
  }
  if (view() === "score") return `${SEEN[score()]}, one square per patch of the centre crop.`;
  if (view() === "merged") {
    return `Patches that became one token have its mean colour; lines separate tokens. ${CUT_OFF}`;
  }
  return `The picture as it was sent. ${CUT_OFF}`;
}
