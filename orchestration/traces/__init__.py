"""Traces: one file for each traced episode, written while it runs, readable after a crash, never rewritten.

`recorder` writes what the rollout loop observes, `reader` reads files (cut ones too), `schema` is what they hold and
`validate` checks it. Replaying and exporting build on `reader` and `schema`.
"""
