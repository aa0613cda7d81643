"""The judge: prompts, engines, and the judge that joins them."""
