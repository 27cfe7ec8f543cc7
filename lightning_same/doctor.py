"""``python -m lightning_same.doctor`` is ``lightning-same doctor``."""

from lightning_same.cli.doctor import main

if __name__ == "__main__":
    main()
