"""`python -m agewatch`."""

from agewatch.cli import main

if __name__ == "__main__":
    main()
