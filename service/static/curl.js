// The command lines that do what the page just did.

import { byId, make, speak } from "./dom.js";
import { hasKey, typeOf } from "./api.js";

/** Shows how to classify this picture and how to get this drawing. */
export function showCurl({ picture, query }) {
  const sent = `--data-binary ${quoted(`@${picture.name}`)} -H ${quoted(`Content-Type: ${typeOf(picture.file)["Content-Type"]}`)}`;
  const parameters = new URLSearchParams(picture.id ? { image_id: picture.id, ...query } : query);
  const drawing = `-o heatmap.png ${picture.id ? "" : `${sent} `}${address(`heatmap?${parameters}`)}`;
  byId("curl").textContent = [`curl${key()} ${sent} ${address("classify")}`, `curl${key()} ${drawing}`].join("\n");
}

// The key itself is never shown.
const key = () => (hasKey() ? ' -H "Authorization: Bearer $API_KEY"' : "");

const address = (path) => quoted(new URL(path, document.baseURI).href);

/** One word for a POSIX shell. */
const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);

export async function copyCurl() {
  const text = byId("curl").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // no clipboard for pages without https
    const area = make("textarea", { class: "unseen" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  byId("copy").textContent = "Copied";
  speak("Copied");
  setTimeout(() => (byId("copy").textContent = "Copy"), 2000);
}
