"""Image data whose training labels are partly wrong, one file for each data set."""
