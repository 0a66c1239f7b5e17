"""Network and head as one Keras model: fine-tuned, or exported."""
