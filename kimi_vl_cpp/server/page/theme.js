// Sets the theme before anything is drawn; not a module, so that it runs first.
(() => {
  try {
    const theme = JSON.parse(localStorage.getItem("kimi-vl.settings") || "{}").theme;
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // No storage, or none of ours in it: the system's theme stays.
  }
})();
