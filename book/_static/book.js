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

// A formula wider than its place scrolls, and so do a long output and a table with a caption, which the theme does not look for: the Tab key
// must reach them, for the arrow keys to move them.
addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  const wide = (part) => part.scrollWidth > part.clientWidth;
  const long = (part) => part.matches(".cell_output") && part.scrollHeight > part.clientHeight;
  const reach = new ResizeObserver((changes) => {
    for (const { target } of changes) target.tabIndex = wide(target) || long(target) ? 0 : -1;
  });
  const parts = "mjx-container[display], .tag_output_scroll > .cell_output, .cell_output > figure > .output";
  document.querySelectorAll(parts).forEach((part) => reach.observe(part));
});
