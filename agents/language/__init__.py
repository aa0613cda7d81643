"""Agents that are language models: prompts, parsing, generation, rollouts over text worlds. Token ids in, token ids out."""
