"""Objectives of language-model agents over many turns: pure functions of packed tensors; no model, no tokenizer."""
