"""Who acts: policies, the rollout loop, trajectories."""
