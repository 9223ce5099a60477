"""What the chapters about losses share."""
