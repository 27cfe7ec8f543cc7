"""The README, the pages of docs/ and the notebooks are true."""
