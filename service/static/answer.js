// The right-hand side: predictions, and where the time went.

import { byId, make, milliseconds, percent, speak, words } from "./dom.js";

/** Shows an answer of /classify; `aroundMs` is what it took as seen from the browser. */
export function showAnswer({ body, stages }, aroundMs) {
  byId("predictions").replaceChildren(...body.predictions.map(prediction));
  const uncertain = body.certain === false;
  byId("certainty").hidden = !uncertain;
  byId("answer").classList.toggle("uncertain", uncertain);
  byId("warnings").replaceChildren(...body.warnings.map((text) => make("li", {}, sentence(text))));
  byId("warnings").hidden = body.warnings.length === 0;
  showStages(stages.length ? stages : Object.entries(body.timings_ms), aroundMs);
  for (const id of ["answer", "times", "shell"]) byId(id).hidden = false;
  const best = body.predictions[0];
  speak(`${uncertain ? "Uncertain. " : ""}Most probable: ${words(best.label)}, ${percent(best.probability, 0)}`);
}

/** What drawing the present view took. */
export function showDrawingTime(stages) {
  const drawn = stages.find(([name]) => name === "draw");
  byId("drawn").textContent = drawn ? ` Drawing this view took ${milliseconds(drawn[1])}.` : "";
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;

function prediction({ label, superclass, probability }) {
  const fill = make("div", { class: "fill" });
  fill.style.width = percent(probability, 2).replace(" ", "");
  const name = make("span", { class: "label" }, words(label));
  const group = superclass ? [" ", make("span", { class: "group" }, words(superclass))] : [];
  return make(
    "li",
    {},
    make("span", {}, name, ...group),
    make("span", { class: "share" }, percent(probability)),
    make("div", { class: "track", "aria-hidden": "true" }, fill),
  );
}

function showStages(stages, aroundMs) {
  const total = stages.reduce((sum, [, duration]) => sum + duration, 0);
  byId("total").textContent = `${milliseconds(total)} in the service`;
  byId("stack").replaceChildren(
    ...stages.map(([, duration], position) => {
      const part = make("div", { class: `part-${position % 5}` });
      part.style.flexGrow = String(duration);
      return part;
    }),
  );
  byId("stages").replaceChildren(
    ...stages.map(([name, duration], position) =>
      make(
        "div",
        {},
        make("span", { class: `dot part-${position % 5}`, "aria-hidden": "true" }),
        make("dt", {}, name),
        make("dd", {}, milliseconds(duration)),
      ),
    ),
  );
  byId("around").replaceChildren(
    `${milliseconds(aroundMs)} as seen from this browser.`,
    make("span", { id: "drawn" }),
  );
}
