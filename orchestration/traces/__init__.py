"""Traces: one file for each traced episode and one for the run itself, written while it runs, readable after a crash, never
rewritten.

`schema` is what they hold (`codec`: as lines, `migrations`: what older ones held, `packing` and `cells`: what lines leave
out). `recorder` decides what is recorded of what the rollout loop observes, `writers` write it (each episode an `episode`),
`again` plays again what nobody followed, `run_trace` writes what the cluster did, `late` keeps what is learned later and
`complete` adds it to an episode. `reader` reads files (cut ones too), `validate` checks them, `index` and `where` find them.
`view`, `export` and `replay` build on `reader` and `schema`.
"""
