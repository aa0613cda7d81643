"""What a valid trace keeps: `rules` names it, `fields` looks at one record, `order` at one after the other, `sums` adds up."""
