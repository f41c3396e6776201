"""`python -m dart` is the command `dart`."""

import sys

from dart.cli import main

if __name__ == "__main__":
    sys.exit(main())
