// What the page says to the service. Addresses are relative to the page, so that a prefix of a proxy stays in them.

const STORED_KEY = "freqmerge-api-key";

let key = sessionStorage.getItem(STORED_KEY) ?? "";

export const hasKey = () => key !== "";

export function useKey(given) {
  key = given;
  sessionStorage.setItem(STORED_KEY, given);
}

/** Why a request got no answer, in the words of the service's problem document where there is one. */
export class Problem extends Error {
  constructor(told) {
    super(told.title);
    Object.assign(this, { status: 0, detail: "", reason: "", requestId: "", retryAfterS: null }, told);
  }
}

/** The answer; throws a `Problem`, or an `AbortError` if the caller gave up. */
export async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({
      title: "The service cannot be reached",
      detail: "expected an answer, found a broken connection; see whether the service runs, then try again",
    });
  }
  if (!answer.ok) throw await problemOf(answer);
  return answer;
}

async function problemOf(answer) {
  const retryAfter = Number.parseInt(answer.headers.get("Retry-After"), 10);
  const told = {
    status: answer.status,
    title: `The answer was ${answer.status} ${answer.statusText}`.trim(),
    detail: "expected an answer of the service, found one of something in front of it, such as a proxy",
    retryAfterS: Number.isNaN(retryAfter) ? null : retryAfter,
  };
  if (answer.headers.get("Content-Type")?.startsWith("application/problem+json")) {
    const body = await answer.json();
    Object.assign(told, { title: body.title, detail: body.detail, requestId: body.request_id });
    told.reason = body.type.split(":").at(-1);
  }
  return new Problem(told);
}

/** Labels of a picture, and what the service measured: `{body, stages}`, stages as [name, milliseconds]. */
export async function classify(file, signal) {
  const answer = await request("classify", { method: "POST", body: file, headers: typeOf(file), signal });
  return { body: await answer.json(), stages: stagesOf(answer) };
}

/** A drawing as a blob; of the picture that is kept under its id, or else sent once more. */
export async function drawing(picture, query, signal) {
  const parameters = new URLSearchParams(query);
  if (picture.id) {
    try {
      const answer = await request(`heatmap?${new URLSearchParams({ image_id: picture.id })}&${parameters}`, { signal });
      return { blob: await answer.blob(), stages: stagesOf(answer) };
    } catch (error) {
      if (error.reason !== "unknown_image") throw error;
      picture.id = null; // no longer kept
    }
  }
  const sent = { method: "POST", body: picture.file, headers: typeOf(picture.file), signal };
  const answer = await request(`heatmap?${parameters}`, sent);
  return { blob: await answer.blob(), stages: stagesOf(answer) };
}

export const typeOf = (file) => ({ "Content-Type": file.type || "application/octet-stream" });

function stagesOf(answer) {
  const parts = (answer.headers.get("Server-Timing") ?? "").split(",").map((part) => part.trim().split(";dur="));
  return parts.filter((part) => part.length === 2).map(([name, duration]) => [name, Number(duration)]);
}
