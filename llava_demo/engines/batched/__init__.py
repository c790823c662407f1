"""The engine that answers many requests in each step of the model."""
