"""The style of pages: light or dark as the reader has it, and one column on a phone."""

STYLE = """\
:root { color-scheme: light dark; --text: #1f2937; --muted: #5b6472; --back: #fff; --card: #f6f7f9; --line: #e2e5ea;
  --dense: #9aa5b4; --ours: #c2410c; --warn: #92400e; --warned: #fef3c7 }
@media (prefers-color-scheme: dark) { :root { --text: #e5e7eb; --muted: #a3acb9; --back: #14171c; --card: #1e232b;
  --line: #333b47; --dense: #6b7686; --ours: #f08a4b; --warn: #fcd34d; --warned: #3a2f10 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 64rem;
  margin: 0 auto; padding: 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.4rem; margin: .5rem 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
.cards { display: grid; gap: .7rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)) }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem }
.card.dim { background: none } .name { font-weight: 600; font-size: .92rem } .value { font-size: 1.25rem }
.note { color: var(--muted); font-size: .82rem } .row { display: flex; justify-content: space-between; gap: .7rem;
  font-size: .85rem; margin-top: .35rem; font-variant-numeric: tabular-nums } .row span { color: var(--muted) }
.warning { color: var(--warn); background: var(--warned); border-radius: .4rem; padding: .5rem .7rem }
.bars { margin: .3rem 0 } .bars i { display: block; height: .4rem; border-radius: .2rem; background: var(--dense);
  margin-top: .2rem; min-width: 1px } .bars i + i, .columns i, .key i + i { background: var(--ours) }
.key i { display: inline-block; width: .7rem; height: .7rem; border-radius: .2rem; background: var(--dense) }
.key i + i { margin-left: .5rem }
.columns { display: flex; align-items: flex-end; gap: 2px; height: 3rem; border-bottom: 1px solid var(--line) }
.columns i { flex: 1 1 0; min-height: 1px; max-width: 1.5rem; border-radius: 2px 2px 0 0 }
.curve { width: 100%; height: 9rem; background: var(--card); border: 1px solid var(--line) }
.curve polyline { fill: none; stroke: var(--ours); stroke-width: 1.5; vector-effect: non-scaling-stroke }
summary { cursor: pointer } code { font-size: .9em }
table { border-collapse: collapse; font-size: .78rem; font-variant-numeric: tabular-nums; margin-top: .6rem }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
@media (max-width: 50rem) { table, tbody, tr, td { display: block } th, td.none { display: none }
  td { border: 0; padding: .1rem 0 } td:first-child { font-weight: 600 }
  td:not(:first-child)::before { content: attr(data-name) ": "; color: var(--muted) }
  tr { border-bottom: 1px solid var(--line); padding: .4rem 0 } }"""
