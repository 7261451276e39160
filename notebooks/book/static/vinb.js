// What the theme leaves without a name that a screen reader could say.
window.addEventListener("load", () => {
  document.querySelectorAll("button.copybtn:not([aria-label])").forEach((button) => {
    button.setAttribute("aria-label", button.dataset.tooltip);
  });
  document.querySelectorAll(".bd-sidebar-primary summary:not([aria-label])").forEach((summary) => {
    const section = summary.closest("li")?.querySelector("a")?.textContent.trim() ?? "section";
    summary.setAttribute("aria-label", `Pages of ${section}`);
  });
});
