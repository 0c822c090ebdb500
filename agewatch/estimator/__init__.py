"""A picture's bytes -> ages: all that a model file carries, beside the errors."""
