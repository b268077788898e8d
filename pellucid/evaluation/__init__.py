"""What a model is worth: measured, counted, and written down."""
