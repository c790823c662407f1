"""What a Space runs. `python app.py` is `python -m llava_demo serve`, with the same options."""

import sys

from llava_demo.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]], program="python app.py"))
