"""`python -m services.router`: one router process, or a supervisor of several."""

import os
import sys

from services.chassis import process
from services.router.app import running, running_worker
from services.router.policy.check import check_file
from services.router.settings import PREFIX, SERVICE, Settings

if __name__ == "__main__":
    sys.exit(
        process.main(
            SERVICE,
            PREFIX,
            Settings,
            running,
            os.environ,
            sys.argv[1:],
            running_worker=running_worker,
            checks={"policy": check_file},
        )
    )
