"""What ``attack.py`` attacks: for each kind, how cases are made and what is done with one."""
