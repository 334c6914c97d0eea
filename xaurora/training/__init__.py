"""Fine-tuning: the plan, the build, the loop and its checkpoints, and the estimate of all that."""
