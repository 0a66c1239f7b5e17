"""The engine `winograd`: our own convolutions on x86-64 CPUs, float32 or int16."""
