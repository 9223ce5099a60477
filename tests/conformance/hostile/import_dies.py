"""Takes its process along while it is imported, as a broken extension does."""

import os

os._exit(5)
