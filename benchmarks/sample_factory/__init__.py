"""Sample Factory 2.1.1 (arXiv 2006.11751), which trains this project's network in an environment of its own.

`environment` makes that environment, `adapter` runs inside it, `runs` starts it and reads off what it did.
"""
