//! Checkpoints: one way to ask for a weight by its Hugging Face name
