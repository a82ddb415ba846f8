"""``python -m ringfence`` is ``sbx``."""

from ringfence.cli.main import main

if __name__ == "__main__":
    main()
