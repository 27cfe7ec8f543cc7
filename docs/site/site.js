// What axe-core finds in the theme: a dialog and landmarks without a name, and code that only a mouse can scroll.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  document.querySelectorAll(".md-code__nav").forEach((nav, index) => nav.setAttribute("aria-label", `Code ${index + 1}`));
  document.querySelector("nav.md-tabs")?.setAttribute("aria-label", "Sections");
  document.querySelectorAll(".md-typeset pre > code, .md-typeset__scrollwrap").forEach((block) => {
    if (block.scrollWidth > block.clientWidth) block.tabIndex = 0;
  });
});
