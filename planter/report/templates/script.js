// Plotly draws for the width of the screen: on paper figures take that of a page, and go back.
const figures = () => document.querySelectorAll(".js-plotly-plot");
addEventListener("beforeprint", () => figures().forEach(
  figure => Plotly.relayout(figure, {autosize: false, width: 680})));
addEventListener("afterprint", () => figures().forEach(
  figure => Plotly.relayout(figure, {autosize: true, width: null})));
