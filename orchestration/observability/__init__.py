"""Where the numbers of a run go beside its folder: Prometheus, Weights & Biases, MLflow."""
