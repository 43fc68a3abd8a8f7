"""`python -m realcustom`: the command line."""

from realcustom.pipeline.cli.main import main

if __name__ == "__main__":
    main()
