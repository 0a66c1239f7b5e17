"""Network and head together: fine-tuned, or exported."""
