"""Fine-tuning: planning, model building, the training loop, checkpoints and cost estimates."""
