"""What the rules need: configuration, code fingerprint, job log, costs."""
