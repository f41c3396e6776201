// Paper is white: what is printed takes the light colours, whatever the screen shows.
{
  const page = document.documentElement.dataset;
  let theme;
  addEventListener("beforeprint", () => {
    theme = page.theme;
    page.theme = "light";
  });
  addEventListener("afterprint", () => {
    page.theme = theme;
  });
}

// A formula wider than its place scrolls: the Tab key must reach it, for the arrow keys to move it.
addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  const reach = new ResizeObserver((changes) => {
    for (const { target } of changes) target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1;
  });
  document.querySelectorAll("mjx-container[display]").forEach((formula) => reach.observe(formula));
});
