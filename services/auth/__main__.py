"""`python -m services.auth`: the only place where this service's environment is read."""

import os
import sys

from services.auth.app import SERVICE, running
from services.auth.settings import Settings
from services.chassis import process

if __name__ == "__main__":
    sys.exit(process.main(SERVICE, "ANABRANCH_AUTH_", Settings, running, os.environ, sys.argv[1:]))
