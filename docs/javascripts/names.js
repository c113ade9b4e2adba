/* Material gives its search the role of a dialog, but no name that a screen reader could say. */
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
