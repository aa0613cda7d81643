"""Engines: what runs a language model, behind one interface."""
