// Opens pages of the built site in a headless browser and asks axe-core what keeps people from reading them:
// node accessibility.mjs BROWSER SITE, where puppeteer-core and axe-core are installed.
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { extname, join } from "node:path";

const [browser, site] = process.argv.slice(2);
const require = createRequire(join(process.cwd(), "package.json"));
const puppeteer = require("puppeteer-core");
const axe = await readFile(require.resolve("axe-core/axe.min.js"), "utf8");

const PAGES = ["", "choosing/", "diagnostics/", "faq/", "rules/", "rules/SAME/", "benchmarks/", "api/training/"];
const RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"];
const TYPES = { ".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml" };

const server = createServer(async (request, response) => {
  const path = decodeURI(new URL(request.url, "http://localhost").pathname);
  try {
    const file = path.endsWith("/") ? `${path}index.html` : path;
    const body = await readFile(join(site, file));
    response.writeHead(200, { "content-type": TYPES[extname(file)] ?? "application/octet-stream" }).end(body);
  } catch {
    response.writeHead(404).end();
  }
}).listen(0);
const address = `http://localhost:${server.address().port}/`;

const chromium = await puppeteer.launch({ executablePath: browser, args: ["--no-sandbox"], protocolTimeout: 300000 });
let found = 0;
for (const path of PAGES) {
  for (const scheme of ["light", "dark"]) {
    for (const width of [390, 1280]) {
      // The site remembers the scheme of the last visit, so each page has a visitor of its own.
      const context = await chromium.createBrowserContext();
      const page = await context.newPage();
      await page.emulateMediaFeatures([
        { name: "prefers-color-scheme", value: scheme },
        { name: "prefers-reduced-motion", value: "reduce" },
      ]);
      await page.setViewport({ width, height: 900 });
      await page.goto(address + path, { waitUntil: "networkidle0", timeout: 200000 });
      const shown = scheme === "dark" ? "slate" : "default";
      await page.waitForSelector(`body[data-md-color-scheme=${shown}]`, { timeout: 60000 });
      const where = `${path || "index"} (${scheme}, ${width} px)`;
      const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
      if (wide) console.log(`${where}: the page is wider than the window`), found++;
      await page.evaluate(axe);
      const { violations } = await page.evaluate((runOnly) => axe.run(document, { runOnly }), RULES);
      for (const { id, impact, help, nodes } of violations) {
        console.log(`${where}: ${id} (${impact}), ${nodes.length} times: ${help}\n    ${nodes[0].html.slice(0, 200)}`);
        found++;
      }
      await context.close();
    }
  }
}
await chromium.close();
server.close();
console.log(`${PAGES.length} pages, light and dark, 390 and 1280 px: ${found} findings`);
process.exit(found ? 1 : 0);
