// The page: a picture in, its answer and its views out.

import { Problem, classify, useKey } from "./api.js";
import { showAnswer } from "./answer.js";
import { modelCard, showCard, showState } from "./card.js";
import { copyCurl, showCurl } from "./curl.js";
import { byId } from "./dom.js";
import { listen } from "./intake.js";
import { hideProblem, showProblem } from "./problem.js";
import * as stage from "./stage.js";

let limits = null;
let underWay = new AbortController();
let afterKey = () => {};

async function take(file, button = null) {
  underWay.abort(); // the service forgets pictures whose client has left
  underWay = new AbortController();
  const { signal } = underWay;
  hideProblem();
  byId("frame").setAttribute("aria-busy", "true");
  const started = performance.now();
  try {
    refuseTooLarge(file);
    const answer = await classify(file, signal);
    showAnswer(answer, performance.now() - started);
    showState("ready", "Ready");
    for (const other of byId("samples").querySelectorAll("button")) other.setAttribute("aria-pressed", other === button);
    stage.usePicture({ file, name: file.name || "picture", id: answer.body.image_id });
    await draw();
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("frame").setAttribute("aria-busy", "false");
    fail(error, () => take(file, button), file.name); // the picture before stays as it is
  }
}

/** A body that is too large is refused while it is sent, which a browser reports as a broken connection. */
function refuseTooLarge(file) {
  if (!limits || file.size <= limits.max_upload_bytes) return;
  throw new Problem({
    title: "The picture is too large",
    reason: "too_large",
    detail: `expected at most ${limits.max_upload_bytes.toLocaleString("en")} bytes, found ${file.size.toLocaleString("en")}; reduce the picture, it was not sent`,
  });
}

async function draw() {
  if (stage.current().picture) showCurl(stage.current());
  await stage.show((error) => fail(error, draw));
  if (stage.current().picture) showCurl(stage.current()); // its id may have expired
}

function fail(error, again, name = "") {
  if (!(error instanceof Problem)) throw error;
  if (error.status === 401) {
    afterKey = again;
    byId("key-form").hidden = false;
    byId("key").focus();
  }
  showProblem(error, again, name);
}

async function introduce() {
  try {
    const card = await modelCard();
    limits = card.limits;
    stage.useModel(card);
    showCard(card);
    showState("ready", "Ready");
  } catch (error) {
    showState("bad", error.status === 401 ? "An API key is needed" : "Not available");
    fail(error, introduce);
  }
}

byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  byId("key").value = "";
  byId("key-form").hidden = true;
  hideProblem();
  const again = afterKey;
  if (!limits && again !== introduce) await introduce();
  await again();
});
for (const control of [...document.querySelectorAll("input[name=view], input[name=score]"), byId("colormap"), byId("block")]) {
  control.addEventListener("input", draw);
}
byId("opacity").addEventListener("input", () => {
  stage.adjust();
  if (stage.current().picture) showCurl(stage.current());
});
byId("copy").addEventListener("click", copyCurl);
listen(take, (error) => fail(error, null));
introduce();
