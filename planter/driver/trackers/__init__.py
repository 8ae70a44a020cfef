"""What other programs are told of trainings as they go: TensorBoard, MLflow, Weights & Biases."""
