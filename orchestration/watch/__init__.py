"""Watches a run while it goes: parts that stand still, and what runs out on the machines."""
