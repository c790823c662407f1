"""What a Space runs. `python app.py` is `python -m llava_demo serve`, with the same options."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH keeps it out
    from llava_demo.__main__ import leave, main

    leave(main(["serve", *sys.argv[1:]], program="python app.py"))
