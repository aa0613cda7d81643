"""Who learns: reward fusion, objectives, optimisation, checkpoints."""
