"""x."""
def write_report(study, done, directory): return directory
