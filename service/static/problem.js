// What a refusal looks like: the problem document in words, and what can be done about it.

import { byId, make } from "./dom.js";

let countdown = 0;

export function hideProblem() {
  clearInterval(countdown);
  byId("problem").hidden = true;
  byId("problem").replaceChildren();
}

/** Shows a `Problem` with the file of that name; `again`, if given, is offered as soon as the service wants it. */
export function showProblem(problem, again = null, name = "") {
  hideProblem();
  const small = [
    name,
    problem.status && `Status ${problem.status}`,
    problem.reason,
    problem.requestId && `request ${problem.requestId}`,
  ].filter(Boolean);
  byId("problem").append(make("h2", {}, problem.title), make("p", {}, sentence(problem.detail)));
  if (problem.retryAfterS !== null) {
    byId("problem").append(make("p", {}, `The service asks to come back in ${problem.retryAfterS} s.`));
  }
  if (small.length) byId("problem").append(make("p", { class: "small" }, small.join(" · ")));
  if (again && worthRetrying(problem)) byId("problem").append(retryButton(problem.retryAfterS ?? 0, again));
  byId("problem").hidden = false;
}

const worthRetrying = ({ status, reason }) => (status === 0 && !reason) || status === 408 || status === 429 || status >= 500;

function retryButton(seconds, again) {
  const button = make("button", { type: "button", class: "button", id: "again" });
  const until = performance.now() + 1000 * seconds;
  const tick = () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    button.disabled = left > 0;
    button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left <= 0) clearInterval(countdown);
  };
  countdown = setInterval(tick, 250);
  tick();
  button.addEventListener("click", again);
  return button;
}

function sentence(detail) {
  const full = detail.charAt(0).toUpperCase() + detail.slice(1);
  return /[.!?]$/.test(full) ? full : `${full}.`;
}
