"""`python -m rlhf_conformance`, also from a source tree that is not installed."""

import sys

from rlhf_conformance.cli import main

sys.exit(main())
