"""Training: what trains in each stage, the loop, snapshots. Builds no model directory and prints nothing."""
