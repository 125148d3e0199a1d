"""What explanations cost, beside the forward passes they need."""
