"""`python -m themis_triton.load OPTIONS_JSON`: the child process of `LoadProcess`."""

import sys

from themis_triton.load.process import child_main

if __name__ == "__main__":
    sys.exit(child_main(sys.argv[1:]))
