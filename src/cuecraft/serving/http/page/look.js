"use strict";

// Not a module: it runs before the first paint, so that a stored choice does not flash.
(() => {
  const KEY = "cuecraft.look";
  const root = document.documentElement;

  function stored() {
    try {
      return localStorage.getItem(KEY) || "";
    } catch {
      return ""; // storage is switched off
    }
  }

  function choose(look) {
    root.dataset.look = look;
    try {
      localStorage.setItem(KEY, look);
    } catch {
      // the choice holds until the page is left
    }
  }

  root.dataset.look = stored();
  addEventListener("DOMContentLoaded", () => {
    for (const button of document.querySelectorAll("[name=look]")) {
      button.checked = button.value === root.dataset.look;
      button.addEventListener("change", () => choose(button.value));
    }
  });
})();
