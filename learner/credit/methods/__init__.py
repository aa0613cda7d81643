"""Ways of giving credit, one a file; `learner.credit.registry` knows their names."""
