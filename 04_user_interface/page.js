() => {
  // Arrow keys go from tab to tab, as screen readers announce.
  document.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || event.target.getAttribute("role") !== "tab") return;
    const tabs = [...event.target.closest("[role=tablist]").querySelectorAll("[role=tab]")];
    const next = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });
  // What changes by itself is read out. Tabs are made when they are first opened.
  const mark = () => document.querySelectorAll(".live:not([aria-live])").forEach(
    (part) => part.setAttribute("aria-live", "polite"));
  new MutationObserver(mark).observe(document.body, { childList: true, subtree: true });
  mark();
}
