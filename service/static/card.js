// What is served, from /model, and whether it can be asked.

import { request } from "./api.js";
import { byId, make, percent } from "./dom.js";

/** The model card, waited for while the model loads; throws a `Problem` for anything else. */
export async function modelCard() {
  for (;;) {
    try {
      return await (await request("model")).json();
    } catch (error) {
      if (error.status !== 503) throw error;
      showState("waiting", "The model is loading");
      await new Promise((resolve) => setTimeout(resolve, 1000 * (error.retryAfterS ?? 1)));
    }
  }
}

export function showState(state, text) {
  byId("state").dataset.state = state;
  byId("state").textContent = text;
}

export function showCard(card) {
  byId("facts").replaceChildren(
    ...fact("Name", card.name),
    ...fact("Accuracy", ...accuracy(card)),
    ...fact("Tokens", ...tokens(card)),
    ...fact("Engine", `${card.engine.kind} on ${card.engine.device}, ${card.engine.precision}`),
    ...fact("Size", `${(card.parameters / 1e6).toFixed(1)} million parameters, ${card.classes} classes`),
  );
  byId("model").hidden = false;
}

const fact = (name, ...said) => [make("dt", {}, name), make("dd", {}, ...said)];
const note = (text) => make("span", { class: "note" }, text);

function accuracy({ top1, top5, scores, overrides }) {
  if (top1 === null) return ["not measured"];
  const plain = overrides.keep_rate === 1 && overrides.alpha === undefined;
  if (plain && scores.plain_top1 !== undefined) {
    return [best(scores.plain_top1, scores.plain_top5), note(`${percent(top1)} top-1 with merging`)];
  }
  const said = [best(top1, top5)];
  if (scores.plain_top1 !== undefined) said.push(note(`${percent(scores.plain_top1)} top-1 without merging`));
  const replaced = Object.entries(overrides).map(([name, value]) => `${name} = ${value}`);
  if (replaced.length) said.push(note(`measured without the operator's ${replaced.join(", ")}`));
  return said;
}

const best = (top1, top5) => `${percent(top1)} top-1${top5 == null ? "" : `, ${percent(top5)} top-5`}`;

/** Patch tokens after every block, those blocks marked that merge. */
function tokens({ schedule, grid }) {
  const patches = grid[0] * grid[1];
  const merges = schedule.map((left, layer) => left < (layer > 0 ? schedule[layer - 1] : patches));
  const steps = make("div", { class: "steps", "aria-hidden": "true" });
  schedule.forEach((left, layer) => {
    const step = make("div", merges[layer] ? { class: "merges" } : {});
    step.style.height = percent(left / patches).replace(" ", "");
    steps.append(step);
  });
  const fewer = schedule.filter((_, layer) => merges[layer]);
  const blocks = fewer.length ? `merged in ${fewer.length} of ${schedule.length} blocks` : "nothing merges";
  return [steps, [patches, ...fewer].join(" → "), note(`patch tokens, ${blocks}`)];
}
