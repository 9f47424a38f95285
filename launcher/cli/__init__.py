"""The command line: one module for each verb or two, and the table that lists them."""
