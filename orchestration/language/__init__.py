"""Runs in which a language model acts: the same session, run directory, reward server and traces as with a network."""
