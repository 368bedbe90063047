"""``python -m hashlens``, as launchers such as ``torchrun -m hashlens`` want it."""

from hashlens.cli.main import main

if __name__ == "__main__":
    main()
