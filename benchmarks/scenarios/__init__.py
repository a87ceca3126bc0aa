"""What is measured. Every scenario takes a running platform and returns figures of one round."""
