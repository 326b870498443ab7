"""`python -m edgekit`, which torchrun needs: a module to start in each process."""

from edgekit.cli import main

if __name__ == "__main__":
    main()
