"""Models and adapters in other formats: in from Hugging Face, out to everywhere."""
