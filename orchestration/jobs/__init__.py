"""Runs as Ray jobs: packed here, trained on a cluster, followed from here. See `docs/cluster.md`."""
