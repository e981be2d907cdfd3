"""What several test files use: tiny models, made data, stand-ins, and scripts that run in processes of their own."""
