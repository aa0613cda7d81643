"""Stepwise credit: what each turn of an episode is paid. See `docs/credit.md`.

`attribution` is the interface, `methods/` the ways, `registry` their names; `progress`, `replay` and `assembly` are the
progress estimator and what it learns from; `online` puts them together for recurrent agents, `language` for language models.
"""
