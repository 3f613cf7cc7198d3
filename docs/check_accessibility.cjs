// Accessibility check of finished pages: axe-core (WCAG 2.1 A and AA) in headless Chromium, light and dark, wide and narrow.
//
//   make pages                                             builds the sample pages and runs this on them
//   npm install --no-save axe-core puppeteer-core
//   node docs/check_accessibility.cjs [--pictures FOLDER] runs/first/release/report.html [more pages]
//
// CHROMIUM names the browser (default: chromium). --pictures also writes each view as PAGE-light-390.png and so on.
// Exit code 1 when any rule is broken or a page is wider than its screen.
const path = require("node:path");
const { createRequire } = require("node:module");
const require_ = createRequire(path.join(process.cwd(), "package.json"));
const puppeteer = require_("puppeteer-core");
const axe = require_("axe-core");

const browser_path = process.env.CHROMIUM || "/usr/bin/chromium";
const flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];

async function main(words) {
  const pictures = words[0] === "--pictures" ? words[1] : null;
  const pages = pictures ? words.slice(2) : words;
  const browser = await puppeteer.launch({ executablePath: browser_path, headless: true, args: flags });
  let broken = 0;
  const page = await browser.newPage();
  await page.setBypassCSP(true); // the page allows no script of its own; this one is ours
  for (const file of pages) {
    for (const scheme of ["light", "dark"]) {
      for (const width of [390, 1280]) {
        await page.setViewport({ width, height: 900 });
        await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
        await page.goto("file://" + path.resolve(file));
        if (pictures) {
          const name = `${path.basename(file, ".html")}-${scheme}-${width}.png`;
          await page.screenshot({ path: path.join(pictures, name), fullPage: true });
        }
        await page.evaluate(axe.source);
        const result = await page.evaluate(() => window.axe.run(document, {
          runOnly: { type: "tag", values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"] },
        }));
        const overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
        if (overflow > 0) {
          broken += 1;
          console.log(`${file} ${scheme} ${width}px: the page is ${overflow}px wider than the screen`);
        }
        for (const violation of result.violations) {
          broken += 1;
          console.log(`${file} ${scheme} ${width}px: ${violation.id} (${violation.impact}): ${violation.help}`);
          for (const node of violation.nodes.slice(0, 3)) console.log(`    ${node.html.slice(0, 160)}`);
        }
        console.log(`${file} ${scheme} ${width}px: ${result.passes.length} rules passed, ${result.violations.length} broken`);
      }
    }
  }
  await browser.close();
  process.exit(broken ? 1 : 0);
}

main(process.argv.slice(2));
