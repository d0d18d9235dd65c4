"""`python -m prfaas.cli`: how one command starts another with the same interpreter."""

from prfaas.cli.app import main

if __name__ == "__main__":
    main()
