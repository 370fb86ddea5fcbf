"""`python -m services.router`: one router process."""

import os
import sys

from services.chassis import process
from services.router.app import running
from services.router.settings import PREFIX, SERVICE, Settings

if __name__ == "__main__":
    sys.exit(process.main(SERVICE, PREFIX, Settings, running, os.environ, sys.argv[1:]))
