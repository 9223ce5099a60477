"""Parses the command line while it is imported, as training scripts do."""

import argparse

argparse.ArgumentParser().parse_args(["--no-such-flag"])
