// Opens pages of the built site in a headless browser and asks axe-core what keeps people from reading them:
// node accessibility.mjs BROWSER SITE, where puppeteer-core and axe-core are installed. Ends with 1 where it found
// something. What could not be looked at, since the browser does not start or the machine is slow, is said and no error.
import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { extname, join } from "node:path";

const [browser, site] = process.argv.slice(2);
const require = createRequire(join(process.cwd(), "package.json"));
const puppeteer = require("puppeteer-core");
const axe = await readFile(require.resolve("axe-core/axe.min.js"), "utf8");

const PAGES = ["", "choosing/", "diagnostics/", "faq/", "rules/", "rules/SAME/", "benchmarks/", "api/training/"];
const WIDTHS = [390, 1280];
const RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"];
const TYPES = { ".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml" };
const SECONDS = Number(process.env.ACCESSIBILITY_SECONDS ?? 50); // No page is opened after that.

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

// What axe-core says of one page in one scheme, at each width.
async function findings(chromium, path, scheme) {
  const found = [];
  // The site remembers the scheme of the last visit, so each visitor is a new one.
  const context = await chromium.createBrowserContext();
  try {
    const page = await context.newPage();
    // The theme looks once, as the page loads, for what has to scroll: so the narrow window comes first.
    await page.setViewport({ width: WIDTHS[0], height: 900 });
    await page.emulateMediaFeatures([
      { name: "prefers-color-scheme", value: scheme },
      { name: "prefers-reduced-motion", value: "reduce" },
    ]);
    await page.goto(address + path, { waitUntil: "load" });
    await page.waitForSelector(`body[data-md-color-scheme=${scheme === "dark" ? "slate" : "default"}]`);
    await page.evaluate(axe);
    for (const width of WIDTHS) {
      await page.setViewport({ width, height: 900 });
      const where = `${path || "index"} (${scheme}, ${width} px)`;
      const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
      if (wide) found.push(`${where}: the page is wider than the window`);
      const { violations } = await page.evaluate((runOnly) => axe.run(document, { runOnly }), RULES);
      for (const { id, impact, help, nodes } of violations) {
        const first = nodes[0].html.slice(0, 200);
        found.push(`${where}: ${id} (${impact}), ${nodes.length} times: ${help}\n    ${first}`);
      }
    }
  } finally {
    await context.close();
  }
  return found;
}

const waiting = PAGES.flatMap((path) => ["light", "dark"].map((scheme) => [path, scheme]));
const started = Date.now();
const unseen = [];
let chromium;
try {
  chromium = await puppeteer.launch({ executablePath: browser, args: ["--no-sandbox"] });
} catch (error) {
  console.log(`the browser does not start, so accessibility is not checked: ${error.message.split("\n")[0]}`);
  process.exit(0);
}
let count = 0;
for (const [path, scheme] of waiting) {
  const name = `${path || "index"} (${scheme})`;
  if (Date.now() - started > SECONDS * 1000) {
    unseen.push(name);
    continue;
  }
  try {
    const found = await findings(chromium, path, scheme);
    found.forEach((line) => console.log(line));
    count += found.length;
  } catch (error) {
    if (error.name !== "TimeoutError") throw error;
    console.log(`${name}: ${error.message}`);
    unseen.push(name);
  }
}
await chromium.close();
server.close();
if (unseen.length) console.log(`not looked at, for lack of time: ${unseen.join(", ")}`);
console.log(`${waiting.length - unseen.length} of ${waiting.length} pages, at ${WIDTHS.join(" and ")} px: ${count} findings`);
process.exit(count ? 1 : 0);
