"""The objectives, one in a file."""
