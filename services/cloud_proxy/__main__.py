"""Runs the cloud proxy: hands the environment and the arguments over, and nothing else."""

import os
import sys

from services.chassis import process
from services.cloud_proxy.app import SERVICE, running
from services.cloud_proxy.settings import Settings

if __name__ == "__main__":
    prefix = "ANABRANCH_CLOUD_"
    environ = Settings.with_proxies(prefix, os.environ)
    sys.exit(process.main(SERVICE, prefix, Settings, running, environ, sys.argv[1:]))
