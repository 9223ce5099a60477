"""What the chapters about credit share, from scores to advantages: masks, and the checks that each of them has."""
