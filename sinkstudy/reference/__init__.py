"""Training of the small reference model that ships with the study."""
