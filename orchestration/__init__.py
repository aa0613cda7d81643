"""How all run together: configuration, command line, runtimes, traces, metrics."""
