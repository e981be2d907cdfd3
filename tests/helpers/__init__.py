"""What several test files share: tiny models, synthetic data, stand-ins, and scripts that run in other processes."""
