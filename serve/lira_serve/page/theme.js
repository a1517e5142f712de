// Loaded before the page is drawn, so that it never flashes in the other theme. The system's theme holds until
// someone chooses another one; only that choice is kept.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return localStorage.getItem("lira-theme");
    } catch {
      return null; // storage may be forbidden: the choice then lasts until reload
    }
  };
  let chosen = stored();
  const apply = () => {
    root.dataset.theme = chosen === "dark" || chosen === "light" ? chosen : system.matches ? "dark" : "light";
    const button = document.getElementById("theme");
    if (button) button.setAttribute("aria-pressed", String(root.dataset.theme === "dark"));
  };
  system.addEventListener("change", apply);
  apply();
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", () => {
      chosen = root.dataset.theme === "dark" ? "light" : "dark";
      try {
        localStorage.setItem("lira-theme", chosen);
      } catch {
        // as above
      }
      apply();
    });
  });
})();
