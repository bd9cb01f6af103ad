"""What an output depends on: receptive fields, and recomputing only what a change reaches."""
