"""How language models run: what the judge's engines and the agents' have in common. Imports none of the others."""
