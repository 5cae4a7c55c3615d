"""What is measured of a prompt, and what follows from it by a formula alone; NumPy, neither files nor models."""
