// Swagger UI on our own document. Its addresses are made relative to this page, so that "Try it out" also works
// behind a proxy that adds a prefix.

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

const answer = await fetch("openapi.json");
const spec = await answer.json();
spec.servers = [{ url: new URL(".", document.baseURI).href.replace(/\/$/, "") }];

window.SwaggerUIBundle({ spec, dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true });
