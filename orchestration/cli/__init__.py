"""The command `yendor`. Modules here load nothing heavy before a command needs it."""
