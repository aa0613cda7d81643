"""`yendor report`: one or several runs as a single HTML page, without anything from elsewhere."""
