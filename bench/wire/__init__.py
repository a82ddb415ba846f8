"""The wire side: C programs on one core, and what they need."""
