"""Traces: one file for each traced episode and one for the run itself, written while it runs, readable after a crash, never
rewritten.

`schema` is what they hold (`migrations`: what older ones held, `packing`: what lines leave out); `recorder` writes what the
rollout loop observes, `again` plays what nobody followed, `run_trace` writes what the cluster did, `late` keeps labels that
come later; `reader` reads files (cut ones too), `validate` checks them, `index` and `where` find them. `view`, `export` and
`replay` build on `reader` and `schema`.
"""
