"""`python -m services.local_engine`: the only place where this service's environment is read."""

import os
import sys

from services.chassis import process
from services.local_engine.app import SERVICE, running
from services.local_engine.settings import Settings

if __name__ == "__main__":
    sys.exit(
        process.main(SERVICE, "ANABRANCH_ENGINE_", Settings, running, os.environ, sys.argv[1:])
    )
