"""How the report page looks: on light and dark, on a phone, on paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #59636e; --paper: #ffffff;
  --card: #f4f6f8; --line: #d5dae0; --note: #fff4d6 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #a3adb8; --paper: #14171b;
  --card: #1e2329; --line: #363d46; --note: #40351a } }
@media print { :root { color-scheme: light; --ink: #000000; --soft: #444444; --paper: #ffffff;
  --card: #ffffff; --line: #bbbbbb; --note: #ffffff } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { max-width: 1100px; margin: 0 auto; padding: 16px }
h1 { margin: 8px 0 16px; overflow-wrap: anywhere }
h2 { margin: 40px 0 12px; padding-bottom: 4px; border-bottom: 1px solid var(--line) }
p { color: var(--soft); max-width: 75ch }
.note { background: var(--note); color: var(--ink); padding: 8px 12px; border-radius: 6px;
  border: 1px solid var(--line) }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(155px, 1fr)); gap: 10px;
  margin: 0 }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: 8px 12px }
dt { color: var(--soft); font-size: 14px }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 15px; font-variant-numeric: tabular-nums }
th, td { padding: 4px 14px 4px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600 }
.n { text-align: right; white-space: nowrap }
td:first-child { white-space: nowrap }
td:last-child:not(.n) { min-width: 260px }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: 12px;
  overflow-x: auto; font-size: 14px; line-height: 1.4 }
.infolayer text, .xaxislayer-above text, .yaxislayer-above text, .cartesianlayer text {
  fill: var(--ink) !important }
@media print { main { max-width: none; padding: 0 } body { font-size: 11pt }
  table { font-size: 9pt } pre { white-space: pre-wrap; font-size: 8.5pt }
  h2 { break-after: avoid } tr, .plotly-graph-div, dl div { break-inside: avoid }
  .wide { overflow: visible } .modebar { display: none } }
"""
# Plotly draws for the width of the screen: on paper figures take that of a page, and go back.
SCRIPT = """
const figures = () => document.querySelectorAll(".js-plotly-plot");
addEventListener("beforeprint", () => figures().forEach(
  figure => Plotly.relayout(figure, {autosize: false, width: 680})));
addEventListener("afterprint", () => figures().forEach(
  figure => Plotly.relayout(figure, {autosize: true, width: null})));
"""
