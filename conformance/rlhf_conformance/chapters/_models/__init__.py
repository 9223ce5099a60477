"""What the chapters about models share."""
